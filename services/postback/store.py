"""Every query on the schema `postback`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from libs.db import Connection, Pool, in_transaction
from libs.periods import Periods
from reengage.postback.v1 import conversion_pb2
from services.postback.model import Asked, Claimed, NetworkAnswer, NewDelivery, Settled, State, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredConfiguration:
    """A configuration as it is stored; `settings` and `secrets` are the service's to read."""

    configuration_id: str
    app_id: str
    status: Status
    settings: dict[str, Any]
    secrets: bytes
    revision: int
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDelivery:
    """A delivery as it is stored, without its conversion."""

    delivery_id: UUID
    configuration_id: str
    app_id: str
    network_id: str
    conversion_id: str
    event_name: str
    state: State
    create_time: datetime
    due_time: datetime | None
    """None while an attempt is under way."""
    end_time: datetime | None
    attempt_count: int
    replay_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAttempt:
    """An attempt as it is stored; `attempt` is a serialised message Attempt, empty when it was interrupted."""

    replay_count: int
    start_time: datetime
    verdict: str
    attempt: bytes


_A_DAY = timedelta(hours=24)

_CONFIGURATION = "configuration_id, app_id, status, settings, secrets, revision, create_time, update_time"
_DELIVERY = (
    "delivery_id, configuration_id, app_id, network_id, conversion_id, event_name, state, create_time, "
    "CASE WHEN claim_id IS NULL THEN due_time END AS due_time, end_time, attempt_count, replay_count"
)


class Store:
    """The queries, each in a transaction of its own."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self._periods = pool, Periods(pool)

    # Configurations

    async def create_configuration(
        self, *, configuration_id: str, app_id: str, status: Status, settings: dict[str, Any], secrets: bytes
    ) -> bool:
        """Store a new configuration; False when its id is taken."""

        async def work(connection: Connection) -> bool:
            done = await connection.execute(
                "INSERT INTO configurations (configuration_id, app_id, status, settings, secrets, revision) "
                "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
                configuration_id,
                app_id,
                status,
                settings,
                secrets,
                await _next_revision(connection),
            )
            return bool(done == "INSERT 0 1")

        return await in_transaction(self._pool, work)

    async def update_configuration(
        self, before: StoredConfiguration, *, status: Status, settings: dict[str, Any], secrets: bytes
    ) -> bool:
        """Store new values in place of `before`; False when those are no longer what is stored."""

        async def work(connection: Connection) -> bool:
            done = await connection.execute(
                "UPDATE configurations "
                "SET status = $2, settings = $3, secrets = $4, revision = $5, update_time = now() "
                "WHERE configuration_id = $1 AND revision = $6",
                before.configuration_id,
                status,
                settings,
                secrets,
                await _next_revision(connection),
                before.revision,
            )
            return bool(done == "UPDATE 1")

        return await in_transaction(self._pool, work)

    async def get_configuration(self, configuration_id: str) -> StoredConfiguration | None:
        """A configuration by its id."""
        row = await self._pool.fetchrow(
            f"SELECT {_CONFIGURATION} FROM configurations WHERE configuration_id = $1", configuration_id
        )
        return _configuration(row) if row else None

    async def list_configurations(
        self, *, app_id: str, after: str, limit: int, archived: bool
    ) -> list[StoredConfiguration]:
        """An app's configurations by id, those after `after`."""
        rows = await self._pool.fetch(
            f"SELECT {_CONFIGURATION} FROM configurations "
            "WHERE app_id = $1 AND configuration_id > $2 AND (status <> 'ARCHIVED' OR $4) "
            "ORDER BY configuration_id LIMIT $3",
            app_id,
            after,
            limit,
            archived,
        )
        return [_configuration(row) for row in rows]

    async def configurations_since(self, revision: int) -> tuple[int, list[StoredConfiguration]]:
        """The newest revision, and all configurations written after `revision`."""
        rows = await self._pool.fetch(
            f"SELECT {_CONFIGURATION} FROM configurations WHERE revision > $1 ORDER BY revision", revision
        )
        return (rows[-1]["revision"] if rows else revision), [_configuration(row) for row in rows]

    # Deliveries

    async def enqueue(self, deliveries: Sequence[NewDelivery]) -> int:
        """Make the deliveries that do not exist yet, durably, and answer how many those were."""

        async def work(connection: Connection) -> int:
            wanted = [delivery for delivery in deliveries if not delivery.once_a_day]
            wanted += await _not_held([delivery for delivery in deliveries if delivery.once_a_day], connection)
            # In the order of their keys: batches that overlap must not wait for each other in a circle.
            wanted.sort(key=lambda delivery: delivery.delivery_id.int)
            done: str = await connection.execute(
                "INSERT INTO deliveries (delivery_id, configuration_id, app_id, network_id, conversion_id, event_name, "
                "device_id, conversion, due_time, awaits_decision, conversion_time, retention_days) "
                "SELECT delivery_id, configuration_id, app_id, network_id, conversion_id, event_name, device_id, "
                "conversion, now() + delay_s * interval '1 second', awaits_decision, conversion_time, retention_days "
                "FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], "
                "$8::bytea[], $9::float8[], $10::bool[], $11::timestamptz[], $12::smallint[]) AS new (delivery_id, "
                "configuration_id, app_id, network_id, conversion_id, event_name, device_id, conversion, delay_s, "
                "awaits_decision, conversion_time, retention_days) "
                # Made when the app's retention was another one, it lies elsewhere; of each by itself, in its month.
                "WHERE NOT EXISTS ("
                "  SELECT FROM deliveries AS made "
                "  WHERE made.delivery_id = new.delivery_id AND made.configuration_id = new.configuration_id "
                "    AND made.conversion_time = new.conversion_time OFFSET 0"
                ") "
                "ON CONFLICT DO NOTHING",
                [new.delivery_id for new in wanted],
                [new.configuration_id for new in wanted],
                [new.app_id for new in wanted],
                [new.network_id for new in wanted],
                [new.conversion_id for new in wanted],
                [new.event_name for new in wanted],
                [new.device_id for new in wanted],
                [new.conversion for new in wanted],
                [new.delay_s for new in wanted],
                [new.awaits_decision for new in wanted],
                [new.conversion_time for new in wanted],
                [new.retention_days for new in wanted],
            )
            return int(done.rpartition(" ")[2])

        # Before, as both take a connection: were it inside, all could be held by those who wait for another.
        await self._periods.ensure(_period(new) for new in deliveries)
        return await in_transaction(self._pool, work) if deliveries else 0

    async def decide(self, deliveries: Sequence[NewDelivery]) -> set[UUID]:
        """Give deliveries that were made before their conversion was decided the decided one.

        Answers which of them hold a claim by now.
        """

        async def work(connection: Connection) -> set[UUID]:
            rows = await connection.fetch(
                "WITH awaiting AS ("
                "  SELECT delivery.delivery_id, delivery.configuration_id, conversion_time, retention_days, "
                "         decided.conversion "
                "  FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::bytea[]) "
                "       AS decided (delivery_id, configuration_id, conversion_time, conversion) "
                "  JOIN deliveries AS delivery USING (delivery_id, configuration_id, conversion_time) "
                "  WHERE delivery.awaits_decision "
                # In the order that settling takes them in.
                "  ORDER BY delivery.delivery_id FOR UPDATE OF delivery"
                ") "
                "UPDATE deliveries AS delivery SET conversion = awaiting.conversion, awaits_decision = false "
                "FROM awaiting WHERE delivery.delivery_id = awaiting.delivery_id "
                "  AND delivery.configuration_id = awaiting.configuration_id "
                "  AND delivery.conversion_time = awaiting.conversion_time "
                "  AND delivery.retention_days = awaiting.retention_days "
                "RETURNING delivery.delivery_id, delivery.network_claim IS NOT NULL AS has_claim",
                [one.delivery_id for one in deliveries],
                [one.configuration_id for one in deliveries],
                [one.conversion_time for one in deliveries],
                [one.conversion for one in deliveries],
            )
            return {row["delivery_id"] for row in rows if row["has_claim"]}

        return await in_transaction(self._pool, work) if deliveries else set()

    async def network_answers(self, deliveries: Collection[tuple[str, UUID]]) -> dict[UUID, NetworkAnswer]:
        """What is known of the answers to claim requests, named by configuration and delivery id."""
        rows = await self._pool.fetch(
            "SELECT delivery_id, state, network_claim FROM deliveries "
            "WHERE (configuration_id, delivery_id) IN (SELECT * FROM unnest($1::text[], $2::uuid[]))",
            [configuration_id for configuration_id, _ in deliveries],
            [delivery_id for _, delivery_id in deliveries],
        )
        return {
            row["delivery_id"]: NetworkAnswer(state=State(row["state"]), network_claim=row["network_claim"])
            for row in rows
        }

    async def told(self, conversions: Collection[tuple[str, str]]) -> set[tuple[str, str, str]]:
        """Those of (app, conversion) that deliveries exist of, each with the configuration."""
        rows = await self._pool.fetch(
            "SELECT app_id, conversion_id, configuration_id FROM deliveries "
            "WHERE (app_id, conversion_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))",
            [app_id for app_id, _ in conversions],
            [conversion_id for _, conversion_id in conversions],
        )
        return {(row["app_id"], row["conversion_id"], row["configuration_id"]) for row in rows}

    async def held(self, deliveries: Sequence[NewDelivery]) -> set[tuple[str, str, str]]:
        """Those that would be held back for another of their device, by app, conversion and configuration."""
        if not deliveries:
            return set()
        rows = await self._pool.fetch(
            "SELECT configuration_id, device_id, told_time FROM session_holds "
            "WHERE (configuration_id, device_id) IN (SELECT * FROM unnest($1::text[], $2::text[]))",
            [one.configuration_id for one in deliveries],
            [one.device_id for one in deliveries],
        )
        free_from = {(row["configuration_id"], row["device_id"]): row["told_time"] + _A_DAY for row in rows}
        return {
            (one.app_id, one.conversion_id, one.configuration_id)
            for one in deliveries
            if one.conversion_time < free_from.get((one.configuration_id, one.device_id), one.conversion_time)
        }

    async def erase(
        self, *, app_id: str, conversion_ids: Collection[str], device_ids: Collection[str]
    ) -> dict[str, int]:
        """Delete all that is kept of an app's conversions and devices; answers the number of rows by table."""

        async def work(connection: Connection) -> dict[str, int]:
            rows = await connection.fetch(
                "DELETE FROM deliveries WHERE (delivery_id, configuration_id) IN ("
                "  SELECT delivery_id, configuration_id FROM deliveries "
                # In pairs: were it told that the app is one, the planner would walk through all of it.
                "  WHERE (app_id, conversion_id) IN (SELECT * FROM unnest($1::text[], $2::text[])) "
                # In the order that settling takes them in.
                "  ORDER BY delivery_id FOR UPDATE"
                ") RETURNING delivery_id, configuration_id",
                [app_id] * len(conversion_ids),
                list(conversion_ids),
            )
            # A statement later: whoever noted an attempt held its delivery until that was to be seen.
            attempts: str = await connection.execute(
                "DELETE FROM attempts "
                "WHERE (delivery_id, configuration_id) IN (SELECT * FROM unnest($1::uuid[], $2::text[]))",
                [row["delivery_id"] for row in rows],
                [row["configuration_id"] for row in rows],
            )
            holds: str = await connection.execute(
                "DELETE FROM session_holds "
                "WHERE configuration_id IN (SELECT configuration_id FROM configurations WHERE app_id = $1) "
                "  AND device_id = ANY($2)",
                app_id,
                list(device_ids),
            )
            return {
                "deliveries": len(rows),
                "attempts": int(attempts.rpartition(" ")[2]),
                "session_holds": int(holds.rpartition(" ")[2]),
            }

        return await in_transaction(self._pool, work)

    async def strip(self, *, app_id: str, conversion_ids: Collection[str]) -> None:
        """Take the engagement from the deliveries of these conversions."""

        async def work(connection: Connection) -> None:
            rows = await connection.fetch(
                "SELECT delivery_id, configuration_id, conversion FROM deliveries "
                "WHERE (app_id, conversion_id) IN (SELECT * FROM unnest($1::text[], $2::text[])) "
                "ORDER BY delivery_id FOR UPDATE",
                [app_id] * len(conversion_ids),
                list(conversion_ids),
            )
            stripped = [conversion_pb2.Conversion.FromString(row["conversion"]) for row in rows]
            for conversion in stripped:
                conversion.ClearField("engagement")
            await connection.execute(
                "UPDATE deliveries AS delivery SET conversion = stripped.conversion "
                "FROM unnest($1::uuid[], $2::text[], $3::bytea[]) "
                "     AS stripped (delivery_id, configuration_id, conversion) "
                "WHERE delivery.delivery_id = stripped.delivery_id "
                "  AND delivery.configuration_id = stripped.configuration_id",
                [row["delivery_id"] for row in rows],
                [row["configuration_id"] for row in rows],
                [conversion.SerializeToString() for conversion in stripped],
            )

        if conversion_ids:
            await in_transaction(self._pool, work)

    async def claim(self, asked: Sequence[Asked], *, limit: int, retries: bool) -> list[Claimed]:
        """Claim up to `limit` deliveries that are due, of first tries or of retries, oldest first in a configuration.

        An attempt whose lease ended without a word is noted as INTERRUPTED.
        """
        kind = "attempt_count > 0" if retries else "attempt_count = 0"
        claim_id = uuid4()
        rows = await self._pool.fetch(
            f"""
            WITH picked AS (
                SELECT due.*
                FROM unnest($1::text[], $2::int[], $3::float8[]) AS asked (configuration_id, room, lease_s)
                CROSS JOIN LATERAL (
                    SELECT delivery_id, configuration_id, conversion_time, retention_days, replay_count, attempt_count,
                           claim_id, claim_time, due_time, asked.lease_s
                    FROM deliveries
                    -- As the partial index says; one configuration's backlog is not read for another.
                    WHERE configuration_id = asked.configuration_id AND state = 'PENDING' AND {kind}
                      AND due_time <= now()
                    ORDER BY due_time
                    LIMIT asked.room
                    FOR UPDATE SKIP LOCKED
                ) AS due
                LIMIT $4
            ), interrupted AS (
                INSERT INTO attempts (
                    delivery_id, configuration_id, conversion_time, retention_days, replay_count, number, start_time,
                    verdict, attempt
                )
                SELECT delivery_id, configuration_id, conversion_time, retention_days, replay_count, attempt_count,
                       claim_time, 'INTERRUPTED', ''
                FROM picked WHERE claim_id IS NOT NULL
                ON CONFLICT DO NOTHING
            )
            UPDATE deliveries AS delivery
            SET attempt_count = delivery.attempt_count + 1, claim_id = $5, claim_time = now(),
                due_time = now() + picked.lease_s * interval '1 second'
            FROM picked
            WHERE delivery.delivery_id = picked.delivery_id AND delivery.configuration_id = picked.configuration_id
              AND delivery.conversion_time = picked.conversion_time
              AND delivery.retention_days = picked.retention_days
            RETURNING delivery.delivery_id, delivery.configuration_id, delivery.conversion_time,
                      delivery.retention_days, delivery.conversion, delivery.attempt_count, delivery.failure_count,
                      delivery.replay_count, delivery.claim_time,
                      extract(epoch FROM now() - picked.due_time)::float8 AS waited_s
            """,
            [one.configuration_id for one in asked],
            [one.room for one in asked],
            [one.lease_s for one in asked],
            limit,
            claim_id,
        )
        return [
            Claimed(
                claim_id=claim_id,
                delivery_id=row["delivery_id"],
                configuration_id=row["configuration_id"],
                conversion_time=row["conversion_time"],
                retention_days=row["retention_days"],
                conversion=row["conversion"],
                number=row["attempt_count"],
                failure_count=row["failure_count"],
                replay_count=row["replay_count"],
                claim_time=row["claim_time"],
                waited_s=row["waited_s"],
            )
            for row in rows
        ]

    async def settle(self, batch: Sequence[Settled]) -> set[UUID]:
        """Note attempts and what they make of their deliveries; answers those of decided conversions.

        A delivery that was claimed by another meanwhile is left to that one; the attempt is kept all the same. Of one
        that was erased nothing is.
        """
        batch = sorted(batch, key=lambda settled: settled.claimed.delivery_id.int)
        pausing = sorted({one.claimed.configuration_id for one in batch if one.pauses_configuration})

        async def work(connection: Connection) -> set[UUID]:
            rows = await connection.fetch(
                "UPDATE deliveries AS delivery "
                "SET state = settled.state, "
                "    failure_count = delivery.failure_count + (settled.state <> 'DELIVERED')::int, "
                "    due_time = now() + settled.wait_s * interval '1 second', "
                "    end_time = CASE WHEN settled.state <> 'PENDING' THEN now() END, "
                "    claim_id = NULL, claim_time = NULL, "
                # The first one stays: a decision may rest on it.
                "    network_claim = coalesce(delivery.network_claim, settled.network_claim) "
                "FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::float8[], $6::bytea[], "
                "            $7::timestamptz[], $8::smallint[]) "
                "     AS settled (delivery_id, configuration_id, claim_id, state, wait_s, network_claim, "
                "                 conversion_time, retention_days) "
                "WHERE delivery.delivery_id = settled.delivery_id "
                "  AND delivery.configuration_id = settled.configuration_id "
                "  AND delivery.conversion_time = settled.conversion_time "
                "  AND delivery.retention_days = settled.retention_days "
                # The fence: a lease that ended is another's.
                "  AND delivery.claim_id = settled.claim_id "
                "RETURNING delivery.delivery_id, delivery.awaits_decision",
                [one.claimed.delivery_id for one in batch],
                [one.claimed.configuration_id for one in batch],
                [one.claimed.claim_id for one in batch],
                [one.state for one in batch],
                [one.wait_s for one in batch],
                [one.network_claim for one in batch],
                [one.claimed.conversion_time for one in batch],
                [one.claimed.retention_days for one in batch],
            )
            settled = {row["delivery_id"] for row in rows}
            lost = [one for one in batch if one.claimed.delivery_id not in settled]
            there = settled | await _locked(lost, connection) if lost else settled
            kept = [one for one in batch if one.claimed.delivery_id in there]
            await connection.execute(
                "INSERT INTO attempts "
                "(delivery_id, configuration_id, replay_count, number, start_time, verdict, attempt, conversion_time, "
                "retention_days) "
                "SELECT * FROM unnest($1::uuid[], $2::text[], $3::int[], $4::int[], $5::timestamptz[], $6::text[], "
                "$7::bytea[], $8::timestamptz[], $9::smallint[]) "
                # Given up for interrupted by another, but here is what really became of it.
                "ON CONFLICT (delivery_id, configuration_id, replay_count, number, conversion_time, retention_days) "
                "DO UPDATE SET verdict = excluded.verdict, attempt = excluded.attempt",
                [one.claimed.delivery_id for one in kept],
                [one.claimed.configuration_id for one in kept],
                [one.claimed.replay_count for one in kept],
                [one.claimed.number for one in kept],
                [one.claimed.claim_time for one in kept],
                [one.verdict for one in kept],
                [one.attempt for one in kept],
                [one.claimed.conversion_time for one in kept],
                [one.claimed.retention_days for one in kept],
            )
            if pausing:
                await connection.execute(
                    "UPDATE configurations SET status = 'PAUSED', revision = $2, update_time = now() "
                    "WHERE configuration_id = ANY($1) AND status = 'LIVE'",
                    pausing,
                    await _next_revision(connection),
                )
            return {row["delivery_id"] for row in rows if not row["awaits_decision"]}

        return await in_transaction(self._pool, work)

    async def get_delivery(self, delivery_id: UUID) -> tuple[StoredDelivery, list[StoredAttempt]] | None:
        """A delivery with its attempts, oldest first."""
        async with (
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            row = await connection.fetchrow(f"SELECT {_DELIVERY} FROM deliveries WHERE delivery_id = $1", delivery_id)
            if row is None:
                return None
            attempts = await connection.fetch(
                "SELECT replay_count, start_time, verdict, attempt FROM attempts "
                "WHERE delivery_id = $1 AND configuration_id = $2 ORDER BY replay_count, number",
                delivery_id,
                row["configuration_id"],
            )
        return _delivery(row), [StoredAttempt(**dict(attempt)) for attempt in attempts]

    async def list_deliveries(
        self,
        *,
        app_id: str,
        configuration_id: str,
        conversion_id: str,
        states: Collection[State],
        before: tuple[datetime, UUID] | None,
        limit: int,
    ) -> list[StoredDelivery]:
        """An app's deliveries, newest first, those before `before`. Empty filters let all pass."""
        conditions, values = ["app_id = $1"], list[Any]([app_id])

        def narrow(condition: str, *added: Any) -> None:
            numbers = (f"${len(values) + n}" for n in range(1, len(added) + 1))
            conditions.append(condition.format(*numbers))
            values.extend(added)

        if configuration_id:
            narrow("configuration_id = {}", configuration_id)
        if conversion_id:
            narrow("conversion_id = {}", conversion_id)
        if states:
            narrow("state = ANY({}::text[])", list(states))
        if before:
            narrow("(create_time, delivery_id) < ({}, {})", *before)
        rows = await self._pool.fetch(
            f"SELECT {_DELIVERY} FROM deliveries WHERE {' AND '.join(conditions)} "
            f"ORDER BY create_time DESC, delivery_id DESC LIMIT {limit:d}",
            *values,
        )
        return [_delivery(row) for row in rows]

    async def replay(
        self,
        *,
        request_id: str,
        delivery_id: UUID | None,
        app_id: str,
        configuration_id: str,
        states: Collection[State],
        limit: int,
    ) -> int:
        """Begin a new run of up to `limit` ended deliveries; the same request within a day answers as it did before.

        Either the delivery of this id, or those of the app (and configuration, unless empty); of these `states` only.
        """

        async def work(connection: Connection) -> int:
            await connection.execute("DELETE FROM replays WHERE create_time < now() - interval '1 day'")
            begun = await connection.execute(
                "INSERT INTO replays (request_id) VALUES ($1) ON CONFLICT DO NOTHING", request_id
            )
            if begun == "INSERT 0 0":
                before: int = await connection.fetchval(
                    "SELECT replayed_count FROM replays WHERE request_id = $1", request_id
                )
                return before
            which = "delivery_id = $3" if delivery_id else "app_id = $3 AND ($4 = '' OR configuration_id = $4)"
            arguments = [delivery_id] if delivery_id else [app_id, configuration_id]
            done: str = await connection.execute(
                f"""
                UPDATE deliveries AS delivery
                SET state = 'PENDING', due_time = now(), end_time = NULL, attempt_count = 0, failure_count = 0,
                    replay_count = delivery.replay_count + 1
                FROM (
                    SELECT delivery_id, configuration_id, conversion_time, retention_days FROM deliveries
                    WHERE {which} AND state <> 'PENDING' AND state = ANY($1::text[])
                    ORDER BY create_time, delivery_id LIMIT $2 FOR UPDATE
                ) AS ended
                WHERE delivery.delivery_id = ended.delivery_id AND delivery.configuration_id = ended.configuration_id
                  AND delivery.conversion_time = ended.conversion_time
                  AND delivery.retention_days = ended.retention_days
                """,
                list(states),
                limit,
                *arguments,
            )
            count = int(done.rpartition(" ")[2])
            await connection.execute("UPDATE replays SET replayed_count = $2 WHERE request_id = $1", request_id, count)
            return count

        return await in_transaction(self._pool, work)


async def _next_revision(connection: Connection) -> int:
    # Locks the row until commit: whoever sees a revision sees all before it.
    revision: int = await connection.fetchval(
        "UPDATE configuration_revision SET revision = revision + 1 RETURNING revision"
    )
    return revision


def _period(new: NewDelivery) -> tuple[int, int]:
    return int(new.conversion_time.timestamp()) * 1_000_000, new.retention_days


async def _locked(batch: Sequence[Settled], connection: Connection) -> set[UUID]:
    """Those deliveries that have not been erased, kept from it until the transaction ends."""
    rows = await connection.fetch(
        "SELECT delivery_id FROM deliveries "
        "WHERE (delivery_id, configuration_id) IN (SELECT * FROM unnest($1::uuid[], $2::text[])) "
        "ORDER BY delivery_id FOR KEY SHARE",
        [one.claimed.delivery_id for one in batch],
        [one.claimed.configuration_id for one in batch],
    )
    return {row["delivery_id"] for row in rows}


async def _not_held(deliveries: Sequence[NewDelivery], connection: Connection) -> list[NewDelivery]:
    """Those that come 24 hours or more after the last told of their device, oldest first; these are now the last."""
    let_go: list[NewDelivery] = []
    left = sorted(deliveries, key=lambda new: (new.configuration_id, new.device_id, new.conversion_time))
    while left:
        # One of a device at a time: a statement may write a row once only.
        first = {(new.configuration_id, new.device_id): new for new in reversed(left)}
        rows = await connection.fetch(
            "INSERT INTO session_holds AS held (configuration_id, device_id, told_time) "
            "SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[]) "
            "ON CONFLICT (configuration_id, device_id) DO UPDATE SET told_time = excluded.told_time "
            "WHERE excluded.told_time >= held.told_time + interval '24 hours' "
            "RETURNING configuration_id, device_id",
            [configuration_id for configuration_id, _ in sorted(first)],
            [device_id for _, device_id in sorted(first)],
            [first[key].conversion_time for key in sorted(first)],
        )
        let_go += [first[row["configuration_id"], row["device_id"]] for row in rows]
        taken = set(map(id, first.values()))
        left = [new for new in left if id(new) not in taken]
    return let_go


def _configuration(row: asyncpg.Record) -> StoredConfiguration:
    return StoredConfiguration(
        configuration_id=row["configuration_id"],
        app_id=row["app_id"],
        status=Status(row["status"]),
        settings=row["settings"],
        secrets=row["secrets"],
        revision=row["revision"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )


def _delivery(row: asyncpg.Record) -> StoredDelivery:
    return StoredDelivery(**{**dict(row), "state": State(row["state"])})
