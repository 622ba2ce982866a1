"""Every query on the schema `ingest`, a file per family of tables."""
