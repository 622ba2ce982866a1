"""The rulebook that attribution makes of tracker's settings."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.domain.snapshots import Resources
from reengage.postback.v1.conversion_pb2 import Names
from reengage.tracker.v1.agency_pb2 import Agency
from reengage.tracker.v1.app_pb2 import PLATFORM_IOS, App, AppSettings
from reengage.tracker.v1.campaign_pb2 import Campaign
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.network_settings_pb2 import NetworkSettings
from reengage.tracker.v1.segment_pb2 import Segment
from reengage.tracker.v1.snapshot_pb2 import Resource
from reengage.tracker.v1.status_pb2 import STATUS_ARCHIVED, STATUS_LIVE
from reengage.tracker.v1.tracker_pb2 import Tracker
from reengage.tracker.v1.windows_pb2 import Window, Windows
from services.attribution.redecide.overrides import rules_with
from services.attribution.wire.rulebook import RulebookBuilder, build_rulebook

Edit = tuple[str, tuple[str, ...], Message]


@pytest.mark.parametrize("sandbox", [False, True])
def test_what_is_handed_to_postback_says_whether_the_app_is_a_sandbox(sandbox: bool) -> None:
    settings = build_rulebook(
        resources(
            ("app", ("app",), App(app_id="app", sandbox=sandbox)),
            ("tracker", ("t",), Tracker(tracker_id="t", app_id="app", network_id="n", name="T")),
            ("network", ("n",), Network(network_id="n")),
        ),
        1,
    )
    assert settings.app_names["app"].sandbox == settings.tracker_names["t"].sandbox == sandbox


def test_what_is_handed_to_postback_names_all_that_a_tracker_hangs_on() -> None:
    app = App(app_id="app", bundle_id="com.shop", store_app_id="id1", platform=PLATFORM_IOS)
    tracker = Tracker(
        tracker_id="t", app_id="app", network_id="n", campaign_id="c", segment_id="s", agency_id="a", name="T",
        custom_parameters={"cp_0": "x"},
    )  # fmt: skip
    settings = build_rulebook(
        resources(
            ("app", ("app",), app),
            ("tracker", ("t",), tracker),
            ("network", ("n",), Network(network_id="n", name="N")),
            ("campaign", ("c",), Campaign(campaign_id="c", name="C")),
            ("segment", ("s",), Segment(segment_id="s", name="S")),
            ("agency", ("a",), Agency(agency_id="a", name="A")),
        ),
        1,
    )
    of_app = Names(bundle_id="com.shop", store_app_id="id1", platform=PLATFORM_IOS, retention_days=400)
    assert settings.app_names["app"] == of_app
    names = Names(tracker="T", network="N", campaign="C", segment="S", agency="A", custom_parameters={"cp_0": "x"})
    names.MergeFrom(of_app)
    assert settings.tracker_names["t"] == names


def resources(*edits: Edit) -> Resources:
    """Returns what is held after these edits."""
    kinds = (
        "app",
        "tracker",
        "network",
        "event_definition",
        "network_settings",
        "campaign",
        "segment",
        "agency",
        "san_account",
    )
    made: Resources = {kind: {} for kind in kinds}
    for kind, key, message in edits:
        made[kind][key] = message
    return made


def edits(
    kind: str, make: Callable[..., Message], key: Sequence[str], **fields: st.SearchStrategy[object]
) -> st.SearchStrategy[Edit]:
    """Returns a resource made or replaced; `key` names the fields of its id."""
    return st.fixed_dictionaries(fields).map(
        lambda values: (kind, tuple(str(values[name]) for name in key), make(**values))
    )


app_ids, names = st.sampled_from(("a", "b")), st.sampled_from(("", "Spring", "Summer"))
network_ids = st.sampled_from(("n", "san"))
statuses = st.sampled_from((STATUS_LIVE, STATUS_ARCHIVED))
lengths = st.sampled_from((60, 3600)).map(lambda seconds: Duration(seconds=seconds))
durations = st.none() | lengths
days = st.none() | st.sampled_from((1, 14)).map(lambda number: Duration(seconds=number * 86_400))
limits = st.none() | st.just(Window(disabled=True)) | lengths.map(lambda duration: Window(duration=duration))
windows = st.none() | st.builds(Windows, click_device=limits, click_modeled=limits, impression_ip=limits)
any_edit = st.one_of(
    edits(
        "app", App, ["app_id"],
        app_id=app_ids, bundle_id=names, sandbox=st.booleans(), settings=st.builds(AppSettings, windows=windows),
    ),
    edits("network", Network, ["network_id"], network_id=network_ids, name=names, self_attributing=st.booleans()),
    edits(
        "network_settings", NetworkSettings, ["app_id", "network_id"],
        app_id=app_ids, network_id=network_ids, windows=windows,
    ),
    edits("campaign", Campaign, ["campaign_id"], campaign_id=st.just("c"), name=names),
    edits("segment", Segment, ["segment_id"], segment_id=st.just("s"), name=names),
    edits(
        "event_definition", EventDefinition, ["app_id", "event_name"],
        app_id=app_ids, event_name=st.just("Purchase"), min_time_to_reengagement=durations, status=statuses,
    ),
    edits(
        "tracker", Tracker, ["tracker_id"],
        tracker_id=st.sampled_from(("t1", "t2", "t12")), app_id=app_ids, network_id=network_ids, name=names,
        campaign_id=st.sampled_from(("c", "gone")), segment_id=st.sampled_from(("", "s")), status=statuses,
        type=st.sampled_from((Tracker.TYPE_ACQUISITION, Tracker.TYPE_REENGAGEMENT)),
        events=st.sampled_from(([], ["Purchase"])), windows=windows, post_engagement_window=days,
        default_tracker=st.booleans(), create_time=st.sampled_from((1, 2)).map(lambda at: Timestamp(seconds=at)),
    ),
)  # fmt: skip
at_first: tuple[Edit, ...] = (
    *(("app", (app_id,), App(app_id=app_id)) for app_id in ("a", "b")),
    *(("network", (network_id,), Network(network_id=network_id)) for network_id in ("n", "san")),
)


@settings(max_examples=150, deadline=None)
@given(revisions=st.lists(st.lists(any_edit, max_size=4), min_size=1, max_size=8))
@pytest.mark.slow
def test_settings_built_again_are_those_built_anew(revisions: list[list[Edit]]) -> None:
    build, held = RulebookBuilder(), resources(*at_first)
    for revision, changed in enumerate(revisions):
        for kind, key, message in changed:
            held[kind][key] = message
        again, anew = build(held, revision), build_rulebook(held, revision)
        assert replace(again, tracker_names=dict(again.tracker_names)) == replace(
            anew, tracker_names=dict(anew.tracker_names)
        )


def test_a_change_leaves_other_apps_trackers_and_settings_handed_out_before_alone() -> None:
    def tracker(tracker_id: str, app_id: str, name: str = "") -> Edit:
        return "tracker", (tracker_id,), Tracker(tracker_id=tracker_id, app_id=app_id, network_id="n", name=name)

    build, held = RulebookBuilder(), resources(*at_first, tracker("t1", "a"), tracker("t2", "a"), tracker("t3", "b"))
    before = build(held, 1)
    held["tracker"]["t1",] = tracker("t1", "a", "New")[2]
    held["campaign"]["c",] = Campaign(campaign_id="c", name="Spring")
    after = build(held, 2)
    assert after.apps["b"].trackers is before.apps["b"].trackers
    assert after.apps["b"].revision == after.apps["a"].revision == 2
    assert after.apps["a"].trackers["t2"].tracker is before.apps["a"].trackers["t2"].tracker
    assert (before.tracker_names["t1"].tracker, after.tracker_names["t1"].tracker) == ("", "New")
    assert before.apps["a"].revision == 1


@settings(max_examples=150, deadline=None)
@given(first=st.lists(any_edit, max_size=8), changed=st.lists(any_edit, max_size=4))
@pytest.mark.slow
def test_rules_with_changes_are_those_of_the_changed_settings(first: list[Edit], changed: list[Edit]) -> None:
    held = resources(*at_first, *first)
    before = build_rulebook(held, 7)
    changed = [edit for edit in changed if edit[0] == "network" or getattr(edit[2], "app_id", "") == "a"]
    found = rules_with(before, "a", [Resource(**{kind: message}) for kind, _, message in changed])  # type: ignore[arg-type]
    assert before == build_rulebook(held, 7), "what is in use stays as it is"
    for kind, key, message in changed:
        held[kind][key] = message
    assert found == build_rulebook(held, 7).apps["a"]


def test_a_tracker_that_is_added_is_live_and_set_up_now_and_one_that_is_changed_when_it_was() -> None:
    first = Tracker(tracker_id="t1", app_id="a", network_id="n", create_time=Timestamp(seconds=5), status=STATUS_LIVE)
    before = build_rulebook(resources(*at_first, ("tracker", ("t1",), first)), 7)
    changes = [Tracker(tracker_id=each, app_id="a", network_id="n", name="New") for each in ("t1", "t2")]
    found = rules_with(before, "a", [Resource(tracker=tracker) for tracker in changes]).trackers
    assert [found[each].tracker.live for each in ("t1", "t2")] == [True, True]
    assert found["t1"].tracker.create_time_us == 5_000_000 < found["t2"].tracker.create_time_us
