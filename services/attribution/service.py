"""The gRPC face of attribution: what was decided, and why."""

import uuid
from collections.abc import Callable
from typing import Any

from google.protobuf import timestamp_pb2

from libs.errors import NotFound, Violations
from libs.lanes import lane_of
from libs.pages import decode_token, encode_token, page_size
from libs.snapshots import Follower
from reengage.attribution.v1 import attribution_pb2, attribution_pb2_grpc
from services.attribution.answers import source_message
from services.attribution.decide import credited_source
from services.attribution.explaining import Explanations
from services.attribution.history import Attribution as HistoryEntry
from services.attribution.matching import ID_KINDS
from services.attribution.records import identity_key
from services.attribution.settings import Settings
from services.attribution.store import Device, Store

_MAX_ID = 256


class Attribution(attribution_pb2_grpc.AttributionServiceServicer):
    """AttributionService; the contract is in its proto."""

    def __init__(
        self,
        store: Store,
        settings: Follower[Settings],
        *,
        explanations: Explanations,
        now_us: Callable[[], int],
    ) -> None:
        self._store, self._settings, self._now_us = store, settings, now_us
        self._explanations = explanations

    async def GetDecision(
        self, request: attribution_pb2.GetDecisionRequest, context: Any
    ) -> attribution_pb2.GetDecisionResponse:
        violations = Violations()
        _required(violations, "app_id", request.app_id)
        _required(violations, "conversion_id", request.conversion_id)
        violations.check()
        found = await self._store.newest_decision(lane_of(request.app_id), request.app_id, request.conversion_id)
        if found is None:
            raise NotFound("CONVERSION_NOT_FOUND", "no decision on this conversion (yet)")
        return attribution_pb2.GetDecisionResponse(decision=attribution_pb2.Decision.FromString(found))

    async def ExplainDecision(
        self, request: attribution_pb2.ExplainDecisionRequest, context: Any
    ) -> attribution_pb2.ExplainDecisionResponse:
        violations = Violations()
        _required(violations, "app_id", request.app_id)
        _plain(violations, "conversion_id", request.conversion_id)
        _plain(violations, "device_id", request.device_id)
        if bool(request.conversion_id) == bool(request.device_id):
            violations.add("conversion_id", "REQUIRED", "exactly one of it and device_id")
        if request.device_id and not request.HasField("time"):
            violations.add("time", "REQUIRED", "must be set with device_id")
        time_us = _time_us(violations, "time", request.time)
        violations.check()
        if request.conversion_id:
            return await self._explanations.of_record(request.app_id, request.conversion_id)
        device = await self._device(request.app_id, request.device_id)
        return await self._explanations.nearest(request.app_id, device.device_id, time_us)

    async def ListDecisions(
        self, request: attribution_pb2.ListDecisionsRequest, context: Any
    ) -> attribution_pb2.ListDecisionsResponse:
        violations = Violations()
        _required(violations, "app_id", request.app_id)
        _plain(violations, "tracker_id", request.tracker_id)
        if not set(request.outcomes) <= set(attribution_pb2.Outcome.values()):
            violations.add("outcomes", "UNKNOWN_VALUE", "must be values of Outcome")
        size = page_size(request.page_size, violations)
        after = decode_token(request.page_token, (int,), violations)
        start_us = _time_us(violations, "start_time", request.start_time)
        end_us = _time_us(violations, "end_time", request.end_time)
        violations.check()
        found = await self._store.list_decisions(
            lane_of(request.app_id),
            request.app_id,
            tracker_id=request.tracker_id or None,
            outcomes=request.outcomes,
            start_us=start_us if request.HasField("start_time") else None,
            end_us=end_us if request.HasField("end_time") else None,
            before=int(after[0]) if after else None,
            limit=size + 1,
        )
        page = found[:size]
        return attribution_pb2.ListDecisionsResponse(
            decisions=[attribution_pb2.Decision.FromString(decision) for _, decision in page],
            next_page_token=encode_token(page[-1][0]) if len(found) > size else "",
        )

    async def GetDeviceAttribution(
        self, request: attribution_pb2.GetDeviceAttributionRequest, context: Any
    ) -> attribution_pb2.GetDeviceAttributionResponse:
        violations = Violations()
        _required(violations, "app_id", request.app_id)
        _required(violations, "device_id", request.device_id)
        violations.check()
        device = await self._device(request.app_id, request.device_id)
        rules = self._settings.current.apps.get(request.app_id)
        trackers = rules.trackers if rules else {}

        def shown(source: HistoryEntry) -> attribution_pb2.Source:
            tracker = trackers.get(source.tracker_id or "")
            return source_message(source, tracker.tracker.campaign if tracker and not source.redacted else "")

        history, now_us = device.history, self._now_us()
        install, current = history.first_install, history.source_at(now_us)
        if current is not None and current.tracker_id is not None and rules is not None:
            current = credited_source(now_us, history, rules)  # its period may have passed
        response = attribution_pb2.GetDeviceAttributionResponse(
            device_id=str(device.device_id),
            history=[shown(source) for source in history.attributions],
            identities=device.identities,
        )
        if install is not None:
            response.install.CopyFrom(shown(install))
        if current is not None:
            response.current.CopyFrom(shown(current))
        return response

    async def _device(self, app_id: str, device_id: str) -> Device:
        """The device that has an id, of whatever kind, or this id of ours."""
        keys = [identity_key(app_id, kind, device_id) for kind in ID_KINDS]
        device = await self._store.device_of(keys, _as_uuid(device_id))
        if device is None or device.app_id != app_id:
            raise NotFound("DEVICE_NOT_FOUND", "nothing was received of this device")
        return device


def _required(violations: Violations, field: str, value: str) -> None:
    if not value:
        violations.add(field, "REQUIRED", "must be set")
    _plain(violations, field, value)


def _plain(violations: Violations, field: str, value: str) -> None:
    if "\0" in value:
        violations.add(field, "INVALID_TEXT", "must not contain NUL")
    if len(value) > _MAX_ID:
        violations.add(field, "TOO_LONG", f"at most {_MAX_ID} characters")


def _time_us(violations: Violations, field: str, time: timestamp_pb2.Timestamp) -> int:
    # The bounds of google.protobuf.Timestamp: years 1 to 9999.
    if not (-62_135_596_800 <= time.seconds < 253_402_300_800 and 0 <= time.nanos < 1_000_000_000):
        violations.add(field, "INVALID_TIME", "seconds or nanos are out of range")
    return time.seconds * 1_000_000 + time.nanos // 1000


def _as_uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
