"""Trackers beyond the standard methods: with parents, as copies, many at once, as files, and what they resolve to."""

import csv
import io
import json
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from reengage.postback.v1.configuration_pb2 import Configuration
from reengage.tracker.v1 import (
    agency_pb2,
    app_pb2,
    campaign_pb2,
    event_definition_pb2,
    network_settings_pb2,
    postback_draft_pb2,
    resolve_pb2,
    san_account_pb2,
    segment_pb2,
    snapshot_pb2,
    tracker_edit_pb2,
    tracker_pb2,
)
from reengage.tracker.v1.campaign_pb2 import Campaign
from reengage.tracker.v1.change_pb2 import Change
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.network_settings_pb2 import NetworkSettings
from reengage.tracker.v1.postback_draft_pb2 import PostbackDraft
from reengage.tracker.v1.resolve_pb2 import ResolvedSetting
from reengage.tracker.v1.segment_pb2 import Segment
from reengage.tracker.v1.status_pb2 import STATUS_ARCHIVED
from reengage.tracker.v1.tracker_edit_pb2 import FILE_FORMAT_CSV, FILE_FORMAT_NDJSON
from reengage.tracker.v1.tracker_pb2 import Tracker, TrackerFilter, TrafficRules
from services.tracker import catalogue
from tests.tracker import samples
from tests.tracker.samples import (
    DAY,
    HOUR,
    Stub,
    create_parents,
    create_tracker,
    failure,
    lasting,
    refusal,
    seconds,
    wrong_fields,
)


async def newest(stub: Stub) -> int:
    return max([part.revision async for part in stub.GetSnapshot(snapshot_pb2.GetSnapshotRequest())])


async def get(stub: Stub, tracker_id: str) -> Tracker:
    found: Tracker = (await stub.GetTracker(tracker_pb2.GetTrackerRequest(tracker_id=tracker_id))).tracker
    return found


# Campaign, segment and tracker in one call


def with_parents(**changes: Any) -> tracker_pb2.CreateTrackerRequest:
    fields: dict[str, Any] = {
        "tracker": samples.acquisition(segment_id=""),
        "segment": Segment(name="New segment"),
        "campaign": Campaign(app_id="kodemo1", name="New campaign"),
    }
    return tracker_pb2.CreateTrackerRequest(**fields | changes)


async def test_campaign_and_segment_are_created_on_the_fly(tracker: Stub) -> None:
    """S0, S4: campaigns and segments are created while creating a tracker."""
    await create_parents(tracker)
    before = await newest(tracker)
    made = (await tracker.CreateTracker(with_parents(request_id="once"))).tracker
    assert made.revision == before + 1
    campaign = (await tracker.GetCampaign(campaign_pb2.GetCampaignRequest(campaign_id=made.campaign_id))).campaign
    segment = (await tracker.GetSegment(segment_pb2.GetSegmentRequest(segment_id=made.segment_id))).segment
    assert (campaign.name, campaign.revision) == ("New campaign", made.revision)
    assert (segment.name, segment.campaign_id, segment.app_id) == ("New segment", campaign.campaign_id, "kodemo1")
    assert (await tracker.CreateTracker(with_parents(request_id="once"))).tracker == made
    assert await newest(tracker) == made.revision


async def test_a_segment_alone_is_created_in_the_campaign_it_names(tracker: Stub) -> None:
    await create_parents(tracker)
    request = with_parents(segment=Segment(name="B", campaign_id="spring"))
    request.ClearField("campaign")
    assert (await tracker.CreateTracker(request)).tracker.campaign_id == "spring"


async def test_what_is_wrong_with_all_three_is_said_at_once_and_nothing_is_made(tracker: Stub) -> None:
    await create_parents(tracker)
    before = await newest(tracker)
    request = with_parents(
        campaign=Campaign(app_id="kodemo1"),
        segment=Segment(),
        tracker=samples.acquisition(segment_id="", install_url=""),
    )
    assert await wrong_fields(tracker.CreateTracker(request)) == {
        ("campaign.name", "REQUIRED"),
        ("segment.name", "REQUIRED"),
        ("tracker.install_url", "REQUIRED"),
    }
    only_campaign = with_parents(campaign=Campaign(app_id="kodemo1"))
    assert await wrong_fields(tracker.CreateTracker(only_campaign)) == {("campaign.name", "REQUIRED")}
    taken = with_parents(campaign=Campaign(app_id="kodemo1", name="Spring"))
    assert await refusal(tracker.CreateTracker(taken)) == ("ALREADY_EXISTS", "NAME_TAKEN")
    nowhere = with_parents(campaign=Campaign(app_id="nobody", name="New"))
    assert await refusal(tracker.CreateTracker(nowhere)) == ("NOT_FOUND", "APP_NOT_FOUND")
    only_tracker = with_parents(tracker=samples.acquisition(segment_id="", install_url=""))
    assert await wrong_fields(tracker.CreateTracker(only_tracker)) == {("tracker.install_url", "REQUIRED")}
    lonely = with_parents()
    lonely.ClearField("segment")
    assert await wrong_fields(tracker.CreateTracker(lonely)) == {("segment", "REQUIRED")}
    unreadable = with_parents(request_id="null\x00")
    assert await wrong_fields(tracker.CreateTracker(unreadable)) == {("request_id", "INVALID_TEXT")}
    elsewhere = with_parents(tracker=samples.acquisition(segment_id="spring-a"))
    assert await wrong_fields(tracker.CreateTracker(elsewhere)) == {("tracker.segment_id", "NOT_ALLOWED")}
    assert await newest(tracker) == before


# Save and create postback


async def test_save_and_create_postback_returns_the_configurations_to_fill(tracker: Stub) -> None:
    """S0, S1: Save & Create Postback leads to the partner's configuration."""
    await create_parents(tracker)
    await tracker.CreateEventDefinition(
        event_definition_pb2.CreateEventDefinitionRequest(event_definition=samples.event(revenue=True))
    )
    wanted = samples.san_reengagement(target_event="PURCHASE", post_view_window=seconds(DAY), bundle_id="com.x")
    response = await tracker.CreateTracker(tracker_pb2.CreateTrackerRequest(tracker=wanted, draft_postbacks=True))
    [draft] = response.postback_drafts
    assert (draft.app_id, draft.network_id, draft.trigger) == ("kodemo1", "x-ios", "Purchase")
    assert (draft.retry_attempts, draft.delivery_delay.seconds) == (3, 0)
    assert draft.delivery_method == PostbackDraft.DELIVERY_METHOD_ALL
    assert dict(PostbackDraft.DeliveryMethod.items()) == dict[str, int](Configuration.DeliveryMethod.items())
    assert draft.is_revenue
    assert dict(draft.known) == {
        "app_name": "Demo",
        "bundle_id": "com.x",
        "conversion_type": "PURCHASE",
    }
    of_network = {need.name: need for need in catalogue.NETWORKS[("x-ios",)].postback_needs}
    assert of_network["consumer_secret"].secret
    assert of_network["consumer_secret"].description
    needs = {need.name: need for need in draft.needs}
    del of_network["conversion_type"]
    assert needs == of_network, "all but what is known"
    credentials = {"consumer_secret": "s", "token": "t"}
    account = samples.san_account(credentials=credentials, verified=True)
    await tracker.CreateSanAccount(san_account_pb2.CreateSanAccountRequest(san_account=account))
    other = samples.san_reengagement(tracker_id="xre2", name="Second", san_account_ids=["x1"])
    response = await tracker.CreateTracker(tracker_pb2.CreateTrackerRequest(tracker=other, draft_postbacks=True))
    missing = {need.name for need in response.postback_drafts[0].needs}
    assert missing == needs.keys() - credentials.keys() | {"conversion_type"}, "the tracker's account has them"
    await create_tracker(tracker, samples.acquisition())
    asked = postback_draft_pb2.DraftPostbacksRequest(tracker_id="acq1")
    assert [draft.trigger for draft in (await tracker.DraftPostbacks(asked)).postback_drafts] == ["_install"]


# Copies


async def test_a_copy_differs_in_what_is_said(tracker: Stub) -> None:
    await create_parents(tracker)
    source = await create_tracker(tracker, samples.san_reengagement(default_tracker=True, name="Return"))
    request = tracker_pb2.CopyTrackerRequest(source_tracker_id="xre1", tracker=Tracker(tracker_id="second"))
    copy = (await tracker.CopyTracker(request)).tracker
    assert (copy.name, copy.default_tracker, list(copy.events)) == ("Return copy", False, list(source.events))
    assert (await tracker.CopyTracker(request)).tracker == copy, "repeat-safe"
    assert (await get(tracker, "xre1")).default_tracker
    plain = (await tracker.CopyTracker(tracker_pb2.CopyTrackerRequest(source_tracker_id="xre1"))).tracker
    assert plain.name == "Return copy 2"
    changed = tracker_pb2.CopyTrackerRequest(
        source_tracker_id="xre1",
        tracker=Tracker(name="As acquisition", type=Tracker.TYPE_ACQUISITION),
        update_mask=FieldMask(paths=["name", "type", "events"]),
    )
    copy = (await tracker.CopyTracker(changed)).tracker
    assert (copy.name, copy.type, list(copy.events)) == ("As acquisition", Tracker.TYPE_ACQUISITION, [])
    missing = tracker.CopyTracker(tracker_pb2.CopyTrackerRequest(source_tracker_id="nothing"))
    assert await refusal(missing) == ("NOT_FOUND", "TRACKER_NOT_FOUND")


@pytest.mark.parametrize(
    ("path", "reason"), [("revision", "OUTPUT_ONLY"), ("tracker_id", "IMMUTABLE"), ("no", "UNKNOWN_FIELD")]
)
async def test_what_a_copy_cannot_differ_in(tracker: Stub, path: str, reason: str) -> None:
    await create_parents(tracker)
    await create_tracker(tracker, samples.san_reengagement())
    wrong = tracker_pb2.CopyTrackerRequest(source_tracker_id="xre1", update_mask=FieldMask(paths=[path]))
    assert await wrong_fields(tracker.CopyTracker(wrong)) == {("update_mask", reason)}


# Many at once


def edit(*ids: str, paths: list[str], dry_run: bool = False, **fields: Any) -> tracker_edit_pb2.BulkEditTrackersRequest:
    return tracker_edit_pb2.BulkEditTrackersRequest(
        app_id="kodemo1",
        tracker_ids=ids,
        tracker=Tracker(**fields),
        update_mask=FieldMask(paths=paths),
        validate_only=dry_run,
    )


async def test_bulk_edit_changes_all_in_one_revision(tracker: Stub) -> None:
    await create_parents(tracker)
    for tracker_id in ("b", "a", "c"):
        await create_tracker(tracker, samples.acquisition(tracker_id=tracker_id))
    before = await newest(tracker)
    wanted = {"paths": ["install_url"], "install_url": "https://new.example"}
    tried = await tracker.BulkEditTrackers(edit("a", "b", dry_run=True, **wanted))  # type: ignore[arg-type]
    assert (await newest(tracker), tried.revision) == (before, before)
    done = await tracker.BulkEditTrackers(edit("a", "b", **wanted))  # type: ignore[arg-type]
    assert (done.changes, done.revision) == (tried.changes, before + 1)
    [first, second] = done.changes
    assert (first.tracker_id, second.tracker_id, first.action) == ("a", "b", Change.ACTION_UPDATED)
    assert [(field.path, field.before, field.after) for field in first.fields] == [
        ("install_url", '"https://apps.example/demo"', '"https://new.example"')
    ]
    assert {(await get(tracker, name)).revision for name in ("a", "b")} == {before + 1}
    again = await tracker.BulkEditTrackers(edit("a", "b", **wanted))  # type: ignore[arg-type]
    assert (len(again.changes), again.unchanged_count, again.revision) == (0, 2, before + 1)
    filtered = edit(**wanted)  # type: ignore[arg-type]
    filtered.filter.CopyFrom(TrackerFilter(network_id="acme-ios", type=Tracker.TYPE_ACQUISITION))
    everything = await tracker.BulkEditTrackers(filtered)
    assert ([change.tracker_id for change in everything.changes], everything.unchanged_count) == (["c"], 2)


async def test_bulk_edit_is_all_or_nothing_and_names_each_wrong_field(tracker: Stub) -> None:
    await create_parents(tracker)
    await create_tracker(tracker, samples.acquisition())
    await create_tracker(tracker, samples.reengagement())
    await create_tracker(tracker, samples.san_reengagement())
    before = await newest(tracker)
    wrong = tracker.BulkEditTrackers(edit("acq1", "re1", "xre1", paths=["events"], events=["A", "B"]))
    assert await wrong_fields(wrong) == {
        ("trackers[acq1].events", "NOT_ALLOWED"),
        ("trackers[xre1].events", "TOO_MANY"),
    }
    missing = tracker.BulkEditTrackers(edit("acq1", "nothing", paths=["events"]))
    assert await refusal(missing) == ("NOT_FOUND", "TRACKER_NOT_FOUND")
    taken = tracker.BulkEditTrackers(edit("acq1", "re1", paths=["name"], name="One name"))
    assert await refusal(taken) == ("ALREADY_EXISTS", "NAME_TAKEN")
    neither = tracker.BulkEditTrackers(edit(paths=["name", "tracker_id"], name="x"))
    assert await wrong_fields(neither) == {("tracker_ids", "REQUIRED"), ("update_mask", "IMMUTABLE")}
    await create_tracker(tracker, samples.san_reengagement(tracker_id="xre2"))
    both = tracker.BulkEditTrackers(edit("xre1", "xre2", paths=["default_tracker"], default_tracker=True))
    assert await wrong_fields(both) == {("trackers[xre2].default_tracker", "DUPLICATE")}
    assert await newest(tracker) == before + 1


# Files


async def exported(stub: Stub, file_format: Any, **narrowed: Any) -> bytes:
    request = tracker_edit_pb2.ExportTrackersRequest(
        app_id="kodemo1", format=file_format, filter=TrackerFilter(**narrowed)
    )
    return b"".join([piece.content async for piece in stub.ExportTrackers(request)])


async def imported(stub: Stub, file_format: Any, content: bytes, etag: str = "") -> Any:
    return await stub.ImportTrackers(
        tracker_edit_pb2.ImportTrackersRequest(app_id="kodemo1", format=file_format, content=content, etag=etag)
    )


async def create_rich_trackers(stub: Stub) -> None:
    """Creates trackers that between them set every field."""
    await stub.CreateAgency(agency_pb2.CreateAgencyRequest(agency=samples.agency()))
    account = samples.san_account(verified=True)
    await stub.CreateSanAccount(san_account_pb2.CreateSanAccountRequest(san_account=account))
    rules = TrafficRules(
        start_time=Timestamp(seconds=1_700_000_000), end_time=Timestamp(seconds=1_800_000_000),
        min_os_version="16", max_os_version="17.4", allowed_countries=["DE", "AT"],
    )  # fmt: skip
    await create_tracker(
        stub,
        samples.reengagement(
            agency_id="runners", share_with_publisher=False, destination_type=Tracker.DESTINATION_TYPE_LANDING_PAGE,
            deep_link="demo://item/{sku}", custom_parameters={"sku": 'a "quoted", one'},
            max_conversions_per_engagement=2, click_validation_key="0123456789abcdef", traffic_rules=rules,
            name="Häuser, \"groß\"",
            windows=samples.windows(
                click_device=lasting(30 * DAY), click_ip=lasting(6 * HOUR), click_equalizer={"disabled": True},  # type: ignore[arg-type]
                impression_ip=lasting(90), event_association={"unlimited": True},  # type: ignore[arg-type]
            ),
        ),
    )  # fmt: skip
    await create_tracker(
        stub,
        samples.san_reengagement(
            post_engagement_window=seconds(7 * DAY), post_view_window=seconds(0), default_tracker=True,
            target_event="PURCHASE", san_account_ids=["x1"], bundle_id="com.example",
        ),
    )  # fmt: skip
    await create_tracker(stub, samples.acquisition())


async def test_no_name_is_a_formula(tracker: Stub) -> None:
    await create_parents(tracker)
    names = ["=1+1", "'=1+1", "@x", "-1", "+", "'a", "a=1"]
    for number, name in enumerate(names):
        await create_tracker(tracker, samples.acquisition(tracker_id=f"t{number}", name=name))
    content = await exported(tracker, FILE_FORMAT_CSV)
    cells = [row["name"] for row in csv.DictReader(io.StringIO(content.decode()))]
    assert cells == ["'=1+1", "''=1+1", "'@x", "'-1", "'+", "'a", "a=1"]
    diff = await imported(tracker, FILE_FORMAT_CSV, content)
    assert (len(diff.changes), diff.unchanged_count) == (0, len(names))


@pytest.mark.parametrize("file_format", [FILE_FORMAT_CSV, FILE_FORMAT_NDJSON], ids=["csv", "ndjson"])
async def test_an_exported_file_imports_as_no_change(tracker: Stub, file_format: Any) -> None:
    await create_parents(tracker)
    await create_rich_trackers(tracker)
    before = await newest(tracker)
    content = await exported(tracker, file_format)
    diff = await imported(tracker, file_format, content)
    assert (len(diff.changes), diff.unchanged_count) == (0, 3), [str(change) for change in diff.changes]
    assert (await imported(tracker, file_format, content, etag=diff.etag)).unchanged_count == 3
    assert await newest(tracker) == before
    narrowed = await exported(tracker, FILE_FORMAT_NDJSON, network_id="x-ios")
    assert [json.loads(line)["tracker_id"] for line in narrowed.splitlines()] == ["xre1"]


async def test_a_file_is_looked_at_first_and_then_applied(tracker: Stub) -> None:
    await create_parents(tracker)
    await create_rich_trackers(tracker)
    before = await newest(tracker)
    rows = list(csv.DictReader(io.StringIO((await exported(tracker, FILE_FORMAT_CSV)).decode())))
    by_id = {row["tracker_id"]: row for row in rows}
    by_id["re1"]["windows.click_device"] = "14d"
    by_id["acq1"]["status"] = "STATUS_ARCHIVED"
    by_id["new"] = by_id["acq1"] | {"tracker_id": "", "name": "From the file", "status": "", "campaign_id": ""}
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=rows[0])
    writer.writeheader()
    writer.writerows(by_id.values())
    content = text.getvalue().encode()
    diff = await imported(tracker, FILE_FORMAT_CSV, content)
    assert await newest(tracker) == before, "nothing was changed by looking"
    actions = {change.action: change for change in diff.changes}
    updated = actions[Change.ACTION_UPDATED]
    assert [(field.path, field.before, field.after) for field in updated.fields] == [
        ("windows.click_device", '{"duration": "2592000s"}', '{"duration": "1209600s"}')
    ]
    assert actions[Change.ACTION_ARCHIVED].tracker_id == "acq1"
    assert (len(diff.changes), diff.unchanged_count) == (3, 1)
    assert await refusal(imported(tracker, FILE_FORMAT_CSV, content, etag="other")) == ("ABORTED", "ETAG_MISMATCH")
    done = await imported(tracker, FILE_FORMAT_CSV, content, etag=diff.etag)
    assert (done.revision, await newest(tracker)) == (before + 1, before + 1)
    assert (await get(tracker, "acq1")).status == STATUS_ARCHIVED
    again = await imported(tracker, FILE_FORMAT_CSV, content, etag=diff.etag)
    assert (len(again.changes), again.unchanged_count) == (0, 4), "repeat-safe"


async def test_an_etag_is_of_what_was_looked_at(tracker: Stub) -> None:
    await create_parents(tracker)
    await create_tracker(tracker, samples.acquisition())
    content = b"tracker_id,install_url\nacq1,https://b.example\n"
    diff = await imported(tracker, FILE_FORMAT_CSV, content)
    other = tracker_pb2.UpdateTrackerRequest(
        tracker=Tracker(tracker_id="acq1", install_url="https://c.example"),
        update_mask=FieldMask(paths=["install_url"]),
    )
    await tracker.UpdateTracker(other)
    late = imported(tracker, FILE_FORMAT_CSV, content, etag=diff.etag)
    assert await refusal(late) == ("ABORTED", "ETAG_MISMATCH")


async def test_a_default_moves_by_file(tracker: Stub) -> None:
    await create_parents(tracker)
    await create_tracker(tracker, samples.san_reengagement(default_tracker=True))
    await create_tracker(tracker, samples.san_reengagement(tracker_id="xre2"))
    content = b"tracker_id,default_tracker\nxre2,true\nxre1,\n"
    diff = await imported(tracker, FILE_FORMAT_CSV, content)
    await imported(tracker, FILE_FORMAT_CSV, content, etag=diff.etag)
    assert not (await get(tracker, "xre1")).default_tracker
    assert (await get(tracker, "xre2")).default_tracker


async def test_wrong_lines_are_named(tracker: Stub) -> None:
    await create_parents(tracker)
    await create_rich_trackers(tracker)
    content = (
        b"tracker_id,name,segment_id,network_id,events,post_engagement_window,colour\n"
        b'xre1,,spring-a,x-ios,"[""A"",""B""]",7d,red\n'
        b"re1,,elsewhere,,,,\n"
        b"re1,x\n"
        b",,spring-a,acme-ios,,soon,\n"
    )
    assert await wrong_fields(imported(tracker, FILE_FORMAT_CSV, content)) == {
        ("line 1: colour", "UNKNOWN_FIELD"),
        ("line 4", "INVALID_ROW"),
        ("line 5: post_engagement_window", "INVALID_VALUE"),
    }
    content = (
        b'{"tracker_id":"xre1","segment_id":"spring-a","events":["A","B"]}\n'
        b'{"tracker_id":"re1","segment_id":"elsewhere"}\n'
        b'{"tracker_id":"re1"}\n'
        b'{"segment_id":"spring-a","network_id":"acme-ios"}\n'
        b'{"name":"Lost","segment_id":"nowhere","network_id":"acme-ios","install_url":"https://a.example"}\n'
    )
    assert await wrong_fields(imported(tracker, FILE_FORMAT_NDJSON, content)) == {
        ("line 1: events", "TOO_MANY"),
        ("line 2: segment_id", "IMMUTABLE"),
        ("line 3: tracker_id", "DUPLICATE"),
        ("line 4: name", "REQUIRED"),
        ("line 5", "SEGMENT_NOT_FOUND"),
    }
    broken = imported(tracker, FILE_FORMAT_NDJSON, b'{"tracker_id":\n\xff')
    assert await wrong_fields(broken) == {("content", "INVALID_TEXT")}
    broken = imported(tracker, FILE_FORMAT_NDJSON, b'{"tracker_id":\n')
    assert await wrong_fields(broken) == {("line 1", "INVALID_ROW")}


# Settings


async def test_every_setting_says_where_it_comes_from(tracker: Stub) -> None:
    """B3: each window by itself, tracker, network for the app, app, built-in."""
    await create_parents(tracker)
    app = samples.app(
        settings={
            "windows": samples.windows(
                click_ip=lasting(DAY), click_modeled=lasting(2 * DAY), click_device=lasting(DAY)
            ),
            "omit_os_minor": True,
            "late_window": seconds(0),
        }
    )
    await tracker.UpdateApp(app_pb2.UpdateAppRequest(app=app, update_mask=FieldMask(paths=["settings"])))
    for network_id in ("acme-ios", "x-ios"):
        settings = NetworkSettings(
            app_id="kodemo1",
            network_id=network_id,
            windows=samples.windows(click_modeled=lasting(3 * DAY), click_device=lasting(4 * DAY)),
            late_pings=seconds(HOUR) if network_id == "acme-ios" else None,
        )
        await tracker.UpdateNetworkSettings(
            network_settings_pb2.UpdateNetworkSettingsRequest(
                network_settings=settings, update_mask=FieldMask(paths=["windows", "late_pings"])
            )
        )
    event = EventDefinition(app_id="kodemo1", event_name="Purchase", min_time_to_reengagement=seconds(0))
    await tracker.CreateEventDefinition(event_definition_pb2.CreateEventDefinitionRequest(event_definition=event))
    await create_tracker(tracker, samples.reengagement(windows=samples.windows(click_device=lasting(5 * DAY))))
    await create_tracker(tracker, samples.san_reengagement())

    async def resolved(tracker_id: str) -> dict[str, tuple[str, Any]]:
        response = await tracker.ResolveSettings(resolve_pb2.ResolveSettingsRequest(tracker_id=tracker_id))
        assert response.revision == await newest(tracker)
        found = {}
        for setting in response.settings:
            value = getattr(setting, setting.WhichOneof("value") or "")
            layer = ResolvedSetting.Layer.Name(setting.layer).removeprefix("LAYER_")
            found[setting.name] = (layer, MessageToDict(value) if hasattr(value, "DESCRIPTOR") else value)
        return found

    found = await resolved("re1")
    assert found["windows.click_device"] == ("TRACKER", {"duration": f"{5 * DAY}s"})
    assert found["windows.click_modeled"] == ("NETWORK_SETTINGS", {"duration": f"{3 * DAY}s"})
    assert found["windows.click_ip"] == ("APP", {"duration": f"{DAY}s"})
    assert found["windows.click_equalizer"] == ("BUILT_IN", {"disabled": True})
    assert found["windows.impression_device"] == ("BUILT_IN", {"duration": f"{DAY}s"})
    assert found["windows.event_association"] == ("BUILT_IN", {"unlimited": True})
    assert found["omit_os_minor"] == ("APP", True)
    assert found["device_attribution"] == ("BUILT_IN", "STANDARD")
    assert found["modeled_level"] == ("BUILT_IN", "IP_AND_UA")
    assert found["allow_reengagement_impressions"] == ("BUILT_IN", True)
    assert found["limit_ad_tracking_fallback"] == ("BUILT_IN", False)
    assert found["install_reprocessing_window"] == ("BUILT_IN", "NEVER")
    assert found["late_window"] == ("APP", "0s")
    assert found["inactivity_window"] == ("BUILT_IN", "0s")
    assert found["late_pings"] == ("NETWORK_SETTINGS", f"{HOUR}s")
    assert found["retention"] == ("BUILT_IN", f"{400 * DAY}s")
    assert found["events[Purchase].min_time_to_reengagement"] == ("EVENT", "0s")
    assert found["events[Login].min_time_to_reengagement"] == ("BUILT_IN", f"{DAY}s")
    assert found["events[Login].reengagement_period"] == ("BUILT_IN", {"unlimited": True})
    assert "post_view_window" not in found
    found = await resolved("xre1")
    assert found["windows.click_device"] == ("NETWORK_SETTINGS", {"duration": f"{4 * DAY}s"})
    assert found["post_engagement_window"] == ("BUILT_IN", f"{14 * DAY}s")
    assert found["post_view_window"] == ("BUILT_IN", "0s")
    assert found["granular_data_policy"] == ("BUILT_IN", "REJECT")
    assert found["late_pings"] == ("BUILT_IN", "0s")
    assert (await failure(resolved("nothing"))).reason == "TRACKER_NOT_FOUND"


async def test_events_resolve_by_themselves_with_or_without_a_definition(tracker: Stub) -> None:
    await create_parents(tracker)
    event = EventDefinition(app_id="kodemo1", event_name="Purchase", reengagement_period=seconds(30 * DAY))
    await tracker.CreateEventDefinition(event_definition_pb2.CreateEventDefinitionRequest(event_definition=event))
    request = resolve_pb2.ResolveSettingsRequest(app_id="kodemo1", event_names=["Purchase", "Unknown"])
    response = await tracker.ResolveSettings(request)
    layers = {setting.name: ResolvedSetting.Layer.Name(setting.layer) for setting in response.settings}
    assert layers["events[Purchase].min_time_to_reengagement"] == "LAYER_BUILT_IN"
    assert layers["events[Purchase].reengagement_period"] == "LAYER_EVENT"
    assert layers["events[Unknown].reengagement_period"] == "LAYER_BUILT_IN"
    assert response.revision == await newest(tracker)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, {("tracker_id", "REQUIRED")}),
        ({"tracker_id": "a", "app_id": "b"}, {("tracker_id", "REQUIRED")}),
        ({"tracker_id": "a", "event_names": ["Purchase"]}, {("event_names", "NOT_ALLOWED")}),
        ({"app_id": "kodemo1"}, {("event_names", "OUT_OF_RANGE")}),
        ({"app_id": "kodemo1", "event_names": [""]}, {("event_names[0]", "REQUIRED")}),
    ],
    ids=["nothing", "both", "events of a tracker", "no events", "no name"],
)
async def test_what_cannot_be_resolved(tracker: Stub, fields: dict[str, Any], wrong: set[tuple[str, str]]) -> None:
    assert await wrong_fields(tracker.ResolveSettings(resolve_pb2.ResolveSettingsRequest(**fields))) == wrong
