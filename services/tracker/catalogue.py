"""The built-in catalogue of networks, from catalogue.json: one entry a network, each on one or both platforms."""

import json
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration

from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID, PLATFORM_IOS
from reengage.tracker.v1.network_pb2 import Network, PostbackNeed
from reengage.tracker.v1.status_pb2 import STATUS_LIVE

_DAY = 86400
_PLATFORMS = {"ios": (PLATFORM_IOS, "iOS"), "android": (PLATFORM_ANDROID, "Android")}


def _networks(entry: dict[str, Any]) -> list[Network]:
    return [
        Network(
            network_id=f"{entry['id']}-{platform}",
            name=f"{entry['name']} {_PLATFORMS[platform][1]}",
            platform=_PLATFORMS[platform][0],
            self_attributing=entry.get("self_attributing", False),
            handles_redirects=entry.get("handles_redirects", False),
            supports_impressions=entry.get("supports_impressions"),
            post_engagement_windows=[Duration(seconds=days * _DAY) for days in entry.get("post_engagement_days", ())],
            post_view_windows=[Duration(seconds=days * _DAY) for days in entry.get("post_view_days", ())],
            postback_needs=[PostbackNeed(**need) for need in entry["needs"]],
            link_macros=entry.get("link_macros", {}),
            status=STATUS_LIVE,
            built_in=True,
            etag="0",
        )
        for platform in entry.get("platforms", _PLATFORMS)
    ]


NETWORKS: dict[tuple[str, ...], Network] = {
    (network.network_id,): network
    for entry in json.loads(Path(__file__).with_name("catalogue.json").read_text())
    for network in _networks(entry)
}
"""All of them by key, live and of revision 0."""
