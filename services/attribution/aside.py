"""Setting aside what cannot be worked on, with an alarm: it costs itself, and nothing that comes after it."""

import structlog
from prometheus_client import Counter

_set_aside = Counter(
    "attribution_set_aside_total",
    "Entries of the log, and decisions for postback, that were passed over, because they are too large or unparsable.",
    ["what", "reason"],
)
_log = structlog.get_logger()


def set_aside(what: str, reason: str, *, lane: int, place: int) -> None:
    """Counts and logs what is passed over: an `entry` at a position of its lane, or a `decision` of a sequence."""
    _set_aside.labels(what, reason).inc()
    _log.error(f"{what}.set_aside", reason=reason, lane=lane, place=place)
