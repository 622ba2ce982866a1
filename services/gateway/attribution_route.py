"""The route `get_attribution`: the source that a device is credited to, in the form that SDKs know."""

from collections.abc import Callable, Mapping
from typing import Any

import grpc

from libs.call_context import REQUEST_ID_HEADER
from libs.errors import InvalidArgument, Unavailable, Violation, from_rpc_error
from libs.rates import Rates
from reengage.attribution.v1 import decision_pb2, device_pb2
from reengage.attribution.v1.service_pb2_grpc import AttributionServiceStub
from reengage.ingest.v1 import record_lookup_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from services.gateway.authentication import check
from services.gateway.errors import Refused, unknown_app
from services.gateway.links import parse_query
from services.gateway.redirect import deferred_deep_link
from services.gateway.requests import Request, Response, Route, json_response
from services.gateway.settings import GatewaySettings

_RETRY_S = 10
_RETRY_NEVER = -1
_MAX_ID = 256
_ACTIONS = {
    decision_pb2.ATTRIBUTION_TYPE_INSTALL: "install",
    decision_pb2.ATTRIBUTION_TYPE_REENGAGEMENT: "reengagement",
}


class AttributionRoute:
    """The route that asks about one device. `settings` returns the newest settings or raises `Unavailable`."""

    def __init__(
        self,
        *,
        settings: Callable[[], GatewaySettings],
        attribution: AttributionServiceStub,
        ingest: IngestServiceStub,
        rates: Rates,
    ) -> None:
        self._settings, self._attribution, self._ingest, self._rates = settings, attribution, ingest, rates
        self.routes = {"/v1/cpi/get_attribution": Route(("GET", "HEAD"), self._get_attribution, for_pages=True)}

    async def _get_attribution(self, request: Request) -> Response:
        parameters = parse_query(request.query)
        return await self.respond_for(parameters.get("kochava_app_id"), parameters.get("kochava_device_id"), request)

    async def respond_for(self, app_id: Any, device_id: Any, request: Request) -> Response:
        """Returns the response for a device. Raises a ServiceError or Refused; the ids may be anything."""
        named = {"kochava_app_id": app_id, "kochava_device_id": device_id}
        wrong = [
            Violation(field=name, reason="REQUIRED", description=f"must be text of at most {_MAX_ID} characters")
            for name, value in named.items()
            if not isinstance(value, str) or not value or len(value) > _MAX_ID or "\0" in value
        ]
        if wrong:
            raise InvalidArgument(wrong)
        settings = self._settings()
        app = settings.app(app_id)
        if app is None:
            raise Refused.for_fields([unknown_app("kochava_app_id")])
        request.apps = [app]
        check(app, request)
        self._rates.take(app.app_id, app.records_per_second)
        found = await self._find(app_id, device_id, request.request_id)
        deep_link = await self._find_deep_link(app_id, found.install, settings, request) if found is not None else ""
        return json_response(_describe(device_id, found, deep_link, settings.names_of))

    async def _find(
        self, app_id: str, device_id: str, request_id: str
    ) -> device_pb2.GetDeviceAttributionResponse | None:
        """Returns what attribution knows of a device; None if it does not know the device."""
        try:
            return await self._attribution.GetDeviceAttribution(
                device_pb2.GetDeviceAttributionRequest(app_id=app_id, device_id=device_id),
                metadata=((REQUEST_ID_HEADER, request_id),),
            )
        except grpc.aio.AioRpcError as error:
            if from_rpc_error(error).code is grpc.StatusCode.NOT_FOUND:
                return None
            raise Unavailable(
                "ATTRIBUTION_UNAVAILABLE", "attribution cannot be reached just now", retry_after_s=1.0
            ) from None

    async def _find_deep_link(
        self, app_id: str, install: device_pb2.Source, settings: GatewaySettings, request: Request
    ) -> str:
        """Returns the deep link of the click that won an install; "" if it has none, or no click won."""
        tracker = settings.tracker(install.tracker_id) if install.engagement_id else None
        if tracker is None or tracker.deep_link is None:
            return ""
        try:
            found = await self._ingest.LookUpRecord(
                record_lookup_pb2.LookUpRecordRequest(app_id=app_id, record_id=install.engagement_id),
                metadata=((REQUEST_ID_HEADER, request.request_id),),
            )
        except grpc.aio.AioRpcError as error:
            if from_rpc_error(error).code is grpc.StatusCode.NOT_FOUND:
                return ""
            raise Unavailable("INGEST_UNAVAILABLE", "ingest cannot be reached just now", retry_after_s=1.0) from None
        return deferred_deep_link(tracker, found.record)


def _describe(
    device_id: str,
    found: device_pb2.GetDeviceAttributionResponse | None,
    deep_link: str,
    names_of: Callable[[str], Mapping[str, str]],
) -> dict[str, Any]:
    """Returns the JSON for a device. While `found` is None, it asks the SDK to come again.

    `attribution` is false for an organic device. Else it holds the current source, and the install source under the
    same keys with `install_`; its click has the deep link that the device could not open before. Networks, campaigns
    and trackers go by their names.
    """
    retry_s = _RETRY_S if found is None else _RETRY_NEVER
    attribution: dict[str, Any] | bool = False
    if found is not None:
        current = found.current if found.HasField("current") else found.install
        if current.tracker_id or found.install.tracker_id:
            install = _source(found.install, names_of)
            if deep_link:
                install["click"]["deep_link"] = deep_link
            attribution = {**_source(current, names_of), **{f"install_{key}": value for key, value in install.items()}}
            if current.engagement_id == found.install.engagement_id:
                attribution["click"] = install["click"]
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
