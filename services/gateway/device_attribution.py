"""The answer to `get_attribution`, as SDKs know it. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

from reengage.attribution.v1 import decision_pb2, device_pb2

_SOON_S = 10
NEVER = -1
_ACTIONS = {
    decision_pb2.ATTRIBUTION_TYPE_INSTALL: "install",
    decision_pb2.ATTRIBUTION_TYPE_REENGAGEMENT: "reengagement",
}


def describe(
    device_id: str,
    found: device_pb2.GetDeviceAttributionResponse | None,
    names_of: Callable[[str], Mapping[str, str]],
) -> dict[str, Any]:
    """The JSON for a device; `found` is None while the device is not known, which asks the SDK to come again.

    `attribution` is false for an organic device; else the source it is credited to now, and its install's source under
    the same keys with `install_`. Networks, campaigns and trackers go by their names.
    """
    retry_s = _SOON_S if found is None else NEVER
    attribution: dict[str, Any] | bool = False
    if found is not None:
        current = found.current if found.HasField("current") else found.install
        if current.tracker_id or found.install.tracker_id:
            install = _source(found.install, names_of)
            attribution = {**_source(current, names_of), **{f"install_{key}": value for key, value in install.items()}}
    return {
        "success": 1,
        "action": "get_attribution",
        "data": {"kochava_device_id": device_id, "retry": retry_s, "attribution": attribution},
    }


def _source(source: device_pb2.Source, names_of: Callable[[str], Mapping[str, str]]) -> dict[str, Any]:
    names = names_of(source.tracker_id) if source.tracker_id else {}
    return {
        "network": names.get("network", ""),
        "campaign": names.get("campaign", ""),
        "tracker": names.get("tracker", ""),
        "site": "",
        "creative": "",
        "attribution_action": _ACTIONS.get(source.attribution_type, ""),
        "matched_by": decision_pb2.MatchKind.Name(source.matched_by).removeprefix("MATCH_KIND_").lower()
        if source.matched_by
        else "",
        "click": {"ko_click_id": source.engagement_id} if source.engagement_id else {},
    }
