"""`reengage apply`: plans, asks, and brings an app to the state of its file."""

import json
import re
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer
import yaml
from google.protobuf import json_format
from google.protobuf.field_mask_pb2 import FieldMask

from deploy.local.sample import settings as sample
from reengage.tracker.v1 import tracker_pb2
from services.cli.commands import apply
from tests.cli.conftest import Reengage

SAMPLE = Path(sample.__file__).with_name("shop-ios.yaml")
FILE = """\
app:
  app_id: APP
  name: APP
  platform: IOS
  url_schemes: [demo]
  settings:
    windows: {click_ip: 1d}
network_settings:
  x-ios: {granular_data_policy: REDACT}
san_accounts:
  APP-main: {network_id: x-ios, name: Main}
events:
  Purchase: {min_time_to_reengagement: 12h, revenue: true}
  Login:
campaigns:
  APP-spring:
    name: Spring
    segments:
      APP-a:
        name: A
        trackers:
          APP-acq: {network_id: link-ios, install_url: "https://apps.example/demo"}
          APP-re:
            network_id: link-ios
            type: REENGAGEMENT
            install_url: https://apps.example/demo
            deep_link: demo://product/{sku}
            custom_parameters: {sku: home}
            events: [Purchase, Login]
            windows: {click_device: 2h, click_modeled: disabled}
            traffic_rules: {start_time: 2026-03-01T00:00:00Z, allowed_countries: [DE, FR]}
          APP-x: {network_id: x-ios, type: REENGAGEMENT, events: [Purchase], default_tracker: true}
"""


class AppFile:
    """A settings file of an app that no other test has, and the commands about it."""

    def __init__(self, path: Path, app_id: str, reengage: Reengage) -> None:
        self.path, self.app_id, self.reengage = path, app_id, reengage
        self.text = FILE.replace("APP", app_id)
        path.write_text(self.text)

    def edit(self, old: str, new: str) -> None:
        """Replaces a piece of the file."""
        old, new = old.replace("APP", self.app_id), new.replace("APP", self.app_id)
        assert self.text.count(old) == 1
        self.text = self.text.replace(old, new)
        self.path.write_text(self.text)

    def line(self, piece: str) -> int:
        """Returns the line on which it stands."""
        before, found, _ = self.text.partition(piece.replace("APP", self.app_id))
        assert found
        return before.count("\n") + 1

    def applied(self) -> list[tuple[str, str, dict[str, tuple[str, str]]]]:
        """Returns what applying the file did: what was done to what, and the fields with what they were and are."""
        answer = self.reengage("apply", str(self.path), "--yes", "--json")
        assert (answer.code, answer.err) in [(0, "Applied.\n"), (0, "")]
        return [
            (change["action"], change["what"], {f["path"]: (f["before"], f["after"]) for f in change["fields"]})
            for change in json.loads(answer.out)["changes"]
        ]

    def problems(self) -> list[str]:
        """Returns what is said of a file that does not fit, which must change nothing."""
        answer = self.reengage("apply", str(self.path), "--yes")
        assert (answer.code, answer.out) == (2, "")
        lines = answer.err.splitlines()
        assert all(line.startswith(f"{self.path}:") for line in lines)
        return [line.removeprefix(f"{self.path}:") for line in lines]

    def call(self, method: str, **request: Any) -> Any:
        """Calls any method of tracker."""
        answer = self.reengage("call", f"tracker/{method}", json.dumps(request))
        assert answer.code == 0, answer.err
        return json.loads(answer.out)

    def tracker(self, tracker_id: str) -> Any:
        """Returns a tracker as it is."""
        return self.call("GetTracker", tracker_id=tracker_id.replace("APP", self.app_id))["tracker"]


@pytest.fixture
def settings(tmp_path: Path, request: pytest.FixtureRequest, reengage: Reengage) -> AppFile:
    app_id = request.node.name.removeprefix("test_").replace("_", "-").replace("[", ".").rstrip("]")[:40]
    made = AppFile(tmp_path / "app.yaml", app_id, reengage)
    made.call("CreateNetwork", network={"network_id": "link-ios", "name": "Links", "platform": "PLATFORM_IOS"})
    return made


@pytest.fixture
def applied(settings: AppFile) -> AppFile:
    """Returns settings whose file is applied."""
    settings.applied()
    return settings


def test_everything_is_created_and_then_there_is_nothing_to_do(settings: AppFile) -> None:
    app_id = settings.app_id
    first = settings.applied()
    assert [(action, what) for action, what, _ in first] == [
        ("create", f"app {app_id}"),
        ("update", "network settings x-ios"),
        ("create", f"san account {app_id}-main"),
        ("create", "event definition Purchase"),
        ("create", "event definition Login"),
        ("create", f"campaign {app_id}-spring"),
        ("create", f"segment {app_id}-a"),
        ("create", f"tracker {app_id}-acq"),
        ("create", f"tracker {app_id}-re"),
        ("create", f"tracker {app_id}-x"),
    ]
    made = settings.tracker("APP-re")
    assert made["events"] == ["Purchase", "Login"]
    assert made["windows"] == {"click_device": {"duration": "7200s"}, "click_modeled": {"disabled": True}}
    assert made["traffic_rules"] == {"start_time": "2026-03-01T00:00:00Z", "allowed_countries": ["DE", "FR"]}
    again = settings.reengage("apply", str(settings.path))
    assert (again.code, again.out) == (0, f"{app_id} is as the file says: nothing to do.\n")


def test_fields_change_to_what_the_file_says_and_left_out_ones_to_their_defaults(applied: AppFile) -> None:
    applied.edit("windows: {click_device: 2h, click_modeled: disabled}", "windows: {click_device: 30m}")
    applied.edit("            custom_parameters: {sku: home}\n", "")
    applied.edit("min_time_to_reengagement: 12h, ", "")
    applied.edit("  x-ios: {granular_data_policy: REDACT}\n", "")
    assert applied.applied() == [
        ("update", "event definition Purchase", {"min_time_to_reengagement": ("12h", "")}),
        (
            "update",
            f"tracker {applied.app_id}-re",
            {
                "windows.click_device": ("2h", "30m"),
                "windows.click_modeled": ("disabled", ""),
                "custom_parameters": ("sku=home", ""),
            },
        ),
        ("update", "network settings x-ios", {"granular_data_policy": ("REDACT", "")}),
    ]
    assert applied.tracker("APP-re")["windows"] == {"click_device": {"duration": "1800s"}}
    assert "custom_parameters" not in applied.tracker("APP-re")
    assert applied.applied() == []


def test_how_late_a_record_may_be_is_said_by_a_file_and_exported(applied: AppFile) -> None:
    """D12, D13: none at all is something else than nothing said."""
    applied.edit(
        "    windows: {click_ip: 1d}\n", "    {windows: {click_ip: 1d}, late_window: 0, inactivity_window: 90d}\n"
    )
    applied.edit(
        "  x-ios: {granular_data_policy: REDACT}\n", "  x-ios: {late_pings: 12h}\n  link-ios: {late_pings: 0s}\n"
    )
    app_id = applied.app_id
    changed = {what: fields for _, what, fields in applied.applied()}
    assert changed == {
        f"app {app_id}": {"settings.late_window": ("", "0s"), "settings.inactivity_window": ("", "90d")},
        "network settings x-ios": {"granular_data_policy": ("REDACT", ""), "late_pings": ("", "12h")},
        "network settings link-ios": {"late_pings": ("", "0s")},
    }
    exported = yaml.safe_load(applied.reengage("apps", "export", app_id).out)
    assert exported["app"]["settings"] == {
        "windows": {"click_ip": "1d"},
        "late_window": "0s",
        "inactivity_window": "90d",
    }
    assert exported["network_settings"] == {"link-ios": {"late_pings": "0s"}, "x-ios": {"late_pings": "12h"}}
    assert applied.applied() == []
    applied.edit(", late_window: 0, inactivity_window: 90d}", ", late_window: 8d, inactivity_window: 91d}")
    applied.edit("late_pings: 12h", "late_pings: 13h")
    app_line, network_line = applied.line("late_window"), applied.line("13h")
    assert applied.problems() == [
        f"{app_line}: app {app_id}: settings.inactivity_window: must be 0 to 90 days, in whole seconds",
        f"{app_line}: app {app_id}: settings.late_window: must be 0 to 7 days, in whole seconds",
        f"{network_line}: network settings x-ios: late_pings: must be 0 to 12 hours, in whole seconds",
    ]


def test_what_a_section_does_not_name_is_archived(applied: AppFile) -> None:
    app_id = applied.app_id
    applied.text = applied.text[: applied.text.index("campaigns:")] + "campaigns:\n"
    applied.edit("  Login:\n", "")
    applied.edit("  APP-main: {network_id: x-ios, name: Main}\n", "")
    assert {(action, what) for action, what, _ in applied.applied()} == {
        ("archive", what.replace("APP", app_id))
        for what in (
            "tracker APP-acq", "tracker APP-re", "tracker APP-x", "segment APP-a", "campaign APP-spring",
            "event definition Login", "san account APP-main",
        )
    }  # fmt: skip
    assert applied.tracker("APP-re")["status"] == "STATUS_ARCHIVED"
    assert applied.applied() == []


def test_a_section_that_is_left_out_stays_as_it_is(applied: AppFile) -> None:
    applied.path.write_text(applied.text[: applied.text.index("network_settings:")])
    assert applied.applied() == []


def test_what_goes_gives_its_name_to_what_comes(applied: AppFile) -> None:
    applied.edit("APP-acq: {network_id", "APP-acq2: {name: APP-acq, network_id")
    assert [(action, what) for action, what, _ in applied.applied()] == [
        ("archive", f"tracker {applied.app_id}-acq"),
        ("create", f"tracker {applied.app_id}-acq2"),
    ]


def test_a_name_goes_from_one_to_the_other(applied: AppFile) -> None:
    applied.edit(
        "APP-acq: {network_id",
        "APP-a2: {name: APP-acq, network_id: link-ios, install_url: 'https://a.b'}\n"
        "          APP-acq: {name: Retired, network_id",
    )
    assert [(action, what) for action, what, _ in applied.applied()] == [
        ("update", f"tracker {applied.app_id}-acq"),
        ("create", f"tracker {applied.app_id}-a2"),
    ]


def test_an_editor_of_the_app_may_apply(applied: AppFile) -> None:
    """A key that sees one app is enough, and sees what it needs to."""
    app_id = applied.app_id
    key = applied.call("CreateApiKey", api_key={"name": app_id, "role": "ROLE_EDITOR", "app_id": app_id})["key"]
    agency = {"agency_id": f"{app_id}-agency", "name": app_id}
    applied.call("CreateAgency", agency=agency)
    applied.edit("APP-acq: {network_id", "APP-acq: {agency_id: APP-agency, network_id")
    answer = applied.reengage("apply", str(applied.path), "--yes", key=key)
    assert (answer.code, answer.err) == (0, "")
    assert applied.tracker("APP-acq")["agency_id"] == f"{app_id}-agency"


def test_an_event_is_archived_once_no_tracker_selects_it_and_can_come_back(applied: AppFile) -> None:
    applied.edit("  Login:\n", "")
    applied.edit("events: [Purchase, Login]", "events: [Purchase]")
    assert [(action, what) for action, what, _ in applied.applied()] == [
        ("update", f"tracker {applied.app_id}-re"),
        ("archive", "event definition Login"),
    ]
    applied.edit("network_settings:", "network_settings:")
    applied.edit("campaigns:", "  Login: {reengagement_period: 30d}\ncampaigns:")
    assert applied.applied() == [
        (
            "create",
            "event definition Login",
            {"display_name": ("", "Login"), "reengagement_period": ("", "30d")},
        )
    ]


def test_the_default_tracker_moves(applied: AppFile) -> None:
    x2 = "          APP-0: {network_id: x-ios, type: REENGAGEMENT, events: [Purchase], default_tracker: true}\n"
    applied.edit(", default_tracker: true}", "}")
    applied.edit("          APP-acq:", x2 + "          APP-acq:")
    assert [(action, what) for action, what, _ in applied.applied()] == [
        ("update", f"tracker {applied.app_id}-x"),
        ("create", f"tracker {applied.app_id}-0"),
    ]
    assert applied.tracker("APP-0")["default_tracker"]
    assert applied.applied() == []


def test_secrets_that_the_file_leaves_out_stay(applied: AppFile) -> None:
    app_id, key = applied.app_id, "0123456789abcdef"
    applied.call(
        "UpdateTracker",
        tracker={"tracker_id": f"{app_id}-re", "click_validation_key": key},
        update_mask="clickValidationKey",
    )
    account = {"san_account_id": f"{app_id}-main", "credentials": {"token": "t"}}
    applied.call("UpdateSanAccount", san_account=account, update_mask="credentials")
    assert applied.applied() == []
    applied.edit("deep_link: demo", "click_validation_key: fedcba9876543210\n            deep_link: demo")
    assert applied.applied() == [("update", f"tracker {app_id}-re", {"click_validation_key": ("(secret)", "(secret)")})]
    assert applied.tracker("APP-re")["has_click_validation_key"]


def test_events_that_nobody_created_are_left_alone_until_they_hold_something(applied: AppFile) -> None:
    app_id = applied.app_id
    applied.call("RegisterEvents", app_id=app_id, event_names=["Seen", "Tuned"])
    assert applied.applied() == []
    tuned = {"app_id": app_id, "event_name": "Tuned", "revenue": True}
    applied.call("UpdateEventDefinition", event_definition=tuned, update_mask="revenue")
    assert applied.applied() == [("archive", "event definition Tuned", {})]


def test_it_asks_and_no_changes_nothing(settings: AppFile) -> None:
    refused = settings.reengage("apply", str(settings.path), input="n\n")
    assert refused.code == 1
    assert f"Plan for {settings.app_id}" in refused.out
    assert "9 to create, 1 to update, 0 to archive" in refused.out
    assert "Nothing was changed." in refused.err
    unanswered = settings.reengage("apply", str(settings.path))
    assert unanswered.code == 1
    assert "--yes" in unanswered.err
    assert settings.reengage("apps", "get", settings.app_id).code == 1
    accepted = settings.reengage("apply", str(settings.path), input="y\n")
    assert (accepted.code, accepted.out.splitlines()[-1]) == (0, "Applied.")


def test_plan_only_changes_nothing(settings: AppFile) -> None:
    planned = settings.reengage("apply", str(settings.path), "--plan-only", "--json")
    assert planned.code == 0
    assert len(json.loads(planned.out)["changes"]) == 10
    assert settings.reengage("apps", "get", settings.app_id).code == 1


def test_every_problem_is_named_with_its_line_and_nothing_is_changed(settings: AppFile) -> None:
    settings.edit("windows: {click_device: 2h, click_modeled: disabled}", "windows: {click_device: 2 hours, click: 1d}")
    settings.edit("url_schemes: [demo]", "url_schemes: demo\n  colour: red")
    settings.edit("type: REENGAGEMENT\n", "type: RETURN\n            tracker_id: other\n")
    settings.edit("revenue: true", "revenue: maybe, revision: 7")
    settings.edit("name: Main", "name: Main, credentials: {token: t}")
    app_id = settings.app_id
    found = settings.problems()
    expected = [
        (settings.line("url_schemes"), f"app {app_id}: url_schemes: should be a list"),
        (settings.line("colour"), f"app {app_id}: there is no 'colour' here; there are app_id, name"),
        (settings.line("APP-main"), f"san account {app_id}-main: credentials do not belong in a file"),
        (settings.line("revision"), "event definition Purchase: revenue: should be true or false"),
        (settings.line("revision"), "event definition Purchase: revision is set by the service"),
        (settings.line("type: RETURN"), f"tracker {app_id}-re: type: should be one of ACQUISITION, REENGAGEMENT"),
        (settings.line("tracker_id"), f"tracker {app_id}-re: tracker_id is said by its place in the file"),
        (settings.line("2 hours"), f"tracker {app_id}-re: windows.click_device: should be a duration, as 90s"),
        (settings.line("2 hours"), f"tracker {app_id}-re: windows: there is no 'click' here; there are click_device"),
    ]
    assert len(found) == len(expected)
    for line, (number, text) in zip(found, expected, strict=True):
        assert line.startswith(f"{number}: {text}")


def test_values_are_checked_by_the_rules_of_tracker(settings: AppFile) -> None:
    settings.edit("click_ip: 1d", "click_ip: 31d")
    settings.edit("            events: [Purchase, Login]\n", "")
    settings.edit("allowed_countries: [DE, FR]", "allowed_countries: [DE, France]")
    app_id, line = settings.app_id, settings.line
    window = "settings.windows.click_ip.duration"
    assert settings.problems() == [
        f"{line('click_ip')}: app {app_id}: {window}: must be 1 minute to 30 days, in whole seconds",
        f"{line('APP-re')}: tracker {app_id}-re: events: a reengagement tracker needs at least one event",
        f"{line('France')}: tracker {app_id}-re: traffic_rules.allowed_countries[1]: must be an ISO 3166-1 code, as DE",
    ]


def test_what_does_not_fit_what_is_there_changes_nothing(settings: AppFile) -> None:
    settings.edit("APP-acq: {network_id: link-ios", "APP-acq: {agency_id: nobody, network_id: link-android")
    settings.edit("granular_data_policy: REDACT}", "granular_data_policy: REDACT}\n  nobody: {}")
    settings.edit("APP-x: {network_id: x-ios", "APP-x: {san_account_ids: [APP-main], network_id: x-ios")
    settings.edit("  Login:\n", "  Login: {disabled: true}\n")
    app_id, line = settings.app_id, settings.line
    assert settings.problems() == [
        f"{line('nobody')}: network settings nobody: network_id: there is no network nobody",
        f"{line('APP-acq')}: tracker {app_id}-acq: agency_id: there is no agency nobody",
        f"{line('APP-acq')}: tracker {app_id}-acq: network_id: there is no network link-android",
        f"{line('events: [')}: tracker {app_id}-re: events[1]: 'Login' is disabled",
        f"{line('APP-x')}: tracker {app_id}-x: san_account_ids[0]: must be verified first",
    ]
    assert settings.reengage("apps", "get", app_id).code == 1


def test_what_never_changes_is_refused(applied: AppFile) -> None:
    app_id = applied.app_id
    applied.edit("            type: REENGAGEMENT\n", "")
    applied.edit("            events: [Purchase, Login]\n", "")
    applied.edit("      APP-a:\n        name: A\n", "      APP-c:\n        name: C\n")
    found = "\n".join(applied.problems())
    refused = f"tracker {app_id}-re: type: is REENGAGEMENT and cannot become ACQUISITION"
    assert f"{applied.line('APP-re')}: {refused}" in found
    assert f"tracker {app_id}-x: segment_id: is {app_id}-a and cannot become {app_id}-c; take another id" in found


def test_what_is_archived_stays_archived(applied: AppFile) -> None:
    applied.call("ArchiveTracker", tracker_id=f"{applied.app_id}-acq")
    assert applied.problems() == [
        f"{applied.line('APP-acq')}: tracker {applied.app_id}-acq: is archived and stays so; take another id"
    ]


def test_what_may_be_there_once_only_is_refused_twice(settings: AppFile) -> None:
    settings.edit(
        "          APP-acq:",
        "          APP-y: {network_id: x-ios, type: REENGAGEMENT, events: [Purchase], default_tracker: true}\n"
        "          APP-acq:",
    )
    settings.edit("  APP-spring:\n", "  APP-winter: {name: Spring}\n  APP-spring:\n")
    app_id, line = settings.app_id, settings.line
    assert settings.problems() == [
        f"{line('name: Spring' + chr(10))}: campaign {app_id}-spring: name: 'Spring' is that of {app_id}-winter, too",
        f"{line('APP-x:')}: tracker {app_id}-x: default_tracker: {app_id}-y is the default already",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1: the file is empty"),
        ("app: [", "2: not YAML: "),
        ("- app", "1: should be an object: keys and values"),
        ("events:\n  Purchase:\n", "1: app is missing"),
        ("app:\n  name: Demo\n", "2: app: app_id is missing"),
        ("app: {app_id: a, name: a, platform: IOS}\ntrackers: {}\n", "2: there is no 'trackers' here; there are app,"),
        ("app: {app_id: a, name: a, platform: IOS}\nevents: {[a]: {}}\n", "2: a key should be a text"),
        ("app: {app_id: a, name: a, platform: IOS}\n[app]: {}\n", "2: a key should be a text"),
        ("app: {app_id: a, name: a, platform: IOS}\n---\n", "2: not YAML: "),
        ("app: {app_id: a, name: a, platform: IOS}\nevents:\n  A:\n  A:\n", "4: key 'A' is repeated"),
        (
            "app: {app_id: a, name: a, platform: IOS}\ncampaigns: {b: {name: b, segments: , segments: }}\n",
            "2: key 'segments' is repeated",
        ),
        ("app: {app_id: a, name: a, platform: IOS}\napp: {}\n", "2: key 'app' is repeated"),
        ("app: {app_id: a, name: a, platform: IOS}\nevents: [Purchase]\n", "2: events: should be an object"),
        ("app: {app_id: a, name: a, platform: IOS}\nevents: {Purchase: 24h}\n", "2: Purchase: should be an object"),
    ],
)
def test_a_file_that_is_none_is_told_why(tmp_path: Path, reengage: Reengage, text: str, problem: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    answer = reengage("apply", str(path))
    assert answer.code == 2
    assert answer.err.startswith(f"{path}:{problem}")


def test_a_file_that_is_not_there_is_told(tmp_path: Path, reengage: Reengage) -> None:
    answer = reengage("apply", str(tmp_path / "none.yaml"))
    assert (answer.code, answer.err) == (2, f"{tmp_path / 'none.yaml'}: No such file or directory\n")


def test_an_exported_app_is_a_file_with_nothing_to_do(applied: AppFile, tmp_path: Path) -> None:
    app_id = applied.app_id
    applied.call("RegisterEvents", app_id=app_id, event_names=["Seen"])
    key = {"tracker_id": f"{app_id}-re", "click_validation_key": "0123456789abcdef"}
    applied.call("UpdateTracker", tracker=key, update_mask="clickValidationKey")
    exported = tmp_path / "exported.yaml"
    assert applied.reengage("apps", "export", app_id, "-o", str(exported)).code == 0
    read = yaml.safe_load(exported.read_text())
    wanted = yaml.safe_load(applied.text)
    wanted["events"]["Login"] = {}
    wanted["postbacks"] = {}
    wanted["campaigns"][f"{app_id}-spring"]["segments"][f"{app_id}-a"]["trackers"][f"{app_id}-re"]["traffic_rules"][
        "start_time"
    ] = "2026-03-01T00:00:00Z"
    assert read == wanted
    assert applied.reengage("apps", "export", app_id).out == exported.read_text()
    applied.path.write_text(exported.read_text())
    assert applied.applied() == []
    missing = applied.reengage("apps", "export", "nobody")
    assert (missing.code, missing.err) == (1, "There is no app nobody.\n")


def test_an_id_of_another_app_is_named_and_nothing_is_changed(settings: AppFile) -> None:
    app_id = settings.app_id
    settings.call("CreateApp", app={"app_id": f"{app_id}.other", "name": f"{app_id}.other", "platform": 1})
    settings.call(
        "CreateCampaign", campaign={"campaign_id": f"{app_id}-spring", "app_id": f"{app_id}.other", "name": "Theirs"}
    )
    assert settings.problems() == [
        f"{settings.line('APP-spring')}: campaign {app_id}-spring: its id is taken in another app; take another id"
    ]
    assert settings.reengage("apps", "get", app_id).code == 1
    settings.edit("  APP-spring:", "  APP-summer:")
    assert len(settings.applied()) == 10
    assert settings.applied() == []


POSTBACKS = """\
postbacks:
  APP-p1:
    network_id: link-ios
    trigger: Purchase
    adapter: template
    adapter_fields:
      url: "https://acme.example/?id={click_id}"
      method: POST
      body: '{"id": "{click_id}"}'
      headers: {X-A: "1"}
    delivery_delay: 30s
  APP-p2: {network_id: link-ios, trigger: Login, adapter: template, adapter_fields: {url: "https://acme.example/2"}}
"""


@pytest.fixture
def with_postbacks(applied: AppFile) -> AppFile:
    """Returns settings whose file has postbacks, too, and is applied."""
    applied.text += POSTBACKS.replace("APP", applied.app_id)
    applied.path.write_text(applied.text)
    assert [(action, what) for action, what, _ in applied.applied()] == [
        ("create", f"postback {applied.app_id}-p1"),
        ("create", f"postback {applied.app_id}-p2"),
    ]
    return applied


def test_postbacks_are_created_and_then_there_is_nothing_to_do(with_postbacks: AppFile) -> None:
    assert with_postbacks.applied() == []
    listed = json.loads(with_postbacks.reengage("postbacks", "list", with_postbacks.app_id, "--json").out)
    assert [each["trigger"] for each in listed["configurations"]] == ["Purchase", "Login"]


def test_postbacks_change_to_what_the_file_says_and_left_out_fields_to_their_defaults(with_postbacks: AppFile) -> None:
    app_id = with_postbacks.app_id
    with_postbacks.edit("    delivery_delay: 30s\n", "    clicks_only: true\n")
    with_postbacks.edit('url: "https://acme.example/2"', 'url: "https://acme.example/3"')
    changes = with_postbacks.applied()
    assert [(action, what) for action, what, _ in changes] == [
        ("update", f"postback {app_id}-p1"),
        ("update", f"postback {app_id}-p2"),
    ]
    assert changes[0][2] == {"clicks_only": ("", "true"), "delivery_delay": ("30s", "0s")}
    assert changes[1][2] == {"adapter_fields.url": ("https://acme.example/2", "https://acme.example/3")}
    assert with_postbacks.applied() == []


def test_postbacks_that_the_file_does_not_name_are_archived_and_stay_so(with_postbacks: AppFile) -> None:
    app_id, text = with_postbacks.app_id, with_postbacks.text
    with_postbacks.text = "\n".join(line for line in text.splitlines() if f"{app_id}-p2" not in line) + "\n"
    with_postbacks.path.write_text(with_postbacks.text)
    assert with_postbacks.applied() == [("archive", f"postback {app_id}-p2", {})]
    with_postbacks.path.write_text(text)
    with_postbacks.text = text
    assert with_postbacks.problems() == [
        f"{with_postbacks.line('APP-p2')}: postback {app_id}-p2: is archived and stays so; take another id"
    ]


def test_secrets_and_a_pause_that_the_file_leaves_out_stay(with_postbacks: AppFile) -> None:
    configuration_id = f"{with_postbacks.app_id}-p1"
    assert with_postbacks.reengage("postbacks", "edit", configuration_id, "secrets.token=t").code == 0
    assert with_postbacks.reengage("postbacks", "pause", configuration_id).code == 0
    assert with_postbacks.applied() == []
    exported = with_postbacks.reengage("apps", "export", with_postbacks.app_id).out
    assert yaml.safe_load(exported)["postbacks"][configuration_id]["status"] == "PAUSED"
    assert "token" not in exported
    with_postbacks.path.write_text(exported)
    assert with_postbacks.applied() == []


def test_what_postback_refuses_is_named_with_its_line(with_postbacks: AppFile) -> None:
    app_id = with_postbacks.app_id
    with_postbacks.edit("      method: POST\n", "      method: PUSH\n")
    with_postbacks.edit("trigger: Login", "trigger: Other")
    found = with_postbacks.problems()
    lines = [int(line.partition(": ")[0]) for line in found]
    assert {with_postbacks.line("PUSH"), with_postbacks.line("trigger: Other")} <= set(lines)
    assert found[0].startswith(f"{with_postbacks.line('PUSH')}: postback {app_id}-p1: adapter_fields.method: ")


def test_a_change_that_somebody_made_meanwhile_is_not_overwritten(
    applied: AppFile, tracker_target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    app_id = applied.app_id
    applied.edit("windows: {click_device: 2h", "windows: {click_device: 3h")

    def agreed() -> bool:
        """Agrees, after somebody else was quicker."""
        with grpc.insecure_channel(tracker_target) as channel:
            tracker = tracker_pb2.Tracker(tracker_id=f"{app_id}-re", max_conversions_per_engagement=7)
            update = channel.unary_unary(
                "/reengage.tracker.v1.TrackerConfigService/UpdateTracker",
                request_serializer=tracker_pb2.UpdateTrackerRequest.SerializeToString,
                response_deserializer=tracker_pb2.UpdateTrackerResponse.FromString,
            )
            mask = FieldMask(paths=["max_conversions_per_engagement"])
            update(
                tracker_pb2.UpdateTrackerRequest(tracker=tracker, update_mask=mask),
                metadata=(("authorization", "Bearer admin"),),
            )
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REENGAGE_API_KEY", "admin")
        with pytest.raises(typer.Exit):
            apply.run(applied.path, agreed, target=tracker_target)
    assert "ABORTED ETAG_MISMATCH" in (error := capsys.readouterr().err)
    assert "Somebody changed it after the plan was made: nothing was changed" in error
    made = applied.tracker("APP-re")
    assert made["windows"]["click_device"] == {"duration": "7200s"}
    assert made["max_conversions_per_engagement"] == 7


def test_the_sample_file_is_the_sample(settings: AppFile) -> None:
    """Loading the sample and applying its file come to the same."""
    assert settings.reengage("apply", str(SAMPLE)).code == 2  # its networks are of no app
    for method, resources in (
        ("CreateNetwork", [network for network in sample.NETWORKS if network.network_id != "x-ios"]),  # built in
        ("CreateApp", sample.APPS),
        ("CreateSanAccount", sample.SAN_ACCOUNTS),
        ("CreateCampaign", sample.CAMPAIGNS),
        ("CreateSegment", sample.SEGMENTS),
        ("CreateEventDefinition", sample.EVENTS),
        ("CreateTracker", sample.TRACKERS),
    ):
        for resource in resources:
            created = json_format.MessageToDict(resource, preserving_proto_field_name=True)
            kind = re.sub(r"(?<!^)([A-Z])", r"_\1", method.removeprefix("Create")).lower()
            settings.call(method, **{kind: created})
    for retired in sample.ARCHIVED:
        settings.call("ArchiveTracker", tracker_id=retired)
    for made in sample.NETWORK_SETTINGS:
        given = json_format.MessageToDict(made, preserving_proto_field_name=True)
        settings.call("UpdateNetworkSettings", network_settings=given, update_mask="windows")
    answer = settings.reengage("apply", str(SAMPLE))
    assert (answer.out, answer.err) == ("shop-ios is as the file says: nothing to do.\n", "")
