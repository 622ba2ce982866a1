"""Explains what became of a record (G3): decided, and why; pending; refused; or nothing that is decided."""

import uuid
from collections.abc import Sequence

import grpc
from google.protobuf import timestamp_pb2

from libs.call_context import remaining_s
from libs.db import Pool
from libs.domain.lanes import lane_of
from libs.errors import NotFound, Unavailable
from reengage.attribution.v1 import decision_pb2, explanation_pb2
from reengage.ingest.v1 import record_lookup_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1 import claim_pb2
from services.attribution.queries import sentences
from services.attribution.queries.sentences import Attributed, Replaced
from services.attribution.storage.explanations import (
    PendingConversion,
    Version,
    engagement_records,
    first_sequence,
    is_decided_up_to,
    latest_attribution,
    merged_devices,
    nearest_conversion,
    newest_versions,
    pending_conversion,
    won_conversions,
)

Explanation = explanation_pb2.ExplainDecisionResponse

_TOLD_BY_RECORD = frozenset({decision_pb2.VERDICT_BOT, decision_pb2.VERDICT_TRAFFIC_RULE})

LOOK_UP_TIMEOUT_S = 2.0
"""How long ingest has to answer: well within the deadline of the caller, who must learn that ingest hangs."""


class Explanations:
    """Explanations from what attribution knows of a record and, if it did not decide it, from what ingest knows."""

    def __init__(self, pool: Pool, ingest: IngestServiceStub, *, look_up_timeout_s: float = LOOK_UP_TIMEOUT_S) -> None:
        self._pool, self._ingest, self._look_up_timeout_s = pool, ingest, look_up_timeout_s

    async def of_record(self, app_id: str, record_id: str) -> Explanation:
        """Explains a record. Raises NotFound `CONVERSION_NOT_FOUND`, Unavailable `LOG_UNAVAILABLE`."""
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
        decision = _decision(newest)
        latest = (
            await self._latest_attribution(lane, decision)
            if decision.reason == decision_pb2.REASON_MTR_NOT_MET
            else None
        )
        reattribution_id = newest.reattribution_id or ""
        replaced = None if before is None else Replaced(_decision(before), reattribution_id)
        return Explanation(
            state=Explanation.STATE_DECIDED,
            decision=decision,
            summary=sentences.summary(decision, latest=latest, replaced=replaced),
            sentences=sentences.sentences(decision, answers=_answers(newest), records=await self._told_of(decision)),
            won_conversion_ids=await won_conversions(self._pool, lane, decision.app_id, decision.conversion_id),
            receive_time=decision.receive_time,
            reattribution_id=reattribution_id,
        )

    async def _told_of(self, decision: decision_pb2.Decision) -> dict[str, record_pb2.Record]:
        """Returns the records, by engagement id, of candidates whose verdicts say less than is known."""
        wanted = [each.engagement_id for each in decision.candidates if each.verdict in _TOLD_BY_RECORD]
        found = await engagement_records(self._pool, decision.app_id, wanted) if wanted else {}
        return {engagement_id: record_pb2.Record.FromString(record) for engagement_id, record in found.items()}

    async def _latest_attribution(self, lane: int, decision: decision_pb2.Decision) -> Attributed | None:
        sequence = await first_sequence(self._pool, lane, decision.app_id, decision.conversion_id)
        device_ids = await merged_devices(self._pool, uuid.UUID(decision.device_id), sequence)
        found = await latest_attribution(self._pool, lane, decision.app_id, device_ids, sequence)
        if found is None:
            return None
        event_name = decision_pb2.Decision.FromString(found.decision).event_name
        return Attributed(found.conversion_id, event_name, found.conversion_time_us)

    async def _engagement(self, app_id: str, record_id: str) -> Explanation | None:
        found = await engagement_records(self._pool, app_id, [record_id])
        if not found:
            return None
        won = await won_conversions(self._pool, lane_of(app_id), app_id, record_id)
        return _engagement(record_pb2.Record.FromString(found[record_id]), won)

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


def _decision(version: Version) -> decision_pb2.Decision:
    return decision_pb2.Decision.FromString(version.decision)


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
