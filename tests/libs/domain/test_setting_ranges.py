"""Allowed ranges of settings: the ends of each range, and what lies beyond."""

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from libs.domain.setting_ranges import CHOICES_DAYS, DURATIONS, NOT_NEGATIVE, WINDOWS, check_ranges
from libs.errors import Violations
from reengage.tracker.v1.app_pb2 import App, AppSettings
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.network_settings_pb2 import NetworkSettings
from reengage.tracker.v1.tracker_pb2 import Tracker
from reengage.tracker.v1.windows_pb2 import Window, Windows

DAY_S = 86_400
_KINDS = (EventDefinition, AppSettings, NetworkSettings, Tracker)


def wrong(resource: Message) -> set[tuple[str, str]]:
    violations = Violations()
    check_ranges("resource", resource, violations)
    return {(each.field, each.reason) for each in violations.found}


def with_duration(name: str, seconds: int, nanos: int = 0) -> Message:
    duration = Duration(seconds=seconds, nanos=nanos)
    for kind in _KINDS:
        if name in kind.DESCRIPTOR.fields_by_name:
            resource: Message = kind()
            getattr(resource, name).CopyFrom(duration)
            return resource
    raise AssertionError(f"no resource has {name}")


def with_window(name: str, **limit: Any) -> Tracker:
    return Tracker(windows=Windows(**{name: Window(**limit)}))


@pytest.mark.parametrize("name", DURATIONS)
def test_ends_of_a_range_are_in_it(name: str) -> None:
    allowed = DURATIONS[name]
    assert wrong(with_duration(name, allowed.min_s)) == set()
    assert wrong(with_duration(name, allowed.max_s)) == set()
    out = {(f"resource.{name}", "OUT_OF_RANGE")}
    assert wrong(with_duration(name, allowed.min_s - 1)) == out
    assert wrong(with_duration(name, allowed.max_s + 1)) == out
    assert wrong(with_duration(name, allowed.min_s, nanos=1)) == out


@pytest.mark.parametrize("days", CHOICES_DAYS["retention"])
def test_a_retention_is_one_of_a_few(days: int) -> None:
    assert wrong(with_duration("retention", days * DAY_S)) == set()
    assert wrong(with_duration("retention", days * DAY_S + 1)) == {("resource.retention", "OUT_OF_RANGE")}


@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_has_one_of_its_limits(name: str) -> None:
    allowed = WINDOWS[name]
    path = f"resource.windows.{name}"
    assert wrong(with_window(name, duration=Duration(seconds=allowed.range.max_s))) == set()
    assert wrong(with_window(name, duration=Duration(seconds=allowed.range.max_s + 1))) == {
        (f"{path}.duration", "OUT_OF_RANGE")
    }
    assert wrong(with_window(name, disabled=True)) == (
        set() if allowed.may_be_disabled else {(f"{path}.disabled", "NOT_ALLOWED")}
    )
    assert wrong(with_window(name, unlimited=True)) == (
        set() if allowed.may_be_unlimited else {(f"{path}.unlimited", "NOT_ALLOWED")}
    )
    assert wrong(with_window(name)) == {(path, "REQUIRED")}
    assert wrong(with_window(name, disabled=False)) == {(path, "REQUIRED")}


def test_numbers_without_a_limit_are_not_negative() -> None:
    assert wrong(Tracker(max_conversions_per_engagement=-1)) == {
        ("resource.max_conversions_per_engagement", "OUT_OF_RANGE")
    }
    assert wrong(App(settings=AppSettings(records_per_second=-1))) == {
        ("resource.settings.records_per_second", "OUT_OF_RANGE")
    }
    assert wrong(Tracker(max_conversions_per_engagement=0)) == set()


def test_every_range_is_of_a_field() -> None:
    fields = {field.name for kind in (*_KINDS, Windows) for field in kind.DESCRIPTOR.fields}
    assert {*DURATIONS, *CHOICES_DAYS, *WINDOWS, *NOT_NEGATIVE} <= fields
