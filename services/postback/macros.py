"""The values of a template's macros for a conversion.

Times are ISO 8601 in UTC with milliseconds, `event_timestamp` is in whole seconds since 1970, flags are 1 or 0, amounts
are decimal numbers of the currency's unit. Beside the names in `MACROS`, `cp_0` to `cp_9` and every other parameter of
the winning link, every key of the event's data, and `secret.<name>` are macros; event data goes before the link's, and
what the link does not have is looked for among the custom parameters of its tracker.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from libs.domain.device_ids import is_usable
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from reengage.postback.v1 import conversion_pb2
from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID, PLATFORM_IOS

SECRET_PREFIX = "secret."  # noqa: S105  # a prefix of names
MASK = "_masked_"

_MIN_S, _MAX_S = -62_135_596_800, 253_402_300_800
"""The years 1 to 9999."""
_AMOUNT_KEYS = frozenset({"sum", "revenue", "price", "currency"})
_CUSTOM_PARAMETERS = frozenset(f"cp_{n}" for n in range(10))
_ADVERTISING_IDS = {PLATFORM_IOS: ("idfa", "idfv"), PLATFORM_ANDROID: ("adid", "oaid", "android_id")}
_PLATFORMS = {PLATFORM_IOS: "ios", PLATFORM_ANDROID: "android"}
_OTHER_IDS = ("adid", "idfa", "oaid", "android_id", "idfv", "custom", "kochava_device_id")
_OS_VERSION = re.compile(r"Android[ /-](\d+(?:\.\d+)*)|OS[ -](\d+(?:[._]\d+)*)")
_ATTRIBUTION_TYPES = {
    decision_pb2.ATTRIBUTION_TYPE_INSTALL: "install",
    decision_pb2.ATTRIBUTION_TYPE_REENGAGEMENT: "reengagement",
}
_MATCH_KINDS = {
    decision_pb2.MATCH_KIND_CLICK_ID: "click_id",
    decision_pb2.MATCH_KIND_DEVICE_ID: "device_id",
    decision_pb2.MATCH_KIND_MODELED: "modeled",
    decision_pb2.MATCH_KIND_IP: "ip",
    decision_pb2.MATCH_KIND_CLAIM: "claim",
}


class Values:
    """The values of one delivery's macros. `is_revenue` off withholds every amount and its currency.

    `claim_tracker` is the tracker that a claim of the network would go to (E3), None when there is none.
    """

    def __init__(
        self,
        conversion: conversion_pb2.Conversion,
        *,
        delivery_id: str,
        is_revenue: bool,
        claim_tracker: conversion_pb2.ClaimTracker | None = None,
    ) -> None:
        self.decision, self.record, self.names = conversion.decision, conversion.record, conversion.names
        self.claim_tracker = claim_tracker
        self.engagement = conversion.engagement
        self.delivery_id, self.is_revenue = delivery_id, is_revenue
        self.event = self.record.event
        self.click, self.impression = self.engagement.click, self.engagement.impression
        self.ad = self.click.ad if self.engagement.HasField("click") else self.impression.ad

    def get(self, name: str) -> str:
        """Returns the value of a macro, empty when there is none."""
        built_in = MACROS.get(name)
        if built_in is not None:
            return built_in(self)
        if name in _AMOUNT_KEYS and not self.is_revenue:
            return ""
        parameter = self.ad.custom_parameters.get(name) or self.names.custom_parameters.get(name, "")
        return parameter if name in _CUSTOM_PARAMETERS else self.event.event_data.get(name) or parameter

    def device_id(self, name: str) -> str:
        """Returns the device's raw id of this name, empty unless it is somebody's (A2)."""
        value = self.record.device_ids.get(name, "")
        return value.strip() if is_usable(value) else ""


def is_known(name: str) -> bool:
    """Returns whether a name is a macro in every syntax, not only as `{name}`."""
    return name in MACROS or name in _CUSTOM_PARAMETERS or name.startswith(SECRET_PREFIX)


def _time(stamp: Timestamp) -> str:
    if not stamp.seconds or not _MIN_S <= stamp.seconds < _MAX_S or not 0 <= stamp.nanos < 1_000_000_000:
        return ""  # not told, or no time at all
    moment = datetime.fromtimestamp(stamp.seconds, UTC).replace(tzinfo=None)
    return f"{moment.isoformat()}.{stamp.nanos // 1_000_000:03}Z"


def _amount(values: Values) -> str:
    if not values.is_revenue or not values.event.HasField("revenue"):
        return ""
    micros = values.event.revenue.amount_micros
    whole, part = divmod(abs(micros), 1_000_000)
    return f"{'-' if micros < 0 else ''}{whole}.{part:06}".rstrip("0").rstrip(".")


def _currency(values: Values) -> str:
    return values.event.revenue.currency_code if values.is_revenue else ""


def _advertising_id(values: Values) -> str:
    names = (*_ADVERTISING_IDS.get(values.names.platform, ()), *_OTHER_IDS)
    return next(filter(None, map(values.device_id, names)), "")


def _os(values: Values) -> str:
    if values.names.platform in _PLATFORMS:
        return _PLATFORMS[values.names.platform]
    agent = values.record.user_agent
    return "android" if "Android" in agent else "ios" if re.search(r"iPhone|iPad|iOS", agent) else ""


def _os_version(values: Values) -> str:
    found = _OS_VERSION.search(values.record.user_agent)
    return (found[1] or found[2]).replace("_", ".") if found else ""


def _att_status(values: Values) -> str:
    if not values.record.HasField("tracking_transparency"):
        return ""
    state: record_pb2.TrackingTransparency = values.record.tracking_transparency
    if state.detail:
        return record_pb2.TrackingTransparency.Detail.Name(state.detail).removeprefix("DETAIL_").lower()
    return "authorized" if state.authorized else "denied"


def _lookback(values: Values) -> str:
    return str(values.decision.lookback.seconds) if values.decision.HasField("lookback") else ""


MACROS: dict[str, Callable[[Values], str]] = {
    "event_name": lambda v: v.decision.event_name,
    "event_time": lambda v: _time(v.decision.conversion_time),
    "event_timestamp": lambda v: str(v.decision.conversion_time.seconds or ""),
    "revenue": _amount,
    "price": _amount,
    "currency": _currency,
    "quantity": lambda v: v.event.event_data.get("quantity", ""),
    "click_id": lambda v: v.click.click_id,
    "engagement_id": lambda v: v.decision.engagement_id or v.engagement.record_id,
    "engagement_time": lambda v: _time(v.engagement.event_time),
    "impression_id": lambda v: v.impression.impression_id,
    "site_id": lambda v: v.ad.site_id,
    "sub_site_id": lambda v: v.ad.sub_site_id,
    "creative_id": lambda v: v.ad.creative_id,
    "tracker_id": lambda v: v.decision.tracker_id,
    "tracker": lambda v: v.names.tracker,
    "campaign_id": lambda v: v.decision.campaign_id,
    "campaign": lambda v: v.names.campaign,
    "segment": lambda v: v.names.segment,
    "network_id": lambda v: v.decision.network_id,
    "network": lambda v: v.names.network,
    "agency": lambda v: v.names.agency,
    "attribution_type": lambda v: _ATTRIBUTION_TYPES.get(v.decision.attribution_type, ""),
    "matched_by": lambda v: _MATCH_KINDS.get(v.decision.matched_by, ""),
    "lookback": _lookback,
    "install_time": lambda v: _time(v.decision.install_time),
    "device_id": _advertising_id,
    "idfa": lambda v: v.device_id("idfa"),
    "idfv": lambda v: v.device_id("idfv"),
    "adid": lambda v: v.device_id("adid"),
    "android_id": lambda v: v.device_id("android_id"),
    "oaid": lambda v: v.device_id("oaid"),
    "kochava_device_id": lambda v: v.device_id("kochava_device_id"),
    "ip_address": lambda v: v.record.ip_address,
    "device_ua": lambda v: v.record.user_agent,
    "country": lambda v: v.record.country or v.event.event_data.get("country", ""),
    "os": _os,
    "os_version": _os_version,
    "app_id": lambda v: v.decision.app_id,
    "app_version": lambda v: v.record.app_version,
    "bundle_id": lambda v: v.names.bundle_id,
    "store_app_id": lambda v: v.names.store_app_id,
    "limit_ad_tracking": lambda v: str(int(v.record.limit_ad_tracking)),
    "att_status": _att_status,
    "delivery_id": lambda v: v.delivery_id,
}
"""Every built-in macro; none of these names is ever looked for in event data or the link's parameters."""
