"""Decides stored conversions again: to see what would change (what-if), or for good (re-attribution)."""
