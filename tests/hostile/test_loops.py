"""A loop that fails for ever says so, and the others go on."""

import asyncio
import contextlib
import urllib.request
from collections.abc import Awaitable, Callable

import orjson
import pytest
from prometheus_client import REGISTRY

from libs.server import GrpcServer, ServerConfig, Service, supervise
from libs.worker import stuck_workers
from services.attribution.live.owned_lanes import OwnedLanes
from services.attribution.live.worker import Loop
from services.attribution.wiring import slow_jobs
from tests.attribution.conftest import World, click, device, event
from tests.support.eventually import eventually
from tests.support.ports import HOST, free_port

LOOPS = (
    "indexer", "decider", "relay", "claims", "hash_indexer", "late_arrivals", "quarantine", "eraser", "reattributor",
)  # fmt: skip
NEEDED_TO_DECIDE = ("indexer", "decider")


async def test_these_are_the_loops_of_a_worker(world: World) -> None:
    async with world.worker(jobs=slow_jobs(world.ground)) as worker:
        assert set(worker._loops) == set(LOOPS)


def planted(loop: Loop) -> Loop:
    """Returns a loop that fails in its middle, whenever it runs."""

    async def fails(lanes: OwnedLanes) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await loop(lanes)
        raise ValueError("planted")

    return fails


def noting(loop: Loop, began: list[str], name: str) -> Loop:
    async def noted(lanes: OwnedLanes) -> None:
        began.append(name)
        await loop(lanes)

    return noted


@pytest.mark.parametrize("name", LOOPS)
async def test_a_loop_of_a_worker_fails_alone(world: World, name: str) -> None:
    began: list[str] = []
    async with world.worker(jobs=slow_jobs(world.ground)) as worker:
        worker._loops = {
            each: planted(loop) if each == name else noting(loop, began, each) for each, loop in worker._loops.items()
        }
        await eventually(lambda: _is_stuck(name))
        assert [each["worker"] for each in stuck_workers()] == [name]
        if name not in NEEDED_TO_DECIDE:
            await world.send(click(0, device(1), record_id="k1"))
            await world.send(event(60, device(1), record_id="e1"))
            (e1,) = await world.decided("e1")
            assert e1.engagement_id == "k1"
        assert sorted(began) == sorted(set(LOOPS) - {name}), "none of the others began anew"
    assert stuck_workers() == [], "who is stopped is not stuck"


async def _is_stuck(name: str) -> bool:
    return REGISTRY.get_sample_value("worker_stuck", {"worker": name}) == 1.0


@pytest.mark.parametrize("ill", ["first", "second", "third"])
async def test_a_loop_of_a_service_fails_alone_and_its_health_says_which(ill: str) -> None:
    began: list[str] = []

    def loop(name: str) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            began.append(name)
            await asyncio.sleep(0)
            if name == ill:
                raise ValueError("planted")
            await asyncio.Event().wait()

        return run

    metrics_port = free_port()
    server = GrpcServer(ServerConfig(listen=f"{HOST}:{free_port()}", metrics_port=metrics_port, grace_s=1.0), [])
    stop = asyncio.Event()
    service = Service(server=server, loops={name: loop(name) for name in ("first", "second", "third")})
    running = asyncio.ensure_future(supervise(service, stop))
    await eventually(lambda: _is_stuck(ill))
    health = orjson.loads(await asyncio.to_thread(_get, f"http://{HOST}:{metrics_port}/healthz"))
    assert health["status"] == "alive", "a restart does not help"
    (stuck,) = health["stuck_workers"]
    assert (stuck["worker"], stuck["error"]) == (ill, "ValueError")
    assert b"worker_stuck" in await asyncio.to_thread(_get, f"http://{HOST}:{metrics_port}/metrics")
    assert sorted(each for each in began if each != ill) == sorted({"first", "second", "third"} - {ill})
    stop.set()
    await running


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url) as response:
        content: bytes = response.read()
    return content
