"""Holds every query on the attribution schema, a file for each family of tables."""
