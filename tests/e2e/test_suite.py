"""`make run` as its user meets it: what it says works, what crashes comes back, and nothing is left of it."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import asyncpg
import psutil
import pytest

from deploy.local.embedded import EmbeddedPostgres
from deploy.local.suite import SERVICES, Ports
from deploy.local.x_network import SECRETS
from tests.support.geoip import write_geoip_database
from tests.support.ports import suite_ports

REENGAGE = Path(sys.executable).with_name("reengage")
UP = (sys.executable, "-m", "deploy.local", "up")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """A running `python -m deploy.local up`."""

    process: subprocess.Popen[bytes]
    output: Path
    ports: Ports
    environment: dict[str, str]

    def text(self) -> str:
        return self.output.read_text()

    def children(self) -> dict[str, psutil.Process]:
        """Returns the services by name, and PostgreSQL."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            command = child.cmdline()
            found[command[3] if "deploy.local.child" in command else "postgres"] = child
        return found

    def reengage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run(str(REENGAGE), *arguments)

    def again(self) -> subprocess.CompletedProcess[str]:
        """Starts it a second time."""
        return self._run(*UP)

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60)


def start(directory: Path) -> Up:
    ports = suite_ports()
    environment = dict(os.environ) | {
        "REENGAGE_DATA": str(directory / "data"),
        **{f"REENGAGE_PORT_{field.name.upper()}": str(getattr(ports, field.name)) for field in fields(Ports)},
    }
    write_geoip_database(directory / "countries.mmdb", {"198.51.100.0/25": "DE", "198.51.100.128/25": "FR"})
    environment["REENGAGE_GEOIP_DATABASE"] = str(directory / "countries.mmdb")
    output = directory / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(UP, env=environment, stdout=file, stderr=file, start_new_session=True)
    up = Up(process=process, output=output, ports=ports, environment=environment)
    until(lambda: "Three things to try" in up.text() or process.poll() is not None)
    assert process.poll() is None, up.text()
    return up


def until(fact: Callable[[], bool], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Yields a suite that the tests share; each leaves it running."""
    running = start(tmp_path_factory.mktemp("up"))
    yield running
    end(running)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Up]:
    """Yields a suite that the test may stop."""
    running = start(tmp_path)
    yield running
    end(running)


def end(up: Up) -> None:
    if up.process.poll() is None:
        up.process.send_signal(signal.SIGTERM)
        up.process.wait(60)


def test_the_three_things_to_try_lead_to_a_reengagement(up: Up) -> None:
    click, event, call = (
        shlex.split(line) for line in up.text().splitlines() if re.match(r"curl |\.venv/bin/reengage call", line)
    )
    assert curl(click).startswith("302")
    assert curl(event) == '200 {"success":1}'
    answer = ""

    def decided() -> bool:
        nonlocal answer
        answer = up.reengage(*call[1:]).stdout
        return '"STATE_DECIDED"' in answer  # before, it says that it waits

    until(decided)
    assert '"OUTCOME_REENGAGED"' in answer
    conversion = re.search(r"try-\w+", up.text())
    assert conversion is not None
    assert "REENGAGED" in up.reengage("explain", "shop-android", conversion[0]).stdout
    until(lambda: "DELIVERED" in up.reengage("deliveries", "shop-android", "--json").stdout)


def explained(up: Up, record_id: str, app_id: str = "shop-android") -> dict[str, Any]:
    answer = up.reengage("explain", app_id, record_id, "--json").stdout
    return dict(json.loads(answer)) if answer else {}


def test_what_no_person_clicked_wins_nothing_and_explain_says_what_it_was(up: Up) -> None:
    """A9, through HTTP: a link that a friend sends is previewed and prefetched, and only then followed."""
    gateway, phone = f"http://{up.ports.address('gateway')}", "Mozilla/5.0 (Linux; Android 14; Pixel 8)"
    device = "0f0e0d0c-1a2b-4c3d-8e4f-000000000009"
    link = f"{gateway}/c/android-acme-return?adid={device}&click_id=preview-9"
    answers = [
        curl(["curl", link, "-A", "WhatsApp/2.23.20.0 A"]),
        curl(["curl", link, "-A", phone, "-H", "Sec-Purpose: prefetch"]),
        curl(["curl", link, "-A", phone]),
    ]
    assert [answer[:3] for answer in answers] == ["302"] * 3
    preview, fetched, clicked = (answer.partition("ko_click_id=")[2][:32] for answer in answers)
    until(lambda: all(explained(up, click_id) for click_id in (preview, fetched, clicked)))  # none is in the spool
    event = (
        f'{{"action":"event","kochava_app_id":"shop-android","record_id":"preview-9","data":{{"event_name":"Purchase",'
        f'"device_ids":{{"adid":"{device}"}},"origination_ip":"203.0.113.99","device_ua":"{phone}"}}}}'
    )
    assert curl(["curl", f"{gateway}/track/json", "-d", event]) == '200 {"success":1}'
    until(lambda: explained(up, "preview-9").get("state") == "STATE_DECIDED")
    why = explained(up, "preview-9")
    assert (why["decision"]["outcome"], why["decision"]["engagement_id"]) == ("OUTCOME_REENGAGED", clicked)
    refused = {preview: "a link preview of WhatsApp made it, no person", fetched: "a browser fetched it beforehand"}
    for click_id, words in refused.items():
        assert any(click_id in sentence and words in sentence for sentence in why["sentences"])
    assert "by a link preview of WhatsApp" in explained(up, preview)["summary"]


def test_a_traffic_rule_on_countries_decides_and_explain_says_so(up: Up) -> None:
    """The country of an address, from a database as an operator mounts one, on its way from link to decision."""
    gateway, tracker_id = f"http://{up.ports.address('gateway')}", "only-german"
    device = "0f0e0d0c-1a2b-4c3d-8e4f-00000000000d"
    segment_id = json.loads(up.reengage("trackers", "get", "android-acme-return", "--json").stdout)["segment_id"]
    made = up.reengage(
        "trackers", "create", f"tracker_id={tracker_id}", f"segment_id={segment_id}", "network_id=acme-android",
        "type=REENGAGEMENT", "events=Purchase", "install_url=https://shop.example/",
        "traffic_rules.allowed_countries=DE",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    link = f"{gateway}/c/{tracker_id}?adid={device}&ip_address="
    until(lambda: curl(["curl", f"{link}198.51.100.7"]).startswith("302"))
    german, french = (
        curl(["curl", link + ip]).rpartition("ko_click_id=")[2] for ip in ("198.51.100.7", "198.51.100.200")
    )
    until(lambda: all(explained(up, click_id) for click_id in (german, french)))
    event = (
        f'{{"action":"event","kochava_app_id":"shop-android","record_id":"german-1","data":{{"event_name":"Purchase",'
        f'"device_ids":{{"adid":"{device}"}},"origination_ip":"198.51.100.7"}}}}'
    )
    assert curl(["curl", f"{gateway}/track/json", "-d", event]) == '200 {"success":1}'
    until(lambda: explained(up, "german-1").get("state") == "STATE_DECIDED")
    why = explained(up, "german-1")
    assert (why["decision"]["outcome"], why["decision"]["tracker_id"]) == ("OUTCOME_REENGAGED", tracker_id)
    assert why["decision"]["country"] == "DE"
    (refused,) = (sentence for sentence in why["sentences"] if french in sentence)
    assert refused.endswith("was refused: its tracker's traffic rules do not take its country, FR.")


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: object) -> None:
        return None


def curl(command: list[str]) -> str:
    """Returns status and body of what a printed curl command asks."""
    options = dict(itertools.pairwise(command))
    url = next(word for word in command if word.startswith("http://"))
    data = options["-d"].encode() if "-d" in options else None
    name, _, value = options.get("-H", "Accept: */*").partition(": ")
    request = urllib.request.Request(url, data=data, headers={"User-Agent": options.get("-A", "curl"), name: value})
    try:
        with urllib.request.build_opener(_Stay).open(request) as answer:
            return f"{answer.status} {answer.read().decode()}"
    except HTTPError as error:
        return f"{error.code} {error.headers['Location']}"


def test_a_postback_tells_the_install_time_the_agency_and_the_tracker_s_own_parameters(up: Up) -> None:
    """Macros that neither the event nor the link have: filled from the device's install and the tracker."""
    gateway, tracker_id = f"http://{up.ports.address('gateway')}", "of-an-agency"
    device = "0f0e0d0c-1a2b-4c3d-8e4f-0000000000ab"
    segment_id = json.loads(up.reengage("trackers", "get", "android-acme-return", "--json").stdout)["segment_id"]
    url = f"http://{up.ports.address('network')}/postbacks/macros"
    for command in (
        ("agencies", "create", "agency_id=reach", "name=Reach"),
        (
            "trackers", "create", f"tracker_id={tracker_id}", f"segment_id={segment_id}", "network_id=acme-android",
            "type=REENGAGEMENT", "events=LevelUp", "install_url=https://shop.example/", "agency_id=reach",
            "custom_parameters=cp_0=tracker,cp_1=tracker",
        ),
        (
            "postbacks", "create", "configuration_id=macros", "app_id=shop-android", "network_id=acme-android",
            "trigger=LevelUp", "adapter=template", f"url={url}?{{install_time}}/{{agency}}/{{cp_0}}/{{cp_1}}",
        ),
    ):  # fmt: skip
        made = up.reengage(*command)
        assert made.returncode == 0, made.stderr
    until(lambda: curl(["curl", f"{gateway}/c/{tracker_id}"]).startswith("302"))

    def send(action: str, time_s: int, data: str = "") -> None:
        record = (
            f'{{"action":"{action}","kochava_app_id":"shop-android","data":{{{data}"usertime":{time_s},'
            f'"device_ids":{{"adid":"{device}"}},"origination_ip":"203.0.113.7"}}}}'
        )
        assert curl(["curl", f"{gateway}/track/json", "-d", record]) == '200 {"success":1}'

    now_s = int(time.time())
    send("install", now_s - 7200)
    click = curl(["curl", f"{gateway}/c/{tracker_id}?adid={device}&cp_0=link"])
    until(lambda: bool(explained(up, click.rpartition("ko_click_id=")[2])))
    send("event", int(time.time()) + 1, '"event_name":"LevelUp",')
    installed = time.strftime("%Y-%m-%dT%H%%3A%M%%3A%S.000Z", time.gmtime(now_s - 7200))
    until(
        lambda: f"/postbacks/macros?{installed}/Reach/link/tracker" in curl(["curl", url.rpartition("/postbacks")[0]])
    )


def test_a_late_click_moves_a_conversion_and_a_late_ping_does_not(up: Up) -> None:
    """D12, from link to ledger: who won then is told, who was told and lost is told nothing, and both can be seen."""
    gateway, network = f"http://{up.ports.address('gateway')}", f"http://{up.ports.address('network')}"
    device = "0f0e0d0c-1a2b-4c3d-8e4f-0000000000ac"
    segment_id = json.loads(up.reengage("trackers", "get", "android-acme-return", "--json").stdout)["segment_id"]
    for name in ("acme", "viewly"):
        for command in (
            (
                "trackers", "create", f"tracker_id=late-{name}", f"segment_id={segment_id}", "type=REENGAGEMENT",
                f"network_id={name}-android", "events=LateBuy", "install_url=https://shop.example/",
            ),
            (
                "postbacks", "create", f"configuration_id=late-{name}", "app_id=shop-android",
                f"network_id={name}-android", "trigger=LateBuy", "adapter=template", "delivery_method=NETWORK_ONLY",
                f"url={network}/postbacks/late-{name}?{{conversion_id}}",
            ),
        ):  # fmt: skip
            made = up.reengage(*command)
            assert made.returncode == 0, made.stderr
        until(lambda name=name: curl(["curl", f"{gateway}/c/late-{name}"]).startswith("302"))  # type: ignore[misc]

    bought_s = int(time.time()) - 60

    def click(name: str, before_s: int) -> None:
        """Sends a click that somebody vouches for, as the gateway's spool does."""
        record = {
            "app_id": "shop-android", "record_id": f"late-{name}", "device_ids": {"adid": device},
            "event_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(bought_s - before_s)),
            "click": {"tracker_id": f"late-{name}"},
        }  # fmt: skip
        sent = up.reengage("call", "ingest/RecordBatch", json.dumps({"records": [record]}))
        assert "STATUS_ACCEPTED" in sent.stdout, sent.stderr

    def standing() -> dict[str, tuple[str, str]]:
        listed = json.loads(up.reengage("deliveries", "shop-android", "--conversion", "late-1", "--json").stdout)
        return {
            each["configuration_id"]: (each["state"], each.get("superseded", ""))
            for each in listed.get("deliveries", ())
        }

    click("acme", 3600)
    event = (
        f'{{"action":"event","kochava_app_id":"shop-android","record_id":"late-1","data":{{"event_name":"LateBuy",'
        f'"usertime":{bought_s},"device_ids":{{"adid":"{device}"}},"origination_ip":"203.0.113.7"}}}}'
    )
    assert curl(["curl", f"{gateway}/track/json", "-d", event]) == '200 {"success":1}'
    until(lambda: standing() == {"late-acme": ("STATE_DELIVERED", "")})
    answer = curl(["curl", f"{gateway}/c/late-viewly?adid={device}&click_time={bought_s - 1}"])
    ping = answer.rpartition("ko_click_id=")[2]
    until(lambda: bool(explained(up, ping)))
    click("viewly", 30)
    lost, won = ("STATE_DELIVERED", "SUPERSEDED_OTHER_WINNER"), ("STATE_DELIVERED", "")
    until(lambda: standing() == {"late-acme": lost, "late-viewly": won})
    decision = explained(up, "late-1")["decision"]
    assert (decision["version"], decision["because"]) == (2, "BECAUSE_LATE_ENGAGEMENT")
    assert (decision["engagement_id"], decision["late_record_id"]) == ("late-viewly", "late-viewly")
    verdicts = {each["engagement_id"]: each["verdict"] for each in decision["candidates"]}
    assert verdicts[ping] == "VERDICT_REPORTED_LATE"


def test_explain_says_why_x_was_not_asked_and_what_it_says_to_do_helps(up: Up, tmp_path: Path) -> None:
    """X is asked with the credentials of its tracker's account, and as soon as that has them."""
    gateway, credentials = f"http://{up.ports.address('gateway')}", tmp_path / "credentials.yaml"

    def why(record_id: str) -> str:
        event = (
            f'{{"action":"event","kochava_app_id":"shop-ios","record_id":"{record_id}","data":{{"event_name":"Subscribe",'
            '"device_ids":{"idfa":"0F0E0D0C-1A2B-4C3D-8E4F-0000000000AA"},"origination_ip":"203.0.113.7",'
            '"device_ua":"Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X)",'
            '"app_tracking_transparency":{"att":true}}}'
        )
        assert curl(["curl", f"{gateway}/track/json", "-d", event]) == '200 {"success":1}'
        until(lambda: explained(up, record_id, "shop-ios").get("state") == "STATE_DECIDED")
        (sentence,) = explained(up, record_id, "shop-ios")["sentences"]
        return str(sentence)

    def give(held: dict[str, str]) -> None:
        credentials.write_text(json.dumps(held))
        changed = up.reengage("san-accounts", "edit", "x-shop", f"credentials=@{credentials}")
        assert changed.returncode == 0, changed.stderr

    give({name: value for name, value in SECRETS.items() if name != "token"})
    sentence = why("no-token")
    assert sentence.startswith(
        "x-ios was not asked: it lacks credentials (no token: neither configuration x-ios-subscribe nor SAN account "
        "x-shop has); see delivery "
    )
    assert "Give them to the SAN account, or to the configuration. This was decided without its answer." in sentence
    delivery = re.search(r"see delivery (\S+)\.", sentence)
    assert delivery is not None
    assert "NO_CREDENTIALS" in up.reengage("deliveries", "shop-ios", delivery[1]).stdout
    give(SECRETS)
    numbers = itertools.count()  # an event may go before the news of the change
    until(lambda: why(f"all-there-{next(numbers)}") == "x-ios was asked, and claims nothing.", within_s=30)


def test_wrong_fields_are_all_named(up: Up) -> None:
    failed = up.reengage("call", "tracker/CreateTracker", '{"tracker": {"events": ["Purchase", "Purchase"]}}')
    assert failed.returncode == 1
    assert "INVALID_ARGUMENT" in failed.stderr
    assert {"tracker.segment_id", "tracker.network_id", "tracker.events"} <= set(
        re.findall(r"tracker\.\w+", failed.stderr)
    )


def test_a_second_one_on_the_same_data_says_so(up: Up) -> None:
    second = up.again()
    assert second.returncode == 1
    assert f"already runs here: process {up.process.pid}" in second.stderr
    assert up.ports.address("gateway") in second.stderr


def test_a_taken_port_is_named_and_nothing_is_started(up: Up, tmp_path: Path) -> None:
    up.environment["REENGAGE_DATA"], kept = str(tmp_path), up.environment["REENGAGE_DATA"]
    try:
        other = up.again()
    finally:
        up.environment["REENGAGE_DATA"] = kept
    assert other.returncode == 1
    assert f"Port {up.ports.gateway}, wanted for gateway, is taken." in other.stderr
    assert "--gateway-port or REENGAGE_PORT_GATEWAY" in other.stderr
    assert not (tmp_path / "postgres").exists()


@pytest.mark.parametrize("service", [*SERVICES, "postgres"])
def test_what_crashes_is_named_and_comes_back(up: Up, service: str) -> None:
    crashed = up.children()[service]
    name = "PostgreSQL" if service == "postgres" else service
    already = up.text().count(f"{name} is back")
    crashed.kill()
    until(lambda: up.text().count(f"{name} is back") > already)
    assert f"{name} crashed" in up.text()
    assert up.children()[service].pid != crashed.pid


def test_nothing_listens_beyond_this_machine(up: Up) -> None:
    listening = set()
    for child in psutil.Process(up.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a connection to PostgreSQL may have ended since
            listening |= {c.laddr.ip for c in child.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_in_reverse_order(own: Up, number: signal.Signals) -> None:
    children = list(own.children().values())
    assert len(children) == len(SERVICES) + 1
    own.process.send_signal(number)
    assert own.process.wait(60) == 0
    assert re.findall(r"(\w+) stopped", own.text()) == list(reversed(SERVICES))
    assert gone(children)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", own.ports.gateway))


def test_a_second_signal_does_not_wait(own: Up) -> None:
    children = own.children()
    # Suspended, it cannot heed SIGTERM: without the second signal the stop takes half a minute.
    children["gateway"].suspend()
    own.process.send_signal(signal.SIGINT)
    until(lambda: "Stopping" in own.text())
    own.process.send_signal(signal.SIGINT)
    own.process.wait(60)
    assert "gateway did not stop" not in own.text()
    assert gone(list(children.values()))


def test_a_killed_supervisor_leaves_nothing_and_the_next_start_goes_on(own: Up, tmp_path: Path) -> None:
    children = list(own.children().values())
    own.process.kill()
    own.process.wait()
    until(lambda: gone(children))
    end(start(tmp_path))


def test_data_of_other_migrations_is_named_with_the_remedy(own: Up, tmp_path: Path) -> None:
    end(own)

    async def tamper() -> None:
        async with EmbeddedPostgres(tmp_path / "data" / "postgres") as server:
            connection = await asyncpg.connect(server.admin_dsn())
            await connection.execute("UPDATE ingest.schema_migrations SET checksum = 'other' WHERE number = 1")
            await connection.close()

    asyncio.run(tamper())
    failed = own.again()
    assert failed.returncode == 1
    assert "ingest/0001_record_log differs from what was applied" in failed.stderr
    assert f"move {tmp_path / 'data'} away" in failed.stderr
