"""The context that a served call hands on to the calls it makes: its request id, and the rest of its time.

It imports nothing heavy, so that a client that serves nothing starts quickly.
"""

import time
import uuid
from contextvars import ContextVar
from typing import Any

REQUEST_ID_HEADER = "x-request-id"

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the call being served, if any."""
deadline_s: ContextVar[float | None] = ContextVar("deadline_s", default=None)
"""When the caller of the unary call being served stops waiting, by `time.monotonic`, if it ever does."""


def new_request_id() -> str:
    """Returns an id for a request that came without one."""
    return uuid.uuid4().hex


def outgoing(metadata: Any) -> list[tuple[str, str | bytes]]:
    """Returns the metadata of a call made while serving: what the caller gave, and the request id."""
    pairs = list(metadata or ())
    if not any(key == REQUEST_ID_HEADER for key, _ in pairs):
        pairs.append((REQUEST_ID_HEADER, request_id.get() or new_request_id()))
    return pairs


def remaining_s(default_s: float) -> float:
    """Returns the time a call out may take: the default, or what is left of the deadline of the call being served."""
    deadline = deadline_s.get()
    return default_s if deadline is None else max(0.0, min(default_s, deadline - time.monotonic()))
