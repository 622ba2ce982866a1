"""Translates protos into the words of the decisions, and back."""
