"""`reengage trackers`, `apps` and `events`: what they show, change and refuse."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from services.cli.times import period
from tests.cli.conftest import Reengage

_numbers = itertools.count(1)
URL = "install_url=https://apps.example/demo"


class Demo:
    """An app with a campaign, a segment and three trackers that no other test has."""

    def __init__(self, app_id: str, reengage: Reengage) -> None:
        self.app_id, self.reengage = app_id, reengage
        self.done("apps", "create", f"app_id={app_id}", f"name={app_id}", "platform=ios", "url_schemes=demo,shop")
        self.done("call", "tracker/CreateNetwork", '{"network": {"network_id": "n-ios", "name": "N", "platform": 1}}')
        self.done(
            "trackers", "create", f"tracker_id={app_id}-acq", f"name={app_id}-acq", "network_id=n-ios", URL,
            "--new-segment", "A", "--new-campaign", "Spring", "--app", app_id,
        )  # fmt: skip
        self.segment_id = self.tracker("acq")["segment_id"]
        for name, events in (("re", "Purchase,Login"), ("re2", "Purchase")):
            self.done(
                "trackers", "create", f"tracker_id={app_id}-{name}", f"segment_id={self.segment_id}",
                "network_id=n-ios", "type=REENGAGEMENT", URL, f"events={events}",
            )  # fmt: skip

    def done(self, *arguments: str) -> str:
        """Returns what a command says that must do what it is told."""
        answer = self.reengage(*arguments)
        assert answer.code == 0, answer.err
        return answer.out

    def json(self, *arguments: str) -> Any:
        """Returns the same, as JSON."""
        return json.loads(self.done(*arguments, "--json"))

    def tracker(self, name: str) -> Any:
        return self.json("trackers", "get", f"{self.app_id}-{name}")

    def listed(self, *options: str) -> list[str]:
        """Returns the trackers listed, without the app's name."""
        found = self.json("trackers", "list", self.app_id, *options)["trackers"]
        return [one["tracker_id"].removeprefix(f"{self.app_id}-") for one in found]


@pytest.fixture
def demo(reengage: Reengage) -> Demo:
    return Demo(f"demo{next(_numbers)}", reengage)


def test_a_tracker_is_created_with_its_campaign_and_segment(demo: Demo) -> None:
    made = demo.tracker("acq")
    campaigns = json.loads(demo.done("call", "tracker/ListCampaigns", json.dumps({"app_id": demo.app_id})))["campaigns"]
    assert [(one["campaign_id"], one["name"]) for one in campaigns] == [(made["campaign_id"], "Spring")]


def test_trackers_are_listed_as_a_table_and_as_json(demo: Demo) -> None:
    table = demo.done("trackers", "list", demo.app_id).splitlines()
    assert table[0].strip() == f"Trackers of {demo.app_id}"
    assert table[1].split()[:3] == ["tracker", "name", "type"]
    (row,) = (line for line in table if line.startswith(f"{demo.app_id}-re "))
    assert row.split()[1:4] == [f"{demo.app_id}-re", "REENGAGEMENT", "n-ios"]
    assert "Purchase," in row
    assert demo.listed() == ["acq", "re", "re2"]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--type", "reengagement"), ["re", "re2"]),
        (("--event", "Login"), ["re"]),
        (("--network", "n-ios", "--type", "ACQUISITION"), ["acq"]),
        (("--limit", "2"), ["acq", "re"]),
    ],
    ids=["type", "event", "network", "limit"],
)
def test_trackers_are_listed_by(demo: Demo, options: tuple[str, ...], found: list[str]) -> None:
    assert demo.listed(*options) == found


def test_a_list_that_is_cut_says_so(demo: Demo) -> None:
    assert demo.reengage("trackers", "list", demo.app_id, "--limit", "2").err.startswith("There are more than 2")
    assert not demo.reengage("trackers", "list", demo.app_id, "--limit", "3").err


def test_archived_trackers_are_listed_on_request(demo: Demo) -> None:
    demo.done("call", "tracker/ArchiveTracker", json.dumps({"tracker_id": f"{demo.app_id}-re"}))
    assert demo.listed() == ["acq", "re2"]
    assert demo.listed("--archived") == ["acq", "re", "re2"]


def test_a_tracker_is_shown_with_every_field_that_is_set(demo: Demo) -> None:
    demo.done("trackers", "edit", f"{demo.app_id}-re", "windows.click_device=2h", "custom_parameters=sku=home, size=m")
    shown = demo.done("trackers", "get", f"{demo.app_id}-re")
    rows = dict(line.split(maxsplit=1) for line in itertools.takewhile(str.strip, shown.splitlines()[2:]))
    assert {name: rows[name].strip() for name in ("type", "events", "windows.click_device", "custom_parameters")} == {
        "type": "REENGAGEMENT",
        "events": "Purchase, Login",
        "windows.click_device": "2h",
        "custom_parameters": "size=m, sku=home",
    }


def test_editing_changes_the_fields_that_are_named(demo: Demo) -> None:
    tracker_id = f"{demo.app_id}-re"
    demo.done(
        "trackers", "edit", tracker_id,
        "name=Come back=now", "events=[Purchase]", "windows.click_device=2h", "windows.click_modeled=disabled",
        "windows.event_association=unlimited", "max_conversions_per_engagement=3", "share_with_publisher=false",
        "destination_type=LANDING_PAGE", "traffic_rules.start_time=2026-03-01T00:00:00+01:00",
        "traffic_rules.allowed_countries=DE,FR",
    )  # fmt: skip
    made = demo.tracker("re")
    assert made["name"] == "Come back=now"
    assert made["events"] == ["Purchase"]
    assert made["windows"] == {
        "click_device": {"duration": "7200s"},
        "click_modeled": {"disabled": True},
        "event_association": {"unlimited": True},
    }
    assert made["traffic_rules"] == {"start_time": "2026-02-28T23:00:00Z", "allowed_countries": ["DE", "FR"]}
    assert (made["max_conversions_per_engagement"], made["share_with_publisher"]) == (3, False)
    assert made["destination_type"] == "DESTINATION_TYPE_LANDING_PAGE"
    assert made["install_url"] == "https://apps.example/demo"
    cleared = ("windows.click_device=", "traffic_rules=", "max_conversions_per_engagement=")
    demo.done("trackers", "edit", tracker_id, *cleared)
    made = demo.tracker("re")
    assert "click_device" not in made["windows"]
    assert made["windows"]["click_modeled"] == {"disabled": True}
    assert not {"traffic_rules", "max_conversions_per_engagement"} & set(made)


def test_everything_that_cannot_be_read_is_named_at_once(demo: Demo) -> None:
    answer = demo.reengage(
        "trackers", "edit", f"{demo.app_id}-re",
        "colour=red", "windows.click=1d", "windows.click_ip=2 days", "name.first=x", "type=RETURN", "revision=7",
        "default_tracker=maybe", "max_conversions_per_engagement=1.5", "traffic_rules.start_time=today",
        "tracker_id=other", "custom_parameters={a", "events=[{}]",
    )  # fmt: skip
    assert answer.code == 2
    said = dict(line.split(": ", 1) for line in answer.err.splitlines())
    expected = {
        "colour": "there is no 'colour' here; there are segment_id, network_id, name,",
        "windows.click": "there is no 'click' here; there are click_device,",
        "windows.click_ip": "should be a duration, as 90s, 30m, 6h or 30d, or disabled, or unlimited",
        "name.first": "name has no fields",
        "type": "should be one of ACQUISITION, REENGAGEMENT",
        "revision": "revision is set by the service",
        "default_tracker": "should be true or false",
        "max_conversions_per_engagement": "should be a whole number",
        "traffic_rules.start_time": "should be a time, as 2026-03-01T00:00:00Z",
        "tracker_id": "tracker_id says which one it is, and never changes",
        "custom_parameters": "expected ',' or '}'",
        "events": "should be a text",
    }
    assert set(said) == set(expected)
    assert all(said[path].startswith(text) for path, text in expected.items()), said


def test_everything_that_tracker_refuses_is_named_at_once(demo: Demo) -> None:
    answer = demo.reengage(
        "trackers", "edit", f"{demo.app_id}-re", "events=", "install_url=ftp://x", "name=" + "x" * 129
    )
    assert answer.code == 1
    assert [line.partition(":")[0].strip() for line in answer.err.splitlines()[1:]] == [
        "tracker.name", "tracker.events", "tracker.install_url",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("trackers", "get", "nobody"), 1, "There is no tracker nobody."),
        (("trackers", "get", "APP-ree"), 1, ". Did you mean impossible-re"),
        (("apps", "get", "nobody"), 1, "There is no app nobody."),
        (("networks", "get", "taboola-androit"), 1, ". Did you mean taboola-android"),
        (("events", "get", "APP", "Nothing"), 1, "There is no event definition APP/Nothing."),
        (("trackers", "list", "nobody"), 1, "APP_NOT_FOUND"),
        (("trackers", "list", "APP", "--type", "RETURN"), 2, "--type should be one of ACQUISITION, REENGAGEMENT"),
        (("trackers", "edit", "APP-re", "name"), 2, "and each FIELD=VALUE"),
        (("trackers", "edit", "APP-re", "name=x", "name=y"), 2, "name is given twice"),
        (("trackers", "edit", "name=x"), 2, "Give the ids of trackers, or --app"),
        (("trackers", "edit", "APP-re", "name=x", "--event", "Login"), 2, "Give the ids of trackers, or --app"),
        (("apps", "edit", "APP", "name"), 2, "'name' should be FIELD=VALUE"),
        (("apps", "edit", "APP", "platform=ANDROID"), 1, "platform cannot be changed"),
        (("trackers", "list", "APP", "--target", "127.0.0.1:1"), 1, "No tracker answers at 127.0.0.1:1"),
    ],
)
def test_what_is_not_possible_is_said(reengage: Reengage, arguments: tuple[str, ...], code: int, said: str) -> None:
    app_id = "impossible"
    if reengage("apps", "get", app_id).code:
        Demo(app_id, reengage)
    answer = reengage(*(argument.replace("APP", app_id) for argument in arguments))
    assert (answer.code, answer.out) == (code, "")
    assert said.replace("APP/", f"{app_id}/") in answer.err


def test_apps_are_listed_shown_and_edited(demo: Demo) -> None:
    assert demo.app_id in demo.done("apps", "list")
    assert demo.app_id in [app["app_id"] for app in demo.json("apps", "list")["apps"]]
    shown = demo.done("apps", "edit", demo.app_id, "currency_code=EUR", "settings.windows.click_ip=1d")
    assert shown.startswith(f"Changed app {demo.app_id}")
    app = demo.json("apps", "get", demo.app_id)
    assert (app["currency_code"], app["url_schemes"]) == ("EUR", ["demo", "shop"])
    assert app["settings"] == {"windows": {"click_ip": {"duration": "86400s"}}}
    refused = demo.reengage("apps", "create", "name=x", "currency_code=euro")
    assert refused.code == 1
    assert all(f"app.{name}: must" in refused.err for name in ("platform", "currency_code"))


def test_a_day_that_is_decided_again_begins_in_the_time_zone_of_the_app(
    demo: Demo, tracker_target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.done("apps", "edit", demo.app_id, "time_zone=Europe/Berlin")
    monkeypatch.setenv("REENGAGE_TRACKER_TARGET", tracker_target)
    monkeypatch.setenv("REENGAGE_API_KEY", "admin")
    winter, summer = period(demo.app_id, "2026-03-01", "2026-07-01")
    assert (winter.ToJsonString(), summer.ToJsonString()) == ("2026-02-28T23:00:00Z", "2026-06-30T22:00:00Z")
    instant, _ = period(demo.app_id, "2026-03-01T00:00:00Z", "")
    assert instant.ToJsonString() == "2026-03-01T00:00:00Z"


def test_events_are_set_whether_they_were_there_or_not(demo: Demo) -> None:
    demo.done("events", "set", demo.app_id, "Purchase", "min_time_to_reengagement=12h")
    assert demo.json("events", "get", demo.app_id, "Purchase")["min_time_to_reengagement"] == "43200s"
    demo.done("events", "set", demo.app_id, "Purchase", "min_time_to_reengagement=0")
    demo.done("events", "set", demo.app_id, "Purchase", "revenue=yes")
    event = demo.json("events", "get", demo.app_id, "Purchase")
    assert (event["revenue"], event["min_time_to_reengagement"]) == (True, "0s")
    request = json.dumps({"app_id": demo.app_id, "event_name": "Login"})
    demo.done("events", "set", demo.app_id, "Login", "display_name=Log in")
    demo.done("call", "tracker/ArchiveTracker", json.dumps({"tracker_id": f"{demo.app_id}-re"}))
    demo.done("call", "tracker/ArchiveEventDefinition", request)
    assert [one["event_name"] for one in demo.json("events", "list", demo.app_id)["event_definitions"]] == ["Purchase"]
    demo.done("events", "set", demo.app_id, "Login", "reengagement_period=30d")
    assert demo.json("events", "get", demo.app_id, "Login")["status"] == "STATUS_LIVE"
    assert "Login" in demo.done("events", "list", demo.app_id)


def test_click_keys_are_not_shown_in_tables(demo: Demo) -> None:
    shown = demo.done("trackers", "edit", f"{demo.app_id}-acq", "click_validation_key=0123456789abcdef")
    assert "has_click_validation_key" in shown
    assert "0123456789abcdef" not in shown


def test_a_wrong_key_is_told(reengage: Reengage) -> None:
    answer = reengage("apps", "list", key="nobody's")
    assert answer.code == 1
    assert "API_KEY_INVALID" in answer.err


def test_many_trackers_are_edited_at_once_after_asking(demo: Demo) -> None:
    ids = [f"{demo.app_id}-{name}" for name in ("acq", "re", "re2")]
    edit = ("trackers", "edit", *ids, "windows.click_device=2h", "max_conversions_per_engagement=1")
    refused = demo.reengage(*edit, input="n\n")
    assert (refused.code, refused.err) == (1, "Change 3? [y/N]:Nothing was changed.\n")
    assert [line.split() for line in refused.out.splitlines()[2:4]] == [
        ["update", "tracker", ids[0], "max_conversions_per_engagement", "1"],
        ["windows.click_device", "2h"],
    ]
    assert "windows" not in demo.tracker("re")
    assert demo.reengage(*edit, "--plan-only").code == 0
    assert "windows" not in demo.tracker("re")
    assert demo.done(*edit, "--yes").endswith("Changed.\n")
    assert demo.tracker("re")["windows"] == demo.tracker("re2")["windows"] == {"click_device": {"duration": "7200s"}}
    assert demo.done(*edit) == "Nothing to do.\n"


def test_trackers_that_match_are_edited(demo: Demo) -> None:
    edit = ("trackers", "edit", "--app", demo.app_id, "--event", "Login", "deep_link=demo://back", "--yes", "--json")
    changed = json.loads(demo.done(*edit))["changes"]
    assert [one["tracker_id"] for one in changed] == [f"{demo.app_id}-re"]
    assert demo.tracker("re")["deep_link"] == "demo://back"


def test_a_bulk_edit_that_does_not_fit_all_names_every_tracker_and_changes_none(demo: Demo) -> None:
    answer = demo.reengage("trackers", "edit", "--app", demo.app_id, "events=Purchase,Level", "install_url=", "--yes")
    assert answer.code == 1
    assert [line.partition(":")[0].strip() for line in answer.err.splitlines()[1:]] == [
        f"trackers[{demo.app_id}-{name}].{field}"
        for name, fields in (
            ("acq", ("events", "install_url")), ("re", ("install_url",)), ("re2", ("install_url",)),
        )
        for field in fields
    ]  # fmt: skip
    assert demo.tracker("re2")["events"] == ["Purchase"]
    unknown = demo.reengage("trackers", "edit", "nobody", "nothing", "name=x", "--yes")
    assert unknown.code == 1
    assert "nobody" in unknown.err


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_an_exported_file_is_edited_and_imported(demo: Demo, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"trackers.{suffix}"
    demo.done("trackers", "edit", f"{demo.app_id}-re", "windows.click_device=2h")
    assert demo.done("trackers", "export", demo.app_id, "-o", str(file)) == ""
    text = file.read_text()
    assert demo.done("trackers", "export", demo.app_id, "--format", suffix) == text
    assert demo.done("trackers", "import", demo.app_id, str(file)) == "Nothing to do.\n"
    file.write_text(text.replace("https://apps.example/demo", "https://apps.example/new"))
    refused = demo.reengage("trackers", "import", demo.app_id, str(file), input="n\n")
    assert (refused.code, refused.err) == (1, "Change 3? [y/N]:Nothing was changed.\n")
    assert "https://apps.example/new" in refused.out
    assert demo.done("trackers", "import", demo.app_id, str(file), "--yes").endswith("Imported.\n")
    made = demo.tracker("re")
    assert made["install_url"] == "https://apps.example/new"
    assert made["windows"] == {"click_device": {"duration": "7200s"}}
    assert demo.done("trackers", "import", demo.app_id, str(file)) == "Nothing to do.\n"


def test_some_trackers_are_exported(demo: Demo) -> None:
    lines = demo.done("trackers", "export", demo.app_id, "--format", "ndjson", "--event", "Login").splitlines()
    assert [json.loads(line)["tracker_id"] for line in lines] == [f"{demo.app_id}-re"]


def test_a_file_that_cannot_be_imported_is_told_line_by_line(demo: Demo, tmp_path: Path) -> None:
    file = tmp_path / "trackers.csv"
    file.write_text(f"tracker_id,install_url,colour\n{demo.app_id}-re,ftp://x,red\n")
    answer = demo.reengage("trackers", "import", demo.app_id, str(file), "--yes")
    assert answer.code == 1
    assert "line 1: colour" in answer.err
    missing = demo.reengage("trackers", "import", demo.app_id, str(tmp_path / "none.csv"))
    assert (missing.code, missing.err) == (2, f"{tmp_path / 'none.csv'}: No such file or directory\n")
    assert demo.reengage("trackers", "export", demo.app_id, "--format", "xlsx").code == 2
    assert demo.reengage("trackers", "export", demo.app_id, "-o", str(tmp_path / "no" / "file.csv")).code == 1


def test_what_holds_for_a_tracker_is_shown_with_the_layer_that_says_so(demo: Demo) -> None:
    demo.done("trackers", "edit", f"{demo.app_id}-re", "windows.click_device=2h")
    demo.done("apps", "edit", demo.app_id, "settings.windows.click_ip=1d")
    demo.done("apps", "edit", demo.app_id, "settings.late_window=0", "settings.inactivity_window=90d")
    demo.done("network-settings", "edit", demo.app_id, "n-ios", "late_pings=30m")
    demo.done("events", "set", demo.app_id, "Login", "min_time_to_reengagement=0")
    shown = demo.done("trackers", "get", f"{demo.app_id}-re", "--resolved")
    rows = [line.split() for line in shown.splitlines()]
    expected = [
        ["windows.click_device", "2h", "tracker", "B3"],
        ["windows.click_ip", "1d", "app", "B3"],
        ["windows.click_modeled", "7d", "built", "in", "B3"],
        ["late_window", "0s", "app", "D12"],
        ["inactivity_window", "90d", "app", "D13"],
        ["late_pings", "30m", "network", "settings", "D12"],
        ["events[Login].min_time_to_reengagement", "0s", "event", "D3"],
        ["events[Purchase].min_time_to_reengagement", "1d", "built", "in", "D3"],
    ]
    assert [row for row in expected if row not in rows] == []
    assert demo.json("trackers", "get", f"{demo.app_id}-re", "--resolved")["settings"]


def test_how_late_a_record_may_be_goes_back_to_what_is_built_in(demo: Demo) -> None:
    """D12, D13."""
    demo.done("apps", "edit", demo.app_id, "settings.late_window=7d", "settings.inactivity_window=1d")
    demo.done("network-settings", "edit", demo.app_id, "n-ios", "late_pings=12h")
    demo.done("apps", "edit", demo.app_id, "settings.late_window=", "settings.inactivity_window=")
    demo.done("network-settings", "edit", demo.app_id, "n-ios", "late_pings=")
    rows = [line.split() for line in demo.done("trackers", "get", f"{demo.app_id}-re", "--resolved").splitlines()]
    assert ["late_window", "1d", "built", "in", "D12"] in rows
    assert ["inactivity_window", "0s", "built", "in", "D13"] in rows
    assert ["late_pings", "0s", "built", "in", "D12"] in rows


@pytest.mark.parametrize(
    ("command", "field", "allowed"),
    [
        ("apps", "settings.late_window=8d", "must be 0 to 7 days, in whole seconds"),
        ("apps", "settings.inactivity_window=91d", "must be 0 to 90 days, in whole seconds"),
        ("network-settings", "late_pings=13h", "must be 0 to 12 hours, in whole seconds"),
    ],
    ids=["late window", "inactivity window", "late pings"],
)
def test_what_is_too_long_is_refused_with_what_is_allowed(demo: Demo, command: str, field: str, allowed: str) -> None:
    ids = (demo.app_id, "n-ios") if command == "network-settings" else (demo.app_id,)
    answer = demo.reengage(command, "edit", *ids, field)
    assert answer.code == 1
    assert field.partition("=")[0] in answer.err
    assert allowed in " ".join(answer.err.split())


def test_postback_drafts_come_with_a_new_tracker(demo: Demo) -> None:
    answer = json.loads(
        demo.done(
            "trackers", "create", f"segment_id={demo.segment_id}", "network_id=n-ios", "type=REENGAGEMENT", URL,
            "events=Purchase", "--draft-postbacks",
        )
    )  # fmt: skip
    assert [draft["trigger"] for draft in answer["postback_drafts"]] == ["Purchase"]
