"""Ingest owns the record log: it checks, de-duplicates and durably keeps records, and serves the log to its readers."""
