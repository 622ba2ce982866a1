"""The commands that every kind of resource has, and those on keys, networks in apps, traffic rules and accounts."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Answer, Reengage

LINK = "install_url=https://apps.example/demo"


class Commands:
    """The command line, on resources whose ids begin with the name of the test."""

    def __init__(self, prefix: str, reengage: Reengage) -> None:
        self.prefix, self.reengage = prefix, reengage

    def __call__(self, text: str, *further: str) -> Answer:
        """Returns what a command says, written with `P-` for what ids begin with."""
        return self.reengage(*text.replace("P-", f"{self.prefix}-").split(), *further)

    def done(self, text: str, *further: str) -> str:
        """Returns what a command says that must do what it is told."""
        answer = self(text, *further)
        assert answer.code == 0, answer.err
        return answer.out

    def json(self, text: str, *further: str) -> Any:
        """Returns the same, as JSON."""
        return json.loads(self.done(text, *further, "--json"))


@pytest.fixture
def commands(request: pytest.FixtureRequest, reengage: Reengage) -> Commands:
    return Commands(
        request.node.name.removeprefix("test_").replace("_", "-").replace("[", ".").rstrip("]")[:40], reengage
    )


@pytest.fixture
def app(commands: Commands) -> Commands:
    """Returns commands with an app, a network, a campaign and a segment."""
    commands.done("apps create app_id=P-app name=P-app platform=IOS")
    commands.done("networks create network_id=P-net name=P-net platform=IOS")
    commands.done("campaigns create campaign_id=P-ca app_id=P-app name=Spring")
    commands.done("segments create segment_id=P-se campaign_id=P-ca name=All")
    return commands


@pytest.mark.parametrize(
    ("group", "create", "edit", "listed"),
    [
        ("accounts", "account_id=P-id name=P-id", "name=P-new", ""),
        ("apps", "app_id=P-id name=P-id platform=ANDROID", "name=P-new", ""),
        ("networks", "network_id=P-id name=P-id platform=IOS", "name=P-new", ""),
        ("agencies", "agency_id=P-id name=P-id", "name=P-new", ""),
        ("campaigns", "campaign_id=P-id app_id=P-app name=P-id", "name=P-new", "P-app"),
        ("segments", "segment_id=P-id campaign_id=P-ca name=P-id", "name=P-new", "P-app"),
        ("san-accounts", "san_account_id=P-id app_id=P-app network_id=x-ios name=P-id", "name=P-new", "P-app"),
        ("keys", "api_key_id=P-id name=P-id role=VIEWER", "name=P-new", ""),
    ],
    ids=lambda value: value if value.isalpha() or value == "san-accounts" else "",
)
def test_a_resource_is_created_listed_shown_edited_and_archived(
    app: Commands, group: str, create: str, edit: str, listed: str
) -> None:
    resource_id = f"{app.prefix}-id"
    assert resource_id in app.done(f"{group} create {create}")
    assert resource_id in app.done(f"{group} list {listed} --limit 1000")
    assert resource_id in app.done(f"{group} get P-id")
    changed = app.done(f"{group} edit P-id {edit}")
    assert changed.startswith("Changed")
    assert app.json(f"{group} get P-id")["name"] == f"{app.prefix}-new"
    assert app.done(f"{group} archive P-id").startswith("Archived")
    assert resource_id not in app.done(f"{group} list {listed} --limit 1000")
    assert resource_id in app.done(f"{group} list {listed} --limit 1000 --archived")


def test_lists_say_what_people_call_things(app: Commands) -> None:
    created = {
        "accounts": ("", "account_id=P-ac"),
        "apps": ("", "app_id=P-other platform=ANDROID"),
        "networks": ("", "network_id=P-other platform=IOS"),
        "agencies": ("", "agency_id=P-ag"),
        "campaigns": ("P-app", "campaign_id=P-other app_id=P-app"),
        "segments": ("P-app", "segment_id=P-other campaign_id=P-ca"),
        "trackers": ("P-app", f"tracker_id=P-t segment_id=P-se network_id=P-net {LINK}"),
        "san-accounts": ("P-app", "san_account_id=P-x app_id=P-app network_id=x-ios external_id=18ce54"),
        "keys": ("", "api_key_id=P-key role=VIEWER"),
    }
    for group, (of_app, fields) in created.items():
        app.done(f"{group} create {fields} name=Jupiter")
        assert "Jupiter" in app.done(f"{group} list {of_app} --limit 1000"), group
    assert "18ce54" in app.done("san-accounts list P-app")
    app.done("events set P-app Buy revenue=true")
    assert "name" not in app.done("events list P-app").split(), "it has none"
    app.done("events set P-app Buy display_name=Bought")
    assert "Bought" in app.done("events list P-app")


def test_lists_are_json_for_programs(app: Commands) -> None:
    assert [each["campaign_id"] for each in app.json("campaigns list P-app")["campaigns"]] == [f"{app.prefix}-ca"]
    assert "agencies" in app.json("agencies list")


def test_what_is_not_there_is_said(commands: Commands) -> None:
    answer = commands("campaigns get nobody")
    assert (answer.code, answer.err) == (1, "There is no campaign nobody.\n")


def test_a_key_is_shown_once_and_rotated(commands: Commands) -> None:
    made = commands.json("keys create api_key_id=P-key name=Ann role=ADMIN")
    assert made["key"]
    assert "key" not in commands.json("keys get P-key")
    assert commands.reengage("apps", "list", key=made["key"]).code == 0
    shown = commands.done("keys create name=P-other role=VIEWER")
    assert "The key, which is shown this once: " in shown
    rotated = commands.json("keys rotate P-key --overlap 0")
    assert rotated["key"] != made["key"]
    assert commands.reengage("apps", "list", key=rotated["key"]).code == 0
    assert commands.reengage("apps", "list", key=made["key"]).code == 1
    wrong = commands("keys rotate P-key --overlap soon")
    assert (wrong.code, wrong.err) == (2, "--overlap should be a duration, as 90s, 30m, 6h or 30d\n")


def test_credentials_come_from_a_file_and_are_not_shown(app: Commands, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.yaml"
    secrets.write_text("token: t-1234\nsecret: 's=1'\n")
    made = app.done(
        f"san-accounts create san_account_id=P-x app_id=P-app network_id=x-ios name=X credentials=@{secrets}"
    )
    assert "t-1234" not in made
    assert app.json("san-accounts get P-x")["credential_names"] == ["secret", "token"]
    missing = app("san-accounts edit P-x credentials=@/no/such/file")
    assert (missing.code, missing.err) == (2, "/no/such/file: No such file or directory\n")


def test_what_holds_for_a_network_in_an_app_is_shown_and_edited(app: Commands) -> None:
    app.done("network-settings edit P-app P-net windows.click_device=7d")
    assert app.json("network-settings get P-app P-net")["windows"] == {"click_device": {"duration": "604800s"}}


def test_traffic_rules_are_set_one_by_one_and_cleared(app: Commands) -> None:
    app.done(f"trackers create tracker_id=P-t segment_id=P-se network_id=P-net {LINK}")
    assert "has no traffic rules" in app.done("traffic-rules get P-t")
    app.done("traffic-rules set P-t allowed_countries=DE,FR")
    app.done("traffic-rules set P-t start_time=2026-03-01 min_os_version=16")
    app.done("traffic-rules set P-t allowed_os=ios allowed_device_types=PHONE,TABLET")
    rules = app.json("traffic-rules get P-t")
    assert rules == {
        "allowed_countries": ["DE", "FR"],
        "start_time": "2026-03-01T00:00:00Z",
        "min_os_version": "16",
        "allowed_os": ["PLATFORM_IOS"],
        "allowed_device_types": ["DEVICE_TYPE_PHONE", "DEVICE_TYPE_TABLET"],
    }
    assert "DE, FR" in app.done("traffic-rules get P-t")
    wrong = app("traffic-rules set P-t min_os=16")
    assert wrong.code == 2
    assert "Did you mean" in wrong.err
    assert "has no traffic rules" in app.done("traffic-rules clear P-t")


def test_a_new_tracker_comes_with_the_links_to_hand_to_the_network(app: Commands) -> None:
    made = app.done(f"trackers create tracker_id=P-t segment_id=P-se network_id=P-net {LINK}")
    links = dict(line.split(": ", 1) for line in made.splitlines() if " link: " in line)
    assert links["click link"].startswith(f"https://ads.example/c/{app.prefix}-t?click_id={{click_id}}")
    assert links["impression link"].startswith("https://ads.example/track/impression?")
    assert all(link in app.done("trackers get P-t") for link in links.values())


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (f"trackers create segment_id=P-se network_id=P-net type=REENGAGEMENT events=Purchse {LINK}", 0),
        ("trackers list P-app --event Purchse", 0),
        ("events get P-app Purchse", 1),
        ("events archive P-app Purchse", 1),
    ],
    ids=["create", "list", "get", "archive"],
)
def test_an_unknown_event_is_told_the_nearest(app: Commands, command: str, code: int) -> None:
    app.done("events set P-app Purchase revenue=true")
    app.done("events set P-app Login revenue=false")
    answer = app(command)
    assert answer.code == code, answer.err
    assert "Did you mean Purchase?" in answer.err
