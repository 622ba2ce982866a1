"""The gRPC face of attribution: what was decided, and why."""

import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any
from uuid import UUID

import structlog
from google.protobuf import timestamp_pb2

from libs.db import Pool
from libs.domain.device_ids import is_usable
from libs.domain.lanes import LANES, lane_of
from libs.domain.snapshots import Follower
from libs.errors import NotFound, Violations
from libs.messages import short_name
from libs.pages import decode_token, encode_token, page_size
from libs.time import is_timestamp, timestamp_us
from reengage.attribution.v1 import (
    decision_pb2,
    device_pb2,
    erasure_pb2,
    explanation_pb2,
    offer_pb2,
    quarantine_pb2,
    reattribution_pb2,
    shared_id_pb2,
    what_if_pb2,
)
from reengage.attribution.v1 import service_pb2_grpc as attribution_grpc
from services.attribution.decision.decide import source_in_force
from services.attribution.decision.history import Attribution as HistoryEntry
from services.attribution.decision.matching import device_key
from services.attribution.jobs.reattribution import Reattributions
from services.attribution.queries.explanations import Explanations
from services.attribution.queries.following import Filters, Following, read_token
from services.attribution.queries.offers import Offers
from services.attribution.redecide.what_if import WhatIfs
from services.attribution.storage import erasures, quarantine, shared_ids
from services.attribution.storage.decisions import list_decisions, newest_decision
from services.attribution.storage.devices import Device, device_of, find_identifiers, is_nobodys
from services.attribution.storage.reattributions import Reattribution
from services.attribution.storage.replay import Period
from services.attribution.wire.decisions import source_message
from services.attribution.wire.erasures import erasure_message
from services.attribution.wire.quarantine import check_enums, item_message, read_filter
from services.attribution.wire.reattributions import reattribution_message
from services.attribution.wire.rulebook import Rulebook
from services.attribution.wire.shared_ids import shared_id_message

_log = structlog.get_logger()

_MAX_ID_CHARACTERS = 256
_MAX_OVERRIDES = 10_000
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Attribution(attribution_grpc.AttributionServiceServicer):
    """AttributionService; the contract is in its proto."""

    def __init__(
        self,
        pool: Pool,
        settings: Follower[Rulebook],
        *,
        explanations: Explanations,
        following: Following,
        what_ifs: WhatIfs,
        reattributions: Reattributions,
        offers: Offers,
        now_us: Callable[[], int],
    ) -> None:
        self._what_ifs, self._reattributions, self._offers = what_ifs, reattributions, offers
        self._pool, self._settings, self._now_us = pool, settings, now_us
        self._explanations, self._following = explanations, following

    async def GetDecision(
        self, request: decision_pb2.GetDecisionRequest, context: Any
    ) -> decision_pb2.GetDecisionResponse:
        violations = Violations()
        violations.check_text("app_id", request.app_id, max_characters=_MAX_ID_CHARACTERS, required=True)
        violations.check_text("conversion_id", request.conversion_id, max_characters=_MAX_ID_CHARACTERS, required=True)
        violations.check()
        found = await newest_decision(self._pool, lane_of(request.app_id), request.app_id, request.conversion_id)
        if found is None:
            raise NotFound("CONVERSION_NOT_FOUND", "there is no decision about this conversion (yet)")
        return decision_pb2.GetDecisionResponse(decision=decision_pb2.Decision.FromString(found))

    async def ExplainDecision(
        self, request: explanation_pb2.ExplainDecisionRequest, context: Any
    ) -> explanation_pb2.ExplainDecisionResponse:
        violations = Violations()
        violations.check_text("app_id", request.app_id, max_characters=_MAX_ID_CHARACTERS, required=True)
        violations.check_text("conversion_id", request.conversion_id, max_characters=_MAX_ID_CHARACTERS)
        violations.check_text("device_id", request.device_id, max_characters=_MAX_ID_CHARACTERS)
        if bool(request.conversion_id) == bool(request.device_id):
            violations.add("conversion_id", "REQUIRED", "set exactly one of conversion_id and device_id")
        if request.device_id and not request.HasField("time"):
            violations.add("time", "REQUIRED", "must be set with device_id")
        time_us = _time_us(violations, "time", request.time)
        violations.check()
        if request.conversion_id:
            return await self._explanations.of_record(request.app_id, request.conversion_id)
        device = await self._device(request.app_id, request.device_id)
        return await self._explanations.nearest(request.app_id, device.device_id, time_us)

    async def ListDecisions(
        self, request: decision_pb2.ListDecisionsRequest, context: Any
    ) -> decision_pb2.ListDecisionsResponse:
        violations = Violations()
        violations.check_text("app_id", request.app_id, max_characters=_MAX_ID_CHARACTERS, required=True)
        violations.check_text("tracker_id", request.tracker_id, max_characters=_MAX_ID_CHARACTERS)
        if not set(request.outcomes) <= set(decision_pb2.Outcome.values()):
            violations.add("outcomes", "UNKNOWN_VALUE", "must be values of Outcome")
        size = page_size(request.page_size, violations)
        after = decode_token(request.page_token, (int,), violations)
        start_us = _time_us(violations, "start_time", request.start_time)
        end_us = _time_us(violations, "end_time", request.end_time)
        violations.check()
        page, is_more = await list_decisions(
            self._pool,
            lane_of(request.app_id),
            request.app_id,
            tracker_id=request.tracker_id or None,
            outcomes=request.outcomes,
            start_us=start_us if request.HasField("start_time") else None,
            end_us=end_us if request.HasField("end_time") else None,
            before=int(after[0]) if after else None,
            size=size,
        )
        return decision_pb2.ListDecisionsResponse(
            decisions=[decision_pb2.Decision.FromString(decision) for _, decision in page],
            next_page_token=encode_token(page[-1][0]) if is_more else "",
        )

    async def GetDeviceAttribution(
        self, request: device_pb2.GetDeviceAttributionRequest, context: Any
    ) -> device_pb2.GetDeviceAttributionResponse:
        violations = Violations()
        violations.check_text("app_id", request.app_id, max_characters=_MAX_ID_CHARACTERS, required=True)
        violations.check_text("device_id", request.device_id, max_characters=_MAX_ID_CHARACTERS, required=True)
        violations.check()
        device = await self._device(request.app_id, request.device_id)
        rules = self._settings.current.apps.get(request.app_id)
        trackers = rules.trackers if rules else {}

        def shown(source: HistoryEntry) -> device_pb2.Source:
            tracker = trackers.get(source.tracker_id or "")
            return source_message(source, tracker.tracker.campaign if tracker and not source.redacted else "")

        history, now_us = device.history, self._now_us()
        install = history.first_install
        current = history.source_at(now_us) if rules is None else source_in_force(now_us, history, rules)
        response = device_pb2.GetDeviceAttributionResponse(
            device_id=str(device.device_id),
            history=[shown(source) for source in history.attributions],
            identities=device.identities,
        )
        if install is not None:
            response.install.CopyFrom(shown(install))
        if current is not None:
            response.current.CopyFrom(shown(current))
        return response

    async def ListSharedIds(
        self, request: shared_id_pb2.ListSharedIdsRequest, context: Any
    ) -> shared_id_pb2.ListSharedIdsResponse:
        violations = Violations()
        violations.check_text("app_id", request.app_id, max_characters=_MAX_ID_CHARACTERS, required=True)
        size = page_size(request.page_size, violations)
        before = _shared_id_place(violations, request.page_token)
        violations.check()
        found = await shared_ids.list_page(self._pool, request.app_id, before, size + 1)
        page = found[:size]
        last = page[-1].place if len(found) > size else None
        return shared_id_pb2.ListSharedIdsResponse(
            shared_ids=map(shared_id_message, page),
            next_page_token=encode_token(last.share_time_us, last.id_key.hex(), last.kind) if last else "",
        )

    async def WatchDecisions(
        self, request: decision_pb2.WatchDecisionsRequest, context: Any
    ) -> AsyncIterator[decision_pb2.WatchDecisionsResponse]:
        violations = Violations()
        for field in ("app_id", "network_id", "tracker_id"):
            violations.check_text(field, getattr(request, field), max_characters=_MAX_ID_CHARACTERS)
        filters = Filters(app_id=request.app_id, network_id=request.network_id, tracker_id=request.tracker_id)
        place = read_token(request.resume_token, filters, violations)
        start_us = _time_us(violations, "start_time", request.start_time)
        violations.check()
        if request.app_id and request.app_id not in self._settings.current.apps:
            raise NotFound("APP_NOT_FOUND", "there is no such app")
        if request.HasField("start_time"):
            place = await self._following.at(filters, start_us)
        elif request.from_now:
            place = await self._following.now(filters)
        async with aclosing(self._following.follow(filters, place or self._following.first(filters))) as responses:
            async for response in responses:
                yield response

    async def ForgetDevice(
        self, request: erasure_pb2.ForgetDeviceRequest, context: Any
    ) -> erasure_pb2.ForgetDeviceResponse:
        violations = Violations()
        violations.check_text("app_id", request.app_id, max_characters=_MAX_ID_CHARACTERS, required=True)
        violations.check_text("device_id", request.device_id, max_characters=_MAX_ID_CHARACTERS, required=True)
        if request.device_id and not is_usable(request.device_id):
            violations.add("device_id", "INVALID_ID", "is not the id of a device: all zero, a macro, or a placeholder")
        elif await self._is_nobodys(request.app_id, request.device_id):
            violations.add("device_id", "INVALID_ID", "is shared by several devices: name another id of the device")
        violations.check()
        # Also for an app that is unknown: records that name one are refused, and their refusals are kept.
        erasure = await erasures.begin(self._pool, request.app_id, request.device_id)
        return erasure_pb2.ForgetDeviceResponse(erasure=erasure_message(erasure))

    async def GetErasure(self, request: erasure_pb2.GetErasureRequest, context: Any) -> erasure_pb2.GetErasureResponse:
        violations = Violations()
        violations.check_text("app_id", request.app_id, max_characters=_MAX_ID_CHARACTERS, required=True)
        violations.check_text("erasure_id", request.erasure_id, max_characters=_MAX_ID_CHARACTERS, required=True)
        violations.check()
        erasure_id = _as_uuid(request.erasure_id)
        erasure = await erasures.find(self._pool, request.app_id, erasure_id) if erasure_id else None
        if erasure is None:
            raise NotFound("ERASURE_NOT_FOUND", "this app has no such erasure")
        return erasure_pb2.GetErasureResponse(erasure=erasure_message(erasure))

    async def ListErasures(
        self, request: erasure_pb2.ListErasuresRequest, context: Any
    ) -> erasure_pb2.ListErasuresResponse:
        violations = Violations()
        violations.check_text("app_id", request.app_id, max_characters=_MAX_ID_CHARACTERS, required=True)
        size = page_size(request.page_size, violations)
        token = decode_token(request.page_token, (int, UUID), violations)
        violations.check()
        before = (int(token[0]), UUID(str(token[1]))) if token else None
        found = await erasures.list_page(self._pool, request.app_id, before, size + 1)
        last = found[:size][-1] if len(found) > size else None
        return erasure_pb2.ListErasuresResponse(
            erasures=map(erasure_message, found[:size]),
            next_page_token=encode_token(last.request_time_us, str(last.erasure_id)) if last else "",
        )

    async def WhatIf(
        self, request: what_if_pb2.WhatIfRequest, context: Any
    ) -> AsyncIterator[what_if_pb2.WhatIfResponse]:
        violations = Violations()
        period = _period(violations, request)
        if len(request.overrides) > _MAX_OVERRIDES:
            violations.add("overrides", "TOO_MANY", f"must be at most {_MAX_OVERRIDES:,}")
        token = decode_token(request.resume_token, (UUID, int), violations, field="resume_token")
        violations.check()
        resume = (UUID(str(token[0])), int(token[1])) if token else None
        async with aclosing(self._what_ifs.run(period, request.overrides, resume)) as responses:
            async for response in responses:
                yield response

    async def Reattribute(
        self, request: reattribution_pb2.ReattributeRequest, context: Any
    ) -> reattribution_pb2.ReattributeResponse:
        violations = Violations()
        period = _period(violations, request)
        if not _ID.fullmatch(request.reattribution_id):
            violations.add("reattribution_id", "INVALID_ID", "must be 1 to 64 of A-Z a-z 0-9 . _ -")
        violations.check()
        job = await self._reattributions.start(period, request.reattribution_id, send_postbacks=request.send_postbacks)
        return reattribution_pb2.ReattributeResponse(reattribution=reattribution_message(job))

    async def GetReattribution(
        self, request: reattribution_pb2.GetReattributionRequest, context: Any
    ) -> reattribution_pb2.GetReattributionResponse:
        job = await self._reattribution(request)
        return reattribution_pb2.GetReattributionResponse(reattribution=reattribution_message(job))

    async def ListReattributions(
        self, request: reattribution_pb2.ListReattributionsRequest, context: Any
    ) -> reattribution_pb2.ListReattributionsResponse:
        violations = Violations()
        violations.check_text("app_id", request.app_id, max_characters=_MAX_ID_CHARACTERS, required=True)
        size = page_size(request.page_size, violations)
        token = decode_token(request.page_token, (int, str), violations)
        violations.check()
        before = (int(token[0]), str(token[1])) if token else None
        found = await self._reattributions.page(request.app_id, before=before, limit=size + 1)
        last = found[:size][-1] if len(found) > size else None
        return reattribution_pb2.ListReattributionsResponse(
            reattributions=[reattribution_message(job) for job in found[:size]],
            next_page_token=encode_token(*last.place) if last else "",
        )

    async def CancelReattribution(
        self, request: reattribution_pb2.CancelReattributionRequest, context: Any
    ) -> reattribution_pb2.CancelReattributionResponse:
        job = await self._reattribution(request)
        stopped = await self._reattributions.cancel(job)
        return reattribution_pb2.CancelReattributionResponse(reattribution=reattribution_message(stopped))

    async def ListOfferedPostbacks(
        self, request: offer_pb2.ListOfferedPostbacksRequest, context: Any
    ) -> offer_pb2.ListOfferedPostbacksResponse:
        violations = Violations()
        size = page_size(request.page_size, violations)
        token = decode_token(request.page_token, (int,), violations)
        job = await self._reattribution(request, violations)
        offered, last = await self._offers.page(job, after=int(token[0]) if token else -1, limit=size)
        return offer_pb2.ListOfferedPostbacksResponse(
            postbacks=offered, next_page_token="" if last is None else encode_token(last)
        )

    async def SendOfferedPostbacks(
        self, request: offer_pb2.SendOfferedPostbacksRequest, context: Any
    ) -> offer_pb2.SendOfferedPostbacksResponse:
        job = await self._reattribution(request)
        return offer_pb2.SendOfferedPostbacksResponse(created_count=await self._offers.send(job))

    async def ListQuarantined(
        self, request: quarantine_pb2.ListQuarantinedRequest, context: Any
    ) -> quarantine_pb2.ListQuarantinedResponse:
        violations = Violations()
        violations.check_text("app_id", request.app_id, max_characters=_MAX_ID_CHARACTERS)
        check_enums(request.work, 0, violations)
        size = page_size(request.page_size, violations)
        token = decode_token(request.page_token, (int, int), violations)
        violations.check()
        after = (int(token[0]), int(token[1])) if token else None
        if after and not 0 <= after[0] < LANES:
            violations.add("page_token", "INVALID_TOKEN", "must come from an earlier response, unchanged")
            violations.check()
        found = await quarantine.list_page(self._pool, request.app_id, request.work, after, size + 1)
        last = found[:size][-1] if len(found) > size else None
        return quarantine_pb2.ListQuarantinedResponse(
            items=map(item_message, found[:size]),
            next_page_token=encode_token(last.what.lane, last.number) if last else "",
        )

    async def RetryQuarantined(
        self, request: quarantine_pb2.RetryQuarantinedRequest, context: Any
    ) -> quarantine_pb2.RetryQuarantinedResponse:
        violations = Violations()
        wanted = read_filter(request.filter, violations)
        violations.check()
        count = await quarantine.ask_retry(self._pool, wanted)
        return quarantine_pb2.RetryQuarantinedResponse(found_count=count)

    async def DropQuarantined(
        self, request: quarantine_pb2.DropQuarantinedRequest, context: Any
    ) -> quarantine_pb2.DropQuarantinedResponse:
        violations = Violations()
        wanted = read_filter(request.filter, violations)
        violations.check_text("reason", request.reason, max_characters=_MAX_ID_CHARACTERS, required=True)
        violations.check()
        dropped = await quarantine.drop(self._pool, wanted)
        for (work, app_id), count in sorted(Counter(dropped).items()):
            name = short_name(quarantine_pb2.QuarantineWork.DESCRIPTOR, work)
            _log.warning("quarantine.dropped", work=name, app_id=app_id, count=count, reason=request.reason)
        return quarantine_pb2.DropQuarantinedResponse(dropped_count=len(dropped))

    async def _reattribution(self, request: Any, violations: Violations | None = None) -> Reattribution:
        """Returns the re-attribution that a request names."""
        violations = violations or Violations()
        violations.check_text("app_id", request.app_id, max_characters=_MAX_ID_CHARACTERS, required=True)
        violations.check_text(
            "reattribution_id", request.reattribution_id, max_characters=_MAX_ID_CHARACTERS, required=True
        )
        violations.check()
        return await self._reattributions.get(request.app_id, request.reattribution_id)

    async def _device(self, app_id: str, device_id: str) -> Device:
        """Returns the device with an id of whatever kind, or with this id of ours."""
        device = await device_of(self._pool, device_key(app_id, device_id), _as_uuid(device_id))
        if device is not None and device.app_id == app_id:
            return device
        if await self._is_nobodys(app_id, device_id):
            raise NotFound("DEVICE_NOT_FOUND", "this id is shared by several devices, so it leads to none")
        raise NotFound("DEVICE_NOT_FOUND", "nothing was received from this device")

    async def _is_nobodys(self, app_id: str, device_id: str) -> bool:
        """Returns whether an id is shared (A8)."""
        key = device_key(app_id, device_id)
        async with self._pool.acquire() as connection:
            return is_nobodys(key, await find_identifiers(connection, [key]))


def _time_us(violations: Violations, field: str, time: timestamp_pb2.Timestamp) -> int:
    """Returns a time in microseconds; notes a violation if it is none."""
    if not is_timestamp(time):
        violations.add(field, "INVALID_TIME", "seconds or nanos are out of range")
    return timestamp_us(time)


def _shared_id_place(violations: Violations, token: str) -> shared_ids.Place | None:
    parts = decode_token(token, (int, str, str), violations)
    try:
        return shared_ids.Place(int(parts[0]), bytes.fromhex(str(parts[1])), str(parts[2])) if parts else None
    except ValueError:
        violations.add("page_token", "INVALID_TOKEN", "must come from an earlier response, unchanged")
        return None


def _period(
    violations: Violations, request: what_if_pb2.WhatIfRequest | reattribution_pb2.ReattributeRequest
) -> Period:
    violations.check_text("app_id", request.app_id, max_characters=_MAX_ID_CHARACTERS, required=True)
    for field in ("start_time", "end_time"):
        if not request.HasField(field):
            violations.add(field, "REQUIRED", "must be set")
    start_us = _time_us(violations, "start_time", request.start_time)
    end_us = _time_us(violations, "end_time", request.end_time)
    if request.HasField("end_time") and end_us <= start_us:
        violations.add("end_time", "OUT_OF_RANGE", "must be after start_time")
    return Period(app_id=request.app_id, start_us=start_us, end_us=end_us)


def _as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
