"""Fields of settings as people write them."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reengage.tracker.v1.app_pb2 import App
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.tracker_pb2 import Tracker
from services.cli.field_reader import Fields
from services.cli.fields import Difference, differences, leaves, plain, text_of


def assigned(message: Tracker, path: str, text: str) -> list[str]:
    """Assigns a value as the command line does; returns what is wrong with it."""
    fields = Fields(message, {})
    fields.assign(path, text)
    return [problem.message for problem in fields.problems]


@pytest.mark.parametrize(
    ("path", "text", "written"),
    [
        ("post_view_window", "0", "0s"),
        ("post_view_window", "90s", "90s"),
        ("post_view_window", "120s", "2m"),
        ("post_view_window", "24h", "1d"),
        ("windows.click_ip", "30d", "30d"),
        ("windows.click_ip", "disabled", "disabled"),
        ("windows.event_association", "unlimited", "unlimited"),
        ("type", "reengagement", "REENGAGEMENT"),
        ("type", "TYPE_REENGAGEMENT", "REENGAGEMENT"),
        ("default_tracker", "Yes", "true"),
        ("share_with_publisher", "off", "false"),
        ("max_conversions_per_engagement", "-1", "-1"),
        ("events", "Purchase, Log in ,", "Purchase, Log in"),
        ("events", '["a,b", c]', "a,b, c"),
        ("custom_parameters", "b=2, a=1=1", "a=1=1, b=2"),
        ("custom_parameters", '{a: "x, y"}', "a=x, y"),
        ("traffic_rules.start_time", "2026-03-01", "2026-03-01T00:00:00Z"),
        ("traffic_rules.start_time", "2026-03-01T00:00:00+02:00", "2026-02-28T22:00:00Z"),
        ("name", "17", "17"),
        ("name", " 'x' # y", " 'x' # y"),
        ("click_validation_key", "0123456789abcdef", "(secret)"),
    ],
)
def test_what_is_written_is_read_and_shown(path: str, text: str, written: str) -> None:
    tracker = Tracker()
    assert assigned(tracker, path, text) == []
    assert [(at, text_of(field, value)) for at, field, value in leaves(tracker)] == [(path, written)]


@pytest.mark.parametrize(
    ("path", "text", "problem"),
    [
        ("post_view_window", "1w", "should be a duration, as 90s, 30m, 6h or 30d"),
        ("post_view_window", "-1d", "should be a duration"),
        ("post_view_window", "disabled", "should be a duration"),
        ("windows.click_ip", "1 day", "should be a duration, as 90s, 30m, 6h or 30d, or disabled, or unlimited"),
        ("windows", "1d", "there is no '1d' here; there are click_device"),
        ("type", "0", "should be one of ACQUISITION, REENGAGEMENT"),
        ("type", "UNSPECIFIED", "should be one of ACQUISITION, REENGAGEMENT"),
        ("max_conversions_per_engagement", str(2**31), "should be a whole number"),
        ("max_conversions_per_engagement", "1.0", "should be a whole number"),
        ("traffic_rules.start_time", "0001-01-01T00:00:00+05:00", "should be a time"),
        ("custom_parameters", "{a: [1]}", "should be a text"),
        ("events", "[[a]]", "should be a text"),
        ("events", "[a", "expected ',' or ']'"),
        ("name", "\udc80", "should be a text in UTF-8"),
        ("custom_parameters.sku", "home", "custom_parameters has no fields; give it as a whole"),
    ],
)
def test_what_does_not_fit_says_what_would(path: str, text: str, problem: str) -> None:
    (found,) = assigned(Tracker(), path, text)
    assert found.removeprefix(f"{path}: ").startswith(problem)


def test_lists_of_messages_are_not_written_here() -> None:
    fields = Fields(Network(), {})
    fields.assign("postback_needs", "[x]")
    assert [problem.message for problem in fields.problems] == ["postback_needs: cannot be written here"]


@pytest.mark.parametrize(
    ("path", "text", "problem"),
    [
        ("install_uri", "x", "Did you mean install_url?"),
        ("windows.click_devise", "1d", "Did you mean click_device"),
        ("type", "REENGAGMENT", "Did you mean REENGAGEMENT?"),
    ],
)
def test_a_mistake_is_told_the_nearest_name(path: str, text: str, problem: str) -> None:
    (found,) = assigned(Tracker(), path, text)
    assert problem in found


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9)),
    st.dictionaries(st.text("ab=,"), st.text("xy")),
)
def test_lists_and_objects_stay_what_they_were(events: list[str], parameters: Mapping[str, str]) -> None:
    tracker = Tracker(events=events, custom_parameters=parameters)
    held = {path: plain(field, value) for path, field, value in leaves(tracker)}
    assert held == ({"events": events} if events else {}) | ({"custom_parameters": parameters} if parameters else {})


def test_differences_name_each_inner_field_by_itself() -> None:
    before, after = App(name="a", currency_code="USD"), App(name="b", sandbox=True)
    before.settings.windows.click_ip.disabled = True
    before.settings.records_per_second = 7
    after.settings.records_per_second = 8
    assert differences(before, after, ignored=frozenset({"currency_code"})) == [
        Difference("name", "a", "b"),
        Difference("sandbox", "", "true"),
        Difference("settings.records_per_second", "7", "8"),
        Difference("settings.windows.click_ip", "disabled", ""),
    ]
