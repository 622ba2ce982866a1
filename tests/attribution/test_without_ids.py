"""Records without a usable device id: decided by address and user agent, each a device of its own."""

from typing import Any

from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from tests.attribution.conftest import StartWorld, click, device, event
from tests.conftest import Database

HOUR = 3600
PLACE = {"ip_address": "203.0.113.9", "user_agent": "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36"}


async def test_a_record_without_ids_is_matched_by_its_place(database: Database, start_world: StartWorld) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "e": {},
        "i": {"install": record_pb2.Install()},
        "s": {"session": record_pb2.Session(state=record_pb2.Session.STATE_START)},
        "d": {"deep_link_open": record_pb2.DeepLinkOpen()},
    }
    async with start_world(database) as world:
        await world.send(click(0, {}, record_id="k", **PLACE))
        await world.send(event(HOUR, device(1), record_id="with"))
        for name, kind in kinds.items():
            await world.send(event(HOUR, {}, record_id=name, **PLACE, **kind))
        async with world.worker():
            found = await world.decided("with", *kinds)
    assert len({each.device_id for each in found}) == len(found)
    won = {each.conversion_id: each.matched_by for each in found if each.engagement_id == "k"}
    assert won["e"] == decision_pb2.MATCH_KIND_MODELED
