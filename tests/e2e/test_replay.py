"""What-if and re-attribution over the whole demo sample, through the API and the command line."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.timestamp_pb2 import Timestamp

from deploy.local.demo import _clients
from deploy.local.network import LocalNetwork, fails_first, limits_first, refuses
from deploy.local.sample.stories import LAST
from deploy.local.suite import HOST, Suite, running_suite
from libs.channels import open_channel
from reengage.attribution.v1 import decision_pb2, what_if_pb2
from reengage.attribution.v1 import service_pb2_grpc as attribution_grpc
from tests.support.ports import suite_ports

REENGAGE = Path(sys.executable).with_name("reengage")
SINCE = "2020-01-01"
APP = "shop-ios"
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


async def test_the_whole_sample_again() -> None:
    """Unchanged settings change nothing, in any app. Then what a what-if says is what a re-attribution writes."""
    ports = suite_ports()
    network = LocalNetwork({"bravo": fails_first, "viewly": limits_first, "closed": refuses})
    with tempfile.TemporaryDirectory(prefix="reengage-", ignore_cleanup_errors=True) as directory:
        async with (
            running_suite(Path(directory), ports, announce=lambda _: None) as suite,
            network.serving(HOST, ports.network),
            _clients(ports) as clients,
            open_channel(ports.address("attribution")) as channel,
        ):
            assert await clients.play_and_check(suite, network)
            attribution = attribution_grpc.AttributionServiceStub(channel)
            decided = 0
            for app_id in LAST:
                parts = [part async for part in attribution.WhatIf(_all_time(app_id))]
                assert [pair for part in parts for pair in part.changed] == []
                decided += sum(part.conversion_count for part in parts)
            nothing = {decision_pb2.OUTCOME_LINKED, decision_pb2.OUTCOME_REFUSED}
            assert decided == sum(each.outcome not in nothing for each in await clients._decisions()) > 100
            await asyncio.to_thread(_on_the_command_line, suite, Path(directory))


def _on_the_command_line(suite: Suite, directory: Path) -> None:
    def reengage(*arguments: str) -> Any:
        run = subprocess.run(
            [REENGAGE, *arguments],
            env={
                **os.environ,
                "REENGAGE_ATTRIBUTION_TARGET": suite.ports.address("attribution"),
                "REENGAGE_POSTBACK_TARGET": suite.ports.address("postback"),
                "REENGAGE_TRACKER_TARGET": suite.ports.address("tracker"),
                "REENGAGE_API_KEY": suite.admin_key,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    file = directory / "shop.yaml"
    as_it_is = yaml.safe_load(reengage("apps", "export", APP))
    file.write_text(yaml.safe_dump(as_it_is))
    assert "0 of" in reengage("what-if", APP, str(file), "--from", SINCE)
    as_it_is["app"].setdefault("settings", {}).setdefault("windows", {})["click_device"] = "5m"
    for settings in as_it_is.get("network_settings", {}).values():
        settings.pop("windows", None)
    file.write_text(yaml.safe_dump(as_it_is))

    told = reengage("what-if", APP, str(file), "--from", SINCE)
    assert "would change" in told
    assert "→" in told
    lines = [json.loads(line) for line in reengage("what-if", APP, str(file), "--from", SINCE, "--json").splitlines()]
    would_change = {pair["after"]["conversion_id"] for part in lines for pair in part.get("changed", [])}
    assert would_change

    reengage("apply", str(file), "--yes")
    job = json.loads(reengage("reattribute", APP, "--from", SINCE, "--id", "r1", "--json"))
    assert (job["state"], int(job["changed_count"])) == ("STATE_DONE", len(would_change))
    assert "is done" in reengage("reattributions", "follow", APP, "r1")
    assert "0 of" in reengage("what-if", APP, "--from", SINCE), "it is the settings' now"
    offered = [json.loads(line) for line in reengage("reattributions", "offers", APP, "r1", "--json").splitlines()]
    assert {each["conversion_id"] for each in offered} <= would_change
    assert offered
    to_send = sum(each["effect"] == "EFFECT_WOULD_BE_SENT" for each in offered)
    sent = json.loads(reengage("reattributions", "send", APP, "r1", "--json"))
    assert int(sent.get("created_count", 0)) == to_send
    assert "done" in reengage("reattributions", "cancel", APP, "r1"), "what has ended cannot be stopped"


def _all_time(app_id: str) -> what_if_pb2.WhatIfRequest:
    return what_if_pb2.WhatIfRequest(
        app_id=app_id, start_time=Timestamp(seconds=0), end_time=Timestamp(seconds=4_000_000_000)
    )
