"""Networks: the built-in catalogue, their owners, and the windows they allow."""

import pytest

from reengage.tracker.v1 import (
    account_pb2,
    agency_pb2,
    app_pb2,
    campaign_pb2,
    network_pb2,
    segment_pb2,
)
from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID, PLATFORM_IOS, Platform
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.tracker_pb2 import Tracker
from services.tracker import catalogue
from tests.tracker import samples
from tests.tracker.samples import DAY, Stub, create_parents, create_tracker, failure, seconds, wrong_fields
from tests.tracker.test_audit_trail import stored


def test_the_catalogue_has_what_was_asked_for() -> None:
    networks = [network for (network_id,), network in catalogue.NETWORKS.items() if network_id == network.network_id]
    assert {"x-ios", "x-android", "pinterest-ios", "pinterest-android"} <= {one.network_id for one in networks}
    assert len({one.name for one in networks}) == len(networks)


@pytest.mark.parametrize("platform", [PLATFORM_IOS, PLATFORM_ANDROID], ids=["iOS", "Android"])
def test_the_catalogue_has_link_based_networks(platform: Platform.ValueType) -> None:
    networks = [one for one in catalogue.NETWORKS.values() if one.platform == platform and not one.self_attributing]
    assert len(networks) >= 20
    assert all(one.postback_needs for one in networks)


async def test_a_built_in_network_is_there_and_kept_from_its_first_use(tracker: Stub) -> None:
    await tracker.CreateApp(app_pb2.CreateAppRequest(app=samples.app()))
    asked = network_pb2.GetNetworkRequest(network_id="moloco-ios")
    network = (await tracker.GetNetwork(asked)).network
    assert (network.built_in, network.revision, network.name) == (True, 0, "Moloco iOS")
    await tracker.CreateCampaign(campaign_pb2.CreateCampaignRequest(campaign=samples.campaign()))
    await tracker.CreateSegment(segment_pb2.CreateSegmentRequest(segment=samples.segment()))
    assert "network moloco-ios" not in await stored(tracker)
    made = await create_tracker(tracker, samples.acquisition(network_id="moloco-ios"))
    kept = (await tracker.GetNetwork(asked)).network
    assert kept.revision == made.revision
    assert (await stored(tracker))["network moloco-ios"] == kept


async def test_networks_are_listed_with_those_of_the_catalogue(tracker: Stub) -> None:
    await tracker.CreateNetwork(network_pb2.CreateNetworkRequest(network=samples.network(network_id="moloco-web")))
    ids, token = [], ""
    while True:
        request = network_pb2.ListNetworksRequest(page_size=7, page_token=token)
        page = await tracker.ListNetworks(request)
        ids += [network.network_id for network in page.networks]
        token = page.next_page_token
        if not token:
            break
    assert ids == sorted([*(key[0] for key in catalogue.NETWORKS), "moloco-web"])


async def test_creating_a_built_in_network_needs_its_id_only(tracker: Stub) -> None:
    wanted = Network(network_id="pinterest-ios", supports_impressions=False)
    made = (await tracker.CreateNetwork(network_pb2.CreateNetworkRequest(network=wanted))).network
    assert (made.name, made.handles_redirects, made.platform) == ("Pinterest iOS", True, PLATFORM_IOS)
    assert not made.supports_impressions, "what is given goes before the catalogue's"


async def test_pinterest_needs_no_destination(tracker: Stub) -> None:
    """S4: the destination URL is not required, Pinterest handles the redirect."""
    await create_parents(tracker)
    made = await create_tracker(tracker, samples.acquisition(network_id="pinterest-ios", install_url=""))
    assert made.type == Tracker.TYPE_ACQUISITION, "the default"


async def test_an_accounts_own_network_serves_its_apps_only(tracker: Stub) -> None:
    await tracker.CreateAccount(account_pb2.CreateAccountRequest(account=samples.account()))
    await create_parents(tracker)
    theirs = samples.network(network_id="own", name="Own", account_id="owner")
    await tracker.CreateNetwork(network_pb2.CreateNetworkRequest(network=theirs))
    agency = samples.agency(account_id="owner")
    await tracker.CreateAgency(agency_pb2.CreateAgencyRequest(agency=agency))
    made = create_tracker(tracker, samples.acquisition(network_id="own", agency_id="runners"))
    assert await wrong_fields(made) == {("tracker.network_id", "OTHER_ACCOUNT"), ("tracker.agency_id", "OTHER_ACCOUNT")}


async def test_windows_are_those_the_network_allows(tracker: Stub) -> None:
    await create_parents(tracker)
    strict = samples.san(
        network_id="strict", name="Strict", post_engagement_windows=[seconds(7 * DAY), seconds(28 * DAY)],
        post_view_windows=[seconds(0), seconds(DAY)],
    )  # fmt: skip
    await tracker.CreateNetwork(network_pb2.CreateNetworkRequest(network=strict))
    for engagement, view in ((7, 0), (28, 1)):
        wanted = samples.san_reengagement(
            tracker_id=f"ok{engagement}", network_id="strict",
            post_engagement_window=seconds(engagement * DAY), post_view_window=seconds(view * DAY),
        )  # fmt: skip
        await create_tracker(tracker, wanted)
    wrong = samples.san_reengagement(
        network_id="strict", post_engagement_window=seconds(14 * DAY), post_view_window=seconds(7 * DAY)
    )
    details = await failure(create_tracker(tracker, wrong))
    assert {(one.field, one.description) for one in details.violations} == {
        ("tracker.post_engagement_window", "must be 7 or 28 days"),
        ("tracker.post_view_window", "must be 0 or 1 days"),
    }
    left_out = samples.san_reengagement(network_id="strict")
    assert await wrong_fields(create_tracker(tracker, left_out)) == {("tracker.post_engagement_window", "REQUIRED")}
