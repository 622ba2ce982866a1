"""Runs scenario files through the real decision code, with no server and no database."""
