"""Explains what became of a record (G3): decided, and why; pending; refused; or nothing that is decided."""

import uuid
from collections.abc import Sequence

import grpc
from google.protobuf import timestamp_pb2

from libs.call_context import remaining_s
from libs.db import Pool
from libs.domain.lanes import lane_of
from libs.errors import NotFound, Unavailable
from libs.time import SECOND_US, timestamp_us
from reengage.attribution.v1 import decision_pb2, explanation_pb2
from reengage.ingest.v1 import record_lookup_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1 import claim_pb2
from services.attribution.queries import sentences
from services.attribution.queries.background import Background, Decided
from services.attribution.queries.sentences import Attributed, Late, Replaced
from services.attribution.storage.decisions import newest_decision
from services.attribution.storage.explanations import (
    PendingConversion,
    Version,
    is_decided_up_to,
    latest_attribution,
    merged_devices,
    nearest_conversion,
    newest_versions,
    pending_conversion,
    stored_engagements,
    won_conversions,
)

Explanation = explanation_pb2.ExplainDecisionResponse

LOOK_UP_TIMEOUT_S = 2.0
"""The time that ingest has to respond: well within the deadline of the caller, who must learn that it hangs."""


class Explanations:
    """Explanations from what attribution knows of a record and, if it did not decide it, from what ingest knows."""

    def __init__(
        self,
        pool: Pool,
        ingest: IngestServiceStub,
        background: Background,
        *,
        look_up_timeout_s: float = LOOK_UP_TIMEOUT_S,
    ) -> None:
        self._pool, self._ingest, self._background = pool, ingest, background
        self._look_up_timeout_s = look_up_timeout_s

    async def of_record(self, app_id: str, record_id: str) -> Explanation:
        """Explains a record.

        Raises NotFound `CONVERSION_NOT_FOUND`, Unavailable `LOG_UNAVAILABLE` or `SETTINGS_UNAVAILABLE`.
        """
        explained = await self._decided_or_pending(app_id, record_id) or await self._engagement(app_id, record_id)
        if explained is not None:
            return explained
        looked_up = await self._look_up(app_id, record_id)
        if not looked_up.HasField("record"):
            return _without_record(looked_up)
        is_taken = await is_decided_up_to(self._pool, lane_of(app_id), looked_up.place)
        # It may have been decided meanwhile, and only what was taken without leaving anything is no conversion.
        return await self._decided_or_pending(app_id, record_id) or await self._undecided(looked_up, is_taken=is_taken)

    async def nearest(self, app_id: str, device_id: uuid.UUID, time_us: int) -> Explanation:
        """Returns the explanation of the conversion of a device nearest to a time. Raises as `of_record` does."""
        lane, device_ids = lane_of(app_id), await merged_devices(self._pool, device_id, None)
        record_id = await nearest_conversion(self._pool, lane, app_id, device_ids, time_us)
        if record_id is None:
            raise NotFound("CONVERSION_NOT_FOUND", "no conversion of this device was decided (yet)")
        return await self.of_record(app_id, record_id)

    async def _decided_or_pending(self, app_id: str, record_id: str) -> Explanation | None:
        lane = lane_of(app_id)
        if versions := await newest_versions(self._pool, lane, app_id, record_id):
            return await self._decided(lane, *versions)
        if pending := await pending_conversion(self._pool, lane, app_id, record_id):
            return _pending(pending)
        return None

    async def _decided(self, lane: int, newest: Version, before: Version | None = None) -> Explanation:
        decided = Decided.of(newest)
        decision = decided.decision
        is_too_early = decision.reason == decision_pb2.REASON_MTR_NOT_MET
        latest = await self._latest_attribution(lane, decision, newest.sequence) if is_too_early else None
        late_pings = await self._background.late_pings(decided)
        known = await self._background.known(decided, (*decision.candidates, *late_pings))
        replaced = None if before is None else await self._replaced(lane, decision, newest, before)
        return Explanation(
            state=Explanation.STATE_DECIDED,
            decision=decision,
            summary=sentences.summary(decision, latest=latest, replaced=replaced),
            sentences=sentences.sentences(decision, late_pings=late_pings, answers=_answers(newest), known=known),
            won_conversion_ids=await won_conversions(self._pool, lane, decision.app_id, decision.conversion_id),
            receive_time=decision.receive_time,
            reattribution_id=newest.reattribution_id or "",
            late_pings=late_pings,
        )

    async def _replaced(self, lane: int, decision: decision_pb2.Decision, newest: Version, before: Version) -> Replaced:
        """Returns the version before the newest one, and why that was made."""
        late = await self._late(lane, decision) if decision.because else None
        return Replaced(decision_pb2.Decision.FromString(before.decision), newest.reattribution_id or "", late)

    async def _late(self, lane: int, decision: decision_pb2.Decision) -> Late | None:
        """Returns the late record that a version was made for (D12), None when it is no longer stored."""
        app_id, record_id = decision.app_id, decision.late_record_id
        if decision.because == decision_pb2.BECAUSE_LATE_ENGAGEMENT:
            stored = (await stored_engagements(self._pool, app_id, [record_id])).get(record_id)
            if stored is None:
                return None
            is_view = record_pb2.Record.FromString(stored.record).HasField("impression")
            return Late("impression" if is_view else "click", stored.receive_time_us)
        if (found := await newest_decision(self._pool, lane, app_id, record_id)) is None:
            return None
        late = decision_pb2.Decision.FromString(found)
        return Late(sentences.noun(late.event_name), timestamp_us(late.receive_time))

    async def _latest_attribution(self, lane: int, decision: decision_pb2.Decision, sequence: int) -> Attributed | None:
        """Returns the attribution that the MTR of a decision with this sequence counts from, in the order of times.

        That is the one that made the source of then (D6). Only if that has run out (D8), or if a later one had been
        decided for good before the conversion came (D3), it is looked for.
        """
        time_us = timestamp_us(decision.conversion_time)
        since_us = time_us - int(decision.custom_dimensions["mtr_rejected"]) * SECOND_US
        source_us = timestamp_us(decision.source_time)
        if decision.source_conversion_id and source_us > since_us:
            made = await newest_decision(self._pool, lane, decision.app_id, decision.source_conversion_id)
            if made is None:
                return None
            return Attributed(
                decision.source_conversion_id, decision_pb2.Decision.FromString(made).event_name, source_us
            )
        found = await latest_attribution(
            self._pool,
            lane,
            decision.app_id,
            await merged_devices(self._pool, uuid.UUID(decision.device_id), sequence),
            since_us=since_us,
            time_us=time_us,
            receive_time_us=timestamp_us(decision.receive_time),
            sequence=sequence,
        )
        if found is None:
            return None
        event_name = decision_pb2.Decision.FromString(found.decision).event_name
        return Attributed(found.conversion_id, event_name, found.conversion_time_us)

    async def _engagement(self, app_id: str, record_id: str) -> Explanation | None:
        found = await stored_engagements(self._pool, app_id, [record_id])
        if not found:
            return None
        won = await won_conversions(self._pool, lane_of(app_id), app_id, record_id)
        return _engagement(record_pb2.Record.FromString(found[record_id].record), won)

    async def _undecided(self, looked_up: record_lookup_pb2.LookUpRecordResponse, *, is_taken: bool) -> Explanation:
        record, accept_time = looked_up.record, looked_up.accept_time
        match record.WhichOneof("kind"):
            case "click" | "impression":
                return _engagement(record, ())
            case "session" if is_taken or record.session.state == record_pb2.Session.STATE_STOP:
                return Explanation(
                    state=Explanation.STATE_NOT_A_CONVERSION,
                    summary=sentences.session_summary(record, accept_time),
                    receive_time=accept_time,
                )
            case _:
                return Explanation(
                    state=Explanation.STATE_WAITING,
                    summary=sentences.accepted_summary(record, accept_time),
                    receive_time=accept_time,
                )

    async def _look_up(self, app_id: str, record_id: str) -> record_lookup_pb2.LookUpRecordResponse:
        request = record_lookup_pb2.LookUpRecordRequest(app_id=app_id, record_id=record_id)
        try:
            return await self._ingest.LookUpRecord(request, timeout=remaining_s(self._look_up_timeout_s))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise NotFound("CONVERSION_NOT_FOUND", "nothing is known about this record (any more)") from None
            raise Unavailable("LOG_UNAVAILABLE", "ingest does not answer; try again", retry_after_s=1.0) from error


def _answers(version: Version) -> Sequence[claim_pb2.ClaimAnswer]:
    """Returns the answers of the networks that claims were requested of."""
    return claim_pb2.ConversionClaims.FromString(version.claims or b"").answers


def _without_record(looked_up: record_lookup_pb2.LookUpRecordResponse) -> Explanation:
    if looked_up.HasField("accept_time") or not looked_up.rejected:
        raise NotFound("CONVERSION_NOT_FOUND", "the record was accepted, and is no longer kept")
    newest = looked_up.rejected[0]
    return Explanation(
        state=Explanation.STATE_REFUSED,
        summary=sentences.refused_summary(looked_up.rejected),
        sentences=sentences.violation_sentences(newest.violations),
        violations=newest.violations,
        receive_time=newest.reject_time,
    )


def _engagement(record: record_pb2.Record, won: Sequence[str]) -> Explanation:
    return Explanation(
        state=Explanation.STATE_NOT_A_CONVERSION,
        summary=sentences.engagement_summary(record, len(won)),
        won_conversion_ids=won,
    )


def _pending(pending: PendingConversion) -> Explanation:
    receive_time = timestamp_pb2.Timestamp()
    receive_time.FromMicroseconds(pending.receive_time_us)
    record = record_pb2.Record.FromString(pending.record)
    if pending.is_early:
        summary = sentences.early_summary(record, receive_time)
        return Explanation(state=Explanation.STATE_WAITING, summary=summary, receive_time=receive_time)
    if pending.first_id is None:
        summary = sentences.pending_summary(record, receive_time, pending.network_ids, pending.deadline_us)
    else:
        summary = sentences.behind_summary(record, receive_time, pending.first_id, pending.network_ids)
    return Explanation(
        state=Explanation.STATE_WAITING_FOR_CLAIMS,
        summary=summary,
        waiting_for_network_ids=pending.network_ids,
        receive_time=receive_time,
    )
