"""Allowed ranges of settings, as data, and the one check of a resource against them.

Tracker checks resources with it, and attribution the overrides of a what-if, so that neither takes what the other
refuses. Numbers such as B2 are those of the attribution rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from reengage.tracker.v1.windows_pb2 import Window

if TYPE_CHECKING:
    from libs.errors import Violations  # with it comes grpc, which takes the simulator 0.1 s to load

_MINUTE_S, _HOUR_S, DAY_S = 60, 3600, 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Whole seconds from `min_s` to `max_s`, both included, and the words for that."""

    min_s: int
    max_s: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRange:
    """The durations that a window may have, and which of its other two limits it may have."""

    range: Range
    may_be_disabled: bool = True
    may_be_unlimited: bool = False


_CLICK = WindowRange(range=Range(min_s=_MINUTE_S, max_s=30 * DAY_S, text="1 minute to 30 days"))
_IMPRESSION = WindowRange(range=Range(min_s=_MINUTE_S, max_s=DAY_S, text="1 minute to 24 hours"))
_LONG = Range(min_s=_MINUTE_S, max_s=3650 * DAY_S, text="1 minute to 3650 days")

WINDOWS: Mapping[str, WindowRange] = MappingProxyType(
    {
        "click_device": _CLICK,  # B2
        "click_modeled": _CLICK,
        "click_equalizer": _CLICK,
        "click_ip": _CLICK,
        "impression_device": _IMPRESSION,
        "impression_modeled": _IMPRESSION,
        "impression_ip": _IMPRESSION,
        "event_association": WindowRange(range=_LONG, may_be_disabled=False, may_be_unlimited=True),  # D8
    }
)
"""Windows by their field."""

DURATIONS: Mapping[str, Range] = MappingProxyType(
    {
        "min_time_to_reengagement": Range(min_s=0, max_s=365 * DAY_S, text="0 to 365 days"),  # D3
        "reengagement_period": _LONG,  # D6
        "install_reprocessing_window": Range(min_s=DAY_S, max_s=365 * DAY_S, text="1 to 365 days"),  # F2
        "inactivity_window": Range(min_s=0, max_s=90 * DAY_S, text="0 to 90 days"),  # D13
        "late_window": Range(min_s=0, max_s=7 * DAY_S, text="0 to 7 days"),  # D12
        "late_pings": Range(min_s=0, max_s=12 * _HOUR_S, text="0 to 12 hours"),  # D12
        "max_record_age": Range(min_s=_HOUR_S, max_s=31 * DAY_S, text="1 hour to 31 days"),
        "max_record_lead": Range(min_s=0, max_s=DAY_S, text="0 to 24 hours"),
        "post_engagement_window": Range(min_s=DAY_S, max_s=90 * DAY_S, text="1 to 90 days"),  # B4
        "post_view_window": Range(min_s=0, max_s=90 * DAY_S, text="0 to 90 days"),  # B4
    }
)
"""Durations by their field. A network may allow fewer values of the two that B4 names."""

CHOICES_DAYS: Mapping[str, tuple[int, ...]] = MappingProxyType({"retention": (60, 90, 180, 400, 760)})
"""Durations of which only some values are allowed, in days."""

POST_ENGAGEMENT_DAYS = (1, 7, 14, 30)
POST_VIEW_DAYS = (0, 1, 7, 14, 30)
"""Days that a self-attributing network allows unless it says otherwise (B4)."""
DEFAULT_POST_ENGAGEMENT_DAYS = 14
DEFAULT_POST_VIEW_DAYS = 0

DEFAULT_RECORDS_PER_SECOND = 2_500
"""The rate of an app in each process of gateway and ingest: a third of what the suite takes in on two cores (7,500 a
second), so that no app takes all of it unless its owner says so."""

NOT_NEGATIVE = frozenset({"max_conversions_per_engagement", "records_per_second"})
"""Numbers of which 0 means no limit."""


def check_ranges(path: str, resource: Message, violations: "Violations") -> None:
    """Notes every setting of a resource at `path`, at any depth, that is outside of its range."""
    for described, value in resource.ListFields():
        name, inner = described.name, f"{path}.{described.name}"
        if described.is_repeated:
            continue
        if isinstance(value, Window):
            if name in WINDOWS:
                _check_window(inner, value, WINDOWS[name], violations)
        elif isinstance(value, Duration):
            if name in DURATIONS:
                check_duration(inner, value, DURATIONS[name], violations)
            elif name in CHOICES_DAYS:
                check_days(inner, value, CHOICES_DAYS[name], violations)
        elif described.message_type is not None:
            check_ranges(inner, value, violations)
        elif name in NOT_NEGATIVE and value < 0:
            violations.add(inner, "OUT_OF_RANGE", "must be 0 (no limit) or more")


def check_duration(path: str, duration: Duration, allowed: Range, violations: "Violations") -> None:
    """Notes a duration that is out of its range, or not of whole seconds."""
    if duration.nanos or not allowed.min_s <= duration.seconds <= allowed.max_s:
        violations.add(path, "OUT_OF_RANGE", f"must be {allowed.text}, in whole seconds")


def check_days(path: str, duration: Duration, allowed: Sequence[int], violations: "Violations") -> None:
    """Notes a duration that is none of these numbers of days."""
    if duration.nanos or duration.seconds % DAY_S or duration.seconds // DAY_S not in allowed:
        *others, last = map(str, allowed)
        text = f"{', '.join(others)} or {last}" if others else last
        violations.add(path, "OUT_OF_RANGE", f"must be {text} days")


def _check_window(path: str, window: Window, allowed: WindowRange, violations: "Violations") -> None:
    limit = window.WhichOneof("limit")
    if limit == "duration":
        check_duration(f"{path}.duration", window.duration, allowed.range, violations)
    elif limit is None or not getattr(window, limit):
        violations.add(path, "REQUIRED", "must have a limit: a duration, or one of the others as true")
    elif limit == "disabled" and not allowed.may_be_disabled:
        violations.add(f"{path}.disabled", "NOT_ALLOWED", "cannot be disabled")
    elif limit == "unlimited" and not allowed.may_be_unlimited:
        violations.add(f"{path}.unlimited", "NOT_ALLOWED", "cannot be unlimited")
