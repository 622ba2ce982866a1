"""What a resource of a what-if may hold: what tracker would refuse, and decisions read, is refused here, too."""

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from libs.errors import Violations
from reengage.tracker.v1 import windows_pb2

_MOST_CHARACTERS = 256
_MINUTE, _DAY = 60, 86_400
_CLICK, _IMPRESSION, _LONG = (_MINUTE, 30 * _DAY), (_MINUTE, _DAY), (_MINUTE, 3650 * _DAY)
_RANGES_S = {
    "click_device": _CLICK,  # B2
    "click_modeled": _CLICK,
    "click_equalizer": _CLICK,
    "click_ip": _CLICK,
    "impression_device": _IMPRESSION,
    "impression_modeled": _IMPRESSION,
    "impression_ip": _IMPRESSION,
    "event_association": _LONG,  # D8
    "post_engagement_window": (_DAY, 90 * _DAY),  # B4
    "post_view_window": (0, 90 * _DAY),
    "min_time_to_reengagement": (0, 365 * _DAY),  # D3
    "reengagement_period": _LONG,  # D6
    "install_reprocessing_window": (_DAY, 365 * _DAY),
    "retention": (60 * _DAY, 760 * _DAY),
}
"""Durations that decisions read, by the field that holds them or their window; both ends included."""


def check_change(path: str, resource: Message, violations: Violations) -> None:
    """Note every field of a resource at `path`, and of what lies in it, that holds what it cannot."""
    for described, value in resource.ListFields():
        name, inner = described.name, f"{path}.{described.name}"
        if described.type == FieldDescriptor.TYPE_STRING:
            texts = (
                [(f"{inner}[{n}]", text) for n, text in enumerate(value)] if described.is_repeated else [(inner, value)]
            )
            for place, text in texts:
                _check_text(place, text, name, violations)
        elif name == "max_conversions_per_engagement" and value < 0:
            violations.add(inner, "OUT_OF_RANGE", "must be 0 (no limit) or more")
        elif described.message_type is None or described.is_repeated:
            continue
        elif isinstance(value, Timestamp):
            _check_time(inner, value, violations)
        elif isinstance(value, Duration):
            _check_duration(inner, value, name, violations)
        elif isinstance(value, windows_pb2.Window):
            _check_window(inner, value, name, violations)
        else:
            check_change(inner, value, violations)


def _check_text(path: str, text: str, name: str, violations: Violations) -> None:
    if "\0" in text:
        violations.add(path, "INVALID_TEXT", "must not contain NUL")
    # Links and the like may be longer, and nothing is decided by them.
    if len(text) > _MOST_CHARACTERS and (name.endswith("_id") or name in ("event_name", "events")):
        violations.add(path, "TOO_LONG", f"at most {_MOST_CHARACTERS} characters")


def _check_time(path: str, time: Timestamp, violations: Violations) -> None:
    # The bounds of google.protobuf.Timestamp: years 1 to 9999.
    if not (-62_135_596_800 <= time.seconds < 253_402_300_800 and 0 <= time.nanos < 1_000_000_000):
        violations.add(path, "INVALID_TIME", "seconds or nanos are out of range")


def _check_duration(path: str, duration: Duration, name: str, violations: Violations) -> None:
    if name not in _RANGES_S:
        return
    low_s, high_s = _RANGES_S[name]
    if duration.nanos or not low_s <= duration.seconds <= high_s:
        violations.add(path, "OUT_OF_RANGE", f"must be {low_s:,} to {high_s:,} s, in whole seconds")


def _check_window(path: str, window: windows_pb2.Window, name: str, violations: Violations) -> None:
    limit = window.WhichOneof("limit")
    if limit == "duration":
        _check_duration(f"{path}.duration", window.duration, name, violations)
    elif limit == ("disabled" if name == "event_association" else "unlimited"):
        violations.add(f"{path}.{limit}", "NOT_ALLOWED", f"cannot be {limit}")
