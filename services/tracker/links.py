"""The links to hand to a network: paths of the gateway, with the network's macros in their queries. Pure."""

from collections.abc import Iterable
from urllib.parse import quote

from libs.domain.short_codes import short_code
from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.tracker_pb2 import Tracker, TrackerLinks

LINK_PARAMETERS = (
    "click_id", "impression_id", "site_id", "sub_site_id", "creative_id", "partner_campaign_id",
    "partner_campaign_name", "idfa", "adid", "ip_address", "device_ua",
)  # fmt: skip
"""The parameters of our links that networks fill with macros."""
_MACRO_CHARACTERS = "{}[]()<>$%_-:.|!*~"
"""The marks of macros, which stay as they are, so that the network finds them."""


def tracker_links(tracker: Tracker, network: Network) -> TrackerLinks:
    """Returns the links of a tracker; empty ones for a self-attributing network, which takes no links."""
    if network.self_attributing:
        return TrackerLinks()
    device_id = "adid" if network.platform == PLATFORM_ANDROID else "idfa"
    other_device_id = "idfa" if device_id == "adid" else "adid"
    common = ("site_id", "creative_id", device_id)
    # Parameters beside these are of use, but only to a network that has a macro for them.
    extra = [
        name
        for name in LINK_PARAMETERS
        if name in network.link_macros and name not in (*common, "click_id", "impression_id", other_device_id)
    ]
    click = _query(network, ("click_id", *common, *extra))
    impression = _query(network, ("impression_id", *common, *extra))
    return TrackerLinks(
        click=f"/c/{tracker.tracker_id}?{click}",
        short=f"/C/{short_code(tracker.tracker_id)}",
        impression=f"/track/impression?event=view&campaign_id={tracker.tracker_id}&{impression}",
    )


def _query(network: Network, names: Iterable[str]) -> str:
    """Returns parameters with the network's macros, or with our own placeholders."""
    return "&".join(
        f"{name}={quote(network.link_macros.get(name) or f'{{{name}}}', _MACRO_CHARACTERS)}" for name in names
    )
