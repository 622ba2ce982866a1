"""Events: registered on first sight, and disabled."""

from google.protobuf.field_mask_pb2 import FieldMask

from reengage.tracker.v1 import (
    app_pb2,
    event_definition_pb2,
    snapshot_pb2,
    tracker_pb2,
)
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.tracker_pb2 import Tracker
from tests.tracker import samples
from tests.tracker.samples import Stub, create_parents, create_tracker, wrong_fields


async def newest(stub: Stub) -> int:
    return max([part.revision async for part in stub.GetSnapshot(snapshot_pb2.GetSnapshotRequest())])


async def test_events_are_registered_on_first_sight(tracker: Stub) -> None:
    await tracker.CreateApp(app_pb2.CreateAppRequest(app=samples.app()))
    await tracker.CreateEventDefinition(
        event_definition_pb2.CreateEventDefinitionRequest(event_definition=samples.event())
    )
    seen = event_definition_pb2.RegisterEventsRequest(
        app_id="kodemo1", event_names=["Purchase", "Login", "Login", "Level 2"]
    )
    assert (await tracker.RegisterEvents(seen)).created_count == 2
    before = await newest(tracker)
    assert (await tracker.RegisterEvents(seen)).created_count == 0
    assert await newest(tracker) == before
    listed = await tracker.ListEventDefinitions(event_definition_pb2.ListEventDefinitionsRequest(app_id="kodemo1"))
    assert {one.event_name: one.registered for one in listed.event_definitions} == {
        "Level 2": True, "Login": True, "Purchase": False,
    }  # fmt: skip
    wanted = samples.event(event_name="Login", display_name="Signed in", revenue=True)
    made = await tracker.CreateEventDefinition(
        event_definition_pb2.CreateEventDefinitionRequest(event_definition=wanted)
    )
    assert (made.event_definition.registered, made.event_definition.display_name) == (False, "Signed in")
    assert await wrong_fields(tracker.RegisterEvents(event_definition_pb2.RegisterEventsRequest(app_id="kodemo1"))) == {
        ("event_names", "OUT_OF_RANGE")
    }
    many = event_definition_pb2.RegisterEventsRequest(
        app_id="kodemo1", event_names=[f"e{number}" for number in range(1001)]
    )
    assert await wrong_fields(tracker.RegisterEvents(many)) == {("event_names", "OUT_OF_RANGE")}
    del many.event_names[1000:]
    assert (await tracker.RegisterEvents(many)).created_count == 1000


async def test_a_disabled_event_is_no_longer_selected(tracker: Stub) -> None:
    await create_parents(tracker)
    await create_tracker(tracker, samples.reengagement())
    disabled = EventDefinition(app_id="kodemo1", event_name="Login", disabled=True)
    await tracker.CreateEventDefinition(event_definition_pb2.CreateEventDefinitionRequest(event_definition=disabled))
    assert await wrong_fields(create_tracker(tracker, samples.reengagement(tracker_id="re2"))) == {
        ("tracker.events[1]", "DISABLED")
    }
    renamed = tracker_pb2.UpdateTrackerRequest(
        tracker=Tracker(tracker_id="re1", name="Still"), update_mask=FieldMask(paths=["name"])
    )
    assert list((await tracker.UpdateTracker(renamed)).tracker.events) == ["Purchase", "Login"]
