"""The gRPC face of attribution: what was decided, and why."""

import uuid
from collections.abc import Callable
from typing import Any

from libs.errors import NotFound, Violations
from libs.lanes import lane_of
from libs.pages import decode_token, encode_token, page_size
from libs.snapshots import Follower
from reengage.attribution.v1 import attribution_pb2, attribution_pb2_grpc
from services.attribution.answers import sentences, source_message, summary
from services.attribution.decide import credited_source
from services.attribution.history import Attribution as HistoryEntry
from services.attribution.matching import DEVICE_ID_KINDS
from services.attribution.records import identity_key
from services.attribution.settings import Settings
from services.attribution.store import Store

_RAW_KINDS = (*DEVICE_ID_KINDS, "rida", "faid", "imei", "udid", "mac", "odin")
_ID_KINDS = (*_RAW_KINDS, *(f"{kind}_{hash_}" for kind in _RAW_KINDS for hash_ in ("md5", "sha1", "sha256")))
"""Names of ids that ingest takes: those of A2 and a few more."""
_MAX_ID = 256


class Attribution(attribution_pb2_grpc.AttributionServiceServicer):
    """AttributionService; the contract is in its proto."""

    def __init__(self, store: Store, settings: Follower[Settings], now_us: Callable[[], int]) -> None:
        self._store, self._settings, self._now_us = store, settings, now_us

    async def GetDecision(
        self, request: attribution_pb2.GetDecisionRequest, context: Any
    ) -> attribution_pb2.GetDecisionResponse:
        decision = await self._decision(request.app_id, request.conversion_id)
        return attribution_pb2.GetDecisionResponse(decision=decision)

    async def ExplainDecision(
        self, request: attribution_pb2.ExplainDecisionRequest, context: Any
    ) -> attribution_pb2.ExplainDecisionResponse:
        decision = await self._decision(request.app_id, request.conversion_id)
        return attribution_pb2.ExplainDecisionResponse(
            decision=decision, summary=summary(decision), sentences=sentences(decision)
        )

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
        violations.check()
        found = await self._store.list_decisions(
            lane_of(request.app_id),
            request.app_id,
            tracker_id=request.tracker_id or None,
            outcomes=request.outcomes,
            start_us=request.start_time.ToMicroseconds() if request.HasField("start_time") else None,
            end_us=request.end_time.ToMicroseconds() if request.HasField("end_time") else None,
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
        keys = [identity_key(request.app_id, kind, request.device_id) for kind in _ID_KINDS]
        device = await self._store.device_of(keys, _as_uuid(request.device_id))
        if device is None or device.app_id != request.app_id:
            raise NotFound("DEVICE_NOT_FOUND", "nothing was received of this device")
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

    async def _decision(self, app_id: str, conversion_id: str) -> attribution_pb2.Decision:
        violations = Violations()
        _required(violations, "app_id", app_id)
        _required(violations, "conversion_id", conversion_id)
        violations.check()
        found = await self._store.newest_decision(lane_of(app_id), app_id, conversion_id)
        if found is None:
            raise NotFound("CONVERSION_NOT_FOUND", "no decision on this conversion (yet)")
        return attribution_pb2.Decision.FromString(found)


def _required(violations: Violations, field: str, value: str) -> None:
    if not value:
        violations.add(field, "REQUIRED", "must be set")
    _plain(violations, field, value)


def _plain(violations: Violations, field: str, value: str) -> None:
    if "\0" in value:
        violations.add(field, "INVALID_TEXT", "must not contain NUL")
    if len(value) > _MAX_ID:
        violations.add(field, "TOO_LONG", f"at most {_MAX_ID} characters")


def _as_uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
