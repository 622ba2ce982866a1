"""The bytes that a record may have: what senders, ingest and the readers of its log count on."""

MAX_RECORD_BYTES = 512 * 1024
"""A record as a sender serialises it."""
MAX_STORED_RECORD_BYTES = MAX_RECORD_BYTES + 4 * 1024
"""A record in the log: with the id, the times and the country that ingest adds."""
