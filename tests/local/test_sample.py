"""The sample's traffic is what its stories make."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from deploy.local.sample import settings
from deploy.local.sample.generate import EXPECTED, TRAFFIC, generate
from libs.channels import open_channel
from reengage.postback.v1 import configuration_pb2
from reengage.postback.v1 import service_pb2_grpc as postback_grpc
from tests.conftest import Database
from tests.support.processes import postback_process


def test_the_files_are_those_that_the_stories_make() -> None:
    assert (TRAFFIC.read_text(encoding="utf-8"), EXPECTED.read_text(encoding="utf-8")) == generate()


def test_it_is_as_large_and_as_varied_as_it_should_be() -> None:
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in TRAFFIC.read_text(encoding="utf-8").splitlines()]
    assert sum(expected["sent"].values()) >= 2000
    assert {name for line in lines for name in ("get", "post", "batch", "stream") if name in line} == {
        "get", "post", "batch", "stream",
    }  # fmt: skip
    assert [line["round"] for line in lines] == sorted(line["round"] for line in lines)


def test_what_is_sent_is_taken_refused_or_a_repeat() -> None:
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    sent, logged, refused = (sum(expected[name].values()) for name in ("sent", "logged", "refused"))
    assert sent - logged - refused > 40  # repeats


@pytest.fixture
async def postback(database: Database, tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """Yields a running postback that may send to this machine."""
    process = postback_process(tmp_path / "log", dsn=database.dsn("postback"), allowed_hosts="127.0.0.1")
    await process.start()
    async with open_channel(process.target) as channel:
        stub = postback_grpc.PostbackConfigServiceStub(channel)
        await stub.ListConfigurations(configuration_pb2.ListConfigurationsRequest(app_id="a"), wait_for_ready=True)
        yield channel
    await process.stop()


@pytest.mark.process
async def test_its_postbacks_follow_the_local_network_and_others_stay(
    tracker_target: str, postback: grpc.aio.Channel
) -> None:
    """Pointed at a server of one's own: at another path, or at one that REENGAGE_ALLOWED_HOSTS names."""
    stub = postback_grpc.PostbackConfigServiceStub(postback)

    async def urls() -> list[str]:
        listed = [
            await stub.GetConfiguration(configuration_pb2.GetConfigurationRequest(configuration_id=each))
            for each in ("acme-ios-install", "bravo-ios-install", "bravo-ios-purchase", "x-ios-subscribe")
        ]
        found = [each.configuration for each in listed]
        fields = [each.adapter_fields.fields for each in found]
        return [each["url" if "url" in each else "base_url"].string_value.partition("?")[0] for each in fields]

    async def point(configuration_id: str, url: str) -> None:
        changed = configuration_pb2.Configuration(configuration_id=configuration_id)
        changed.adapter_fields["url"] = url
        request = configuration_pb2.UpdateConfigurationRequest(configuration=changed)
        request.update_mask.paths.append("adapter_fields.url")
        await stub.UpdateConfiguration(request)

    async with open_channel(tracker_target, key="admin") as tracker:
        await settings.load(tracker, postback, "http://127.0.0.1:8090")
        await point("bravo-ios-install", "http://127.0.0.1:9911/mine?click={click_id}")
        await point("bravo-ios-purchase", "http://127.0.0.1:9911/postbacks/bravo?click={click_id}")
        await settings.load(tracker, postback, "http://127.0.0.1:8091", allowed_hosts="127.0.0.1:9911")
    assert await urls() == [
        "http://127.0.0.1:8091/postbacks/acme",
        "http://127.0.0.1:9911/mine",
        "http://127.0.0.1:9911/postbacks/bravo",
        "http://127.0.0.1:8091/x",
    ]
