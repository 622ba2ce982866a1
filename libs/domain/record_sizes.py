"""The sizes that a record may have: what senders, ingest and the readers of its log count on."""

import re

MAX_RECORD_BYTES = 512 * 1024
"""A record as a sender serialises it."""
MAX_STORED_RECORD_BYTES = MAX_RECORD_BYTES + 16 * 1024
"""A record in the log: with the id, the times, the country and the warnings that ingest adds."""

MAX_ID = 256
"""Characters of an id."""
MAX_EVENT_NAME = 128
MAX_PAIRS = 64
"""Names of a map."""
MAX_TEXT_BYTES = 4096
"""Bytes of a value of event data and the like, and of every other text that is no id."""
MAX_WARNINGS = 32
"""Wrong fields of one record that are named: a response has room for 1,000 records."""

_UNREADABLE = re.compile("[\0\ud800-\udfff]")


def is_long(text: str) -> bool:
    """Returns whether a text has more than MAX_TEXT_BYTES."""
    # Counting bytes costs a copy: only what may be too long in UTF-8 is counted.
    return len(text) > MAX_TEXT_BYTES // 4 and len(text.encode()) > MAX_TEXT_BYTES


def cut(text: str) -> str:
    """Returns the beginning of a text that has at most MAX_TEXT_BYTES, cut at a character boundary."""
    return text[:MAX_TEXT_BYTES].encode()[:MAX_TEXT_BYTES].decode(errors="ignore")


def readable(text: str) -> str:
    """Returns a text with U+FFFD in place of NUL, which PostgreSQL cannot keep, and of what is no character."""
    return _UNREADABLE.sub("\ufffd", text)
