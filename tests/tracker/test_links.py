"""The links to hand to a network: its own macros where they are known, placeholders of ours for the rest."""

import pytest

from reengage.tracker.v1 import network_pb2, tracker_pb2
from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID, PLATFORM_IOS
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.tracker_pb2 import Tracker, TrackerLinks
from services.gateway.links import parse_query
from services.tracker import catalogue
from services.tracker.links import LINK_PARAMETERS, tracker_links
from tests.tracker import samples
from tests.tracker.samples import Stub, create_parents, create_tracker, wrong_fields

TRACKER = Tracker(tracker_id="acq1")


@pytest.mark.parametrize(
    ("network", "click", "impression"),
    [
        (
            Network(platform=PLATFORM_IOS),
            "/c/acq1?click_id={click_id}&site_id={site_id}&creative_id={creative_id}&idfa={idfa}",
            (
                "/track/impression?event=view&campaign_id=acq1&impression_id={impression_id}&site_id={site_id}"
                "&creative_id={creative_id}&idfa={idfa}"
            ),
        ),
        (
            Network(platform=PLATFORM_ANDROID, link_macros={"click_id": "[CID]", "adid": "${GAID}", "idfa": "%IDFA%"}),
            "/c/acq1?click_id=[CID]&site_id={site_id}&creative_id={creative_id}&adid=${GAID}",
            (
                "/track/impression?event=view&campaign_id=acq1&impression_id={impression_id}&site_id={site_id}"
                "&creative_id={creative_id}&adid=${GAID}"
            ),
        ),
        (
            Network(platform=PLATFORM_IOS, link_macros={"sub_site_id": "{{sub}}", "click_id": "a&b"}),
            "/c/acq1?click_id=a%26b&site_id={site_id}&creative_id={creative_id}&idfa={idfa}&sub_site_id={{sub}}",
            (
                "/track/impression?event=view&campaign_id=acq1&impression_id={impression_id}&site_id={site_id}"
                "&creative_id={creative_id}&idfa={idfa}&sub_site_id={{sub}}"
            ),
        ),
        (Network(self_attributing=True), "", ""),
    ],
    ids=["no macros", "own macros", "further parameters", "self-attributing"],
)
def test_links(network: Network, click: str, impression: str) -> None:
    assert tracker_links(TRACKER, network) == TrackerLinks(
        click=click, impression=impression, short="/C/CWC0ENYBJD" if click else ""
    )


@pytest.mark.parametrize("key", catalogue.NETWORKS, ids=lambda key: str(key[0]))
def test_what_a_network_of_the_catalogue_leaves_in_its_link_counts_as_absent(key: tuple[str, ...]) -> None:
    """A2, A7: an unreplaced macro is nobody's id."""
    network = catalogue.NETWORKS[key]
    links = tracker_links(TRACKER, network)
    assert set(network.link_macros) <= set(LINK_PARAMETERS)
    for link, ours in ((links.click, {}), (links.impression, {"event": "view", "campaign_id": "acq1"})):
        query = link.partition("?")[2]
        assert parse_query(query.encode()) == (ours if query else {})


async def test_a_tracker_comes_with_its_links(tracker: Stub) -> None:
    await create_parents(tracker)
    created = await tracker.CreateTracker(tracker_pb2.CreateTrackerRequest(tracker=samples.acquisition()))
    assert created.links.click.startswith("/c/acq1?click_id={click_id}&")
    got = await tracker.GetTracker(tracker_pb2.GetTrackerRequest(tracker_id="acq1"))
    assert got.links == created.links
    copy = await tracker.CopyTracker(tracker_pb2.CopyTrackerRequest(source_tracker_id="acq1"))
    assert copy.links.click.startswith(f"/c/{copy.tracker.tracker_id}?")
    await create_tracker(tracker, samples.san_reengagement())
    assert (await tracker.GetTracker(tracker_pb2.GetTrackerRequest(tracker_id="xre1"))).links == TrackerLinks()


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"link_macros": {"colour": "{c}"}}, {("network.link_macros", "UNKNOWN_VALUE")}),
        ({"link_macros": {"click_id": ""}}, {("network.link_macros[click_id]", "INVALID_TEXT")}),
        (
            {"link_macros": {"click_id": "{c}"}, "self_attributing": True},
            {("network.link_macros", "NOT_ALLOWED")},
        ),
    ],
    ids=["unknown parameter", "no macro", "self-attributing"],
)
async def test_wrong_macros(tracker: Stub, fields: dict[str, object], wrong: set[tuple[str, str]]) -> None:
    request = network_pb2.CreateNetworkRequest(network=samples.network(**fields))
    assert await wrong_fields(tracker.CreateNetwork(request)) == wrong
