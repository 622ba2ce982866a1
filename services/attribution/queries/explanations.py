"""Explains what became of a record: decided, and why; waiting; refused; or nothing that is decided (G3)."""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

import grpc
from google.protobuf import timestamp_pb2

from libs.call_context import remaining_s
from libs.db import Pool
from libs.domain.lanes import lane_of
from libs.errors import NotFound, Unavailable
from reengage.attribution.v1 import decision_pb2, explanation_pb2
from reengage.ingest.v1 import log_pb2, record_lookup_pb2, record_pb2
from reengage.ingest.v1.service_pb2_grpc import IngestServiceStub
from reengage.postback.v1 import claim_pb2
from services.attribution.decision.matching import own_key
from services.attribution.queries import sentences
from services.attribution.queries.sentences import Attributed, Replaced
from services.attribution.wire.decisions import ATTRIBUTING_OUTCOMES

Explanation = explanation_pb2.ExplainDecisionResponse

MOST_WON = 1_000
_LOOK_UP_S = 2.0
"""How long ingest has to answer: well within the caller's own deadline, who is to learn what it is that hangs."""


class Explanations:
    """What attribution knows of a record and, of one that it did not decide, ingest."""

    def __init__(self, pool: Pool, ingest: IngestServiceStub) -> None:
        self._pool, self._ingest = pool, ingest

    async def of_record(self, app_id: str, record_id: str) -> Explanation:
        """Raises NotFound `CONVERSION_NOT_FOUND`, Unavailable `LOG_UNAVAILABLE`."""
        explained = await self._decided_or_waiting(app_id, record_id) or await self._engagement(app_id, record_id)
        if explained is not None:
            return explained
        looked_up = await self._look_up(app_id, record_id)
        if not looked_up.HasField("record"):
            return _without_record(looked_up)
        is_taken = await _is_taken(self._pool, lane_of(app_id), looked_up.place)
        # It may have been decided meanwhile, and only what was taken without leaving anything is no conversion.
        return await self._decided_or_waiting(app_id, record_id) or await self._undecided(looked_up, is_taken=is_taken)

    async def nearest(self, app_id: str, device_id: uuid.UUID, time_us: int) -> Explanation:
        """Of the device's decided conversions the one nearest to a time. Raises NotFound `CONVERSION_NOT_FOUND`."""
        lane, device_ids = lane_of(app_id), await _known_as(self._pool, device_id, None)
        record_id = await _nearest_conversion(self._pool, lane, app_id, device_ids, time_us)
        if record_id is None:
            raise NotFound("CONVERSION_NOT_FOUND", "no conversion of this device was decided (yet)")
        return await self.of_record(app_id, record_id)

    async def _decided_or_waiting(self, app_id: str, record_id: str) -> Explanation | None:
        lane = lane_of(app_id)
        if versions := await _newest_versions(self._pool, lane, app_id, record_id):
            return await self._decided(lane, *versions)
        if waiting := await _waiting(self._pool, lane, app_id, record_id):
            return _waiting_for_claims(waiting)
        return None

    async def _decided(self, lane: int, newest: "_Version", before: "_Version | None" = None) -> Explanation:
        decision = newest.decision
        latest = await self._latest_attribution(lane, decision) if decision.reason == "MTR_NOT_MET" else None
        replaced = None if before is None else Replaced(before.decision, newest.reattribution_id)
        return Explanation(
            state=Explanation.STATE_DECIDED,
            decision=decision,
            summary=sentences.summary(decision, latest=latest, replaced=replaced),
            sentences=sentences.sentences(decision, not_claiming=newest.not_claiming),
            won_conversion_ids=await _won(self._pool, lane, decision.app_id, decision.conversion_id),
            receive_time=decision.receive_time,
            reattribution_id=newest.reattribution_id,
        )

    async def _latest_attribution(self, lane: int, decision: decision_pb2.Decision) -> Attributed | None:
        sequence = await _first_sequence(self._pool, lane, decision.app_id, decision.conversion_id)
        device_ids = await _known_as(self._pool, uuid.UUID(decision.device_id), sequence)
        return await _latest_attribution(self._pool, lane, decision.app_id, device_ids, sequence)

    async def _engagement(self, app_id: str, record_id: str) -> Explanation | None:
        found = await self._pool.fetchval(
            "SELECT record FROM engagements WHERE match_key = $1 AND record IS NOT NULL", own_key(app_id, record_id)
        )
        if found is None:
            return None
        won = await _won(self._pool, lane_of(app_id), app_id, record_id)
        return _engagement(record_pb2.Record.FromString(found), won)

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
            return await self._ingest.LookUpRecord(request, timeout=remaining_s(_LOOK_UP_S))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise NotFound("CONVERSION_NOT_FOUND", "nothing is known of this record (any more)") from None
            raise Unavailable("LOG_UNAVAILABLE", "ingest does not answer, try again", retry_after_s=1.0) from error


def _without_record(looked_up: record_lookup_pb2.LookUpRecordResponse) -> Explanation:
    if looked_up.HasField("accept_time") or not looked_up.rejected:
        raise NotFound("CONVERSION_NOT_FOUND", "it was accepted; the record itself is not found (any more)")
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


def _waiting_for_claims(waiting: "_Waiting") -> Explanation:
    receive_time = timestamp_pb2.Timestamp()
    receive_time.FromMicroseconds(waiting.receive_time_us)
    record = record_pb2.Record.FromString(waiting.record)
    if waiting.first_id is None:
        summary = sentences.waiting_summary(record, receive_time, waiting.network_ids, waiting.deadline_us)
    else:
        summary = sentences.behind_summary(record, receive_time, waiting.first_id, waiting.network_ids)
    return Explanation(
        state=Explanation.STATE_WAITING_FOR_CLAIMS,
        summary=summary,
        waiting_for_network_ids=waiting.network_ids,
        receive_time=receive_time,
    )


# Queries.


class _Version(NamedTuple):
    decision: decision_pb2.Decision
    reattribution_id: str
    not_claiming: list[str]
    """The networks that were asked for claims and had none."""


class _Waiting(NamedTuple):
    """A conversion that waits for claims, or for the first of its device that does: then those are `first_id`'s."""

    record: bytes
    receive_time_us: int
    first_id: str | None
    network_ids: list[str]
    deadline_us: int


async def _newest_versions(pool: Pool, lane: int, app_id: str, conversion_id: str) -> list[_Version]:
    """The newest version of a decision and, if there is one, the version before it."""
    rows = await pool.fetch(
        """
        SELECT decision, reattribution_id, claims FROM decisions
        WHERE lane = $1 AND conversion_id = $2 AND app_id = $3
        ORDER BY version DESC LIMIT 2
        """,
        lane,
        conversion_id,
        app_id,
    )
    return [_Version(decision_pb2.Decision.FromString(row[0]), row[1] or "", _not_claiming(row[2])) for row in rows]


def _not_claiming(stored: bytes | None) -> list[str]:
    said = claim_pb2.ConversionClaims.FromString(stored or b"")
    return [each.network_id for each in said.answers if each.state == claim_pb2.ClaimAnswer.STATE_NOT_CLAIMED]


async def _waiting(pool: Pool, lane: int, app_id: str, conversion_id: str) -> _Waiting | None:
    row = await pool.fetchrow(
        """
        SELECT mine.record, mine.receive_time_us, first.conversion_id AS first_id,
               COALESCE(first.network_ids, mine.network_ids) AS network_ids,
               COALESCE(first.deadline_us, mine.deadline_us) AS deadline_us
        FROM waiting AS mine
        LEFT JOIN LATERAL (
            SELECT conversion_id, network_ids, deadline_us FROM waiting
            WHERE lane = mine.lane AND device_id = mine.device_id AND receive_time_us < mine.receive_time_us
              AND cardinality(network_ids) > 0
            ORDER BY receive_time_us LIMIT 1
        ) AS first ON cardinality(mine.network_ids) = 0 -- it waits for nobody itself
        WHERE mine.lane = $1 AND mine.conversion_id = $2 AND mine.app_id = $3
        """,
        lane,
        conversion_id,
        app_id,
    )
    return None if row is None else _Waiting(*row)


async def _won(pool: Pool, lane: int, app_id: str, engagement_id: str) -> list[str]:
    """The conversions an engagement has won by the newest versions of their decisions."""
    rows = await pool.fetch(
        """
        SELECT conversion_id FROM decisions AS won
        WHERE lane = $1 AND engagement_id = $2 AND app_id = $3 AND NOT EXISTS (
            SELECT FROM decisions AS newer
            WHERE newer.lane = won.lane AND newer.conversion_id = won.conversion_id AND newer.app_id = won.app_id
              AND newer.version > won.version
        )
        ORDER BY sequence LIMIT $4
        """,
        lane,
        engagement_id,
        app_id,
        MOST_WON,
    )
    return [row["conversion_id"] for row in rows]


async def _is_taken(pool: Pool, home_lane: int, place: log_pb2.LanePosition) -> bool:
    """Whether a place in the log lies below what was decided of the apps homed in a lane."""
    return bool(
        await pool.fetchval(
            "SELECT decided[$2 + 1] > $3 FROM lanes WHERE lane = $1", home_lane, place.lane, place.position
        )
    )


async def _first_sequence(pool: Pool, lane: int, app_id: str, conversion_id: str) -> int:
    """The place of a conversion's first version among the decisions of its lane."""
    return int(
        await pool.fetchval(
            "SELECT min(sequence) FROM decisions WHERE lane = $1 AND conversion_id = $2 AND app_id = $3",
            lane,
            conversion_id,
            app_id,
        )
    )


async def _known_as(pool: Pool, device_id: uuid.UUID, sequence: int | None) -> list[uuid.UUID]:
    """Our ids of a device: its own, and those of the devices that became it before a decision was made."""
    rows = await pool.fetch(
        """
        WITH RECURSIVE same AS (
            SELECT $1::uuid AS device_id
            UNION
            SELECT devices.device_id FROM devices JOIN same ON devices.merged_into = same.device_id
            WHERE $2::bigint IS NULL OR devices.merge_sequence <= $2
        )
        SELECT device_id FROM same
        """,
        device_id,
        sequence,
    )
    return [row["device_id"] for row in rows]


async def _nearest_conversion(
    pool: Pool, lane: int, app_id: str, device_ids: Sequence[uuid.UUID], time_us: int
) -> str | None:
    found: str | None = await pool.fetchval(
        """
        SELECT found.conversion_id
        FROM unnest($3::uuid[]) AS same (device_id)
        CROSS JOIN LATERAL (
            (
                SELECT conversion_id, conversion_time_us, sequence FROM decisions
                WHERE lane = $1 AND app_id = $2 AND device_id = same.device_id
                  AND conversion_time_us <= $4 AND outcome <> $5
                ORDER BY conversion_time_us DESC, sequence DESC LIMIT 1
            )
            UNION ALL
            (
                SELECT conversion_id, conversion_time_us, sequence FROM decisions
                WHERE lane = $1 AND app_id = $2 AND device_id = same.device_id
                  AND conversion_time_us > $4 AND outcome <> $5
                ORDER BY conversion_time_us, sequence LIMIT 1
            )
        ) AS found
        ORDER BY abs(found.conversion_time_us - $4), found.conversion_time_us, found.sequence LIMIT 1
        """,
        lane,
        app_id,
        list(device_ids),
        time_us,
        decision_pb2.OUTCOME_LINKED,  # no conversion, though it is in the decision log
    )
    return found


async def _latest_attribution(
    pool: Pool, lane: int, app_id: str, device_ids: Sequence[uuid.UUID], sequence: int
) -> Attributed | None:
    """The device's latest attribution, as it stands now, of those that were first decided before a sequence."""
    row = await pool.fetchrow(
        """
        SELECT conversion_id, decision, conversion_time_us FROM decisions AS made
        WHERE lane = $1 AND app_id = $2 AND device_id = ANY($3) AND outcome = ANY($4)
          AND NOT EXISTS (
              SELECT FROM decisions AS newer
              WHERE newer.lane = made.lane AND newer.conversion_id = made.conversion_id
                AND newer.app_id = made.app_id AND newer.version > made.version
          )
          AND (
              SELECT min(sequence) FROM decisions AS version
              WHERE version.lane = made.lane AND version.conversion_id = made.conversion_id
                AND version.app_id = made.app_id
          ) < $5
        ORDER BY conversion_time_us DESC, conversion_id COLLATE "C" DESC LIMIT 1 -- as a history has them
        """,
        lane,
        app_id,
        list(device_ids),
        list(ATTRIBUTING_OUTCOMES),
        sequence,
    )
    if row is None:
        return None
    event_name = decision_pb2.Decision.FromString(row["decision"]).event_name
    return Attributed(row["conversion_id"], event_name, row["conversion_time_us"])
