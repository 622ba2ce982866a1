"""Server pings that come too late: dated before a conversion, and received after it, later than is allowed (D12).

They change nothing, so nothing is decided again for them; people are told of them all the same. Who pings after every
conversion wins none, and a metric shows it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from prometheus_client import Counter

from libs.db import Connection, Pool
from libs.time import timestamp_us
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from services.attribution.decision.decide import judge
from services.attribution.decision.history import Attribution, DeviceHistory
from services.attribution.decision.matching import address_keys
from services.attribution.decision.model import (
    SECOND_US,
    AttributionType,
    Candidate,
    Conversion,
    ConversionKind,
    Engagement,
    Verdict,
)
from services.attribution.decision.rules import AppRules
from services.attribution.storage.devices import find_devices_of_keys
from services.attribution.storage.late_arrivals import AskedPing, LaterDecision, find_later_decisions
from services.attribution.wire.records import LATE_US, Logged, conversion_of, engagement_of, event_time_us

MAX_MET = 20
"""OURS: of each device that a ping names, and of its address, so many of the latest conversions count in the metric."""

_reported_late = Counter(
    "attribution_reported_late_total",
    "Server pings that came too late for a conversion (REPORTED_LATE), by network: dated before it, and received after "
    "it, within late_window and later than late_pings allows. A ping counts once for each such conversion: those that "
    f"were not decided yet, and of the others the latest {MAX_MET} of its device, or of its address if it names none.",
    ["network"],
)

_WITH_CANDIDATES = frozenset(
    {decision_pb2.REASON_UNSPECIFIED, decision_pb2.REASON_NO_CANDIDATE, decision_pb2.REASON_NO_WINNER}
)
_WITHOUT = frozenset({decision_pb2.OUTCOME_LINKED, decision_pb2.OUTCOME_CONTINUED})


def has_candidates(decision: decision_pb2.Decision) -> bool:
    """Returns whether engagements were considered when a decision was made."""
    return decision.reason in _WITH_CANDIDATES and decision.outcome not in _WITHOUT


def reported_late(
    decision: decision_pb2.Decision, conversion: Conversion, pings: Iterable[Engagement], rules: AppRules
) -> list[Candidate]:
    """Returns, as candidates by engagement id, those of these pings that came too late for a decided conversion.

    Without those that its decision lists. `rules` are those that it was decided by.
    """
    if not has_candidates(decision):
        return []
    listed = {candidate.engagement_id for candidate in decision.candidates}
    history = _history(decision, conversion)
    judged = (judge(ping, conversion, history, rules) for ping in pings if ping.engagement_id not in listed)
    late = [each for each in judged if each and each.verdict is Verdict.REPORTED_LATE]
    return sorted(late, key=lambda candidate: candidate.engagement_id)


def count(network_ids: Iterable[str]) -> None:
    """Counts pings that came too late, given their networks."""
    for network_id in network_ids:
        _reported_late.labels(network_id).inc()


async def count_indexed(pool: Pool, logged: Sequence[Logged], apps: Mapping[str, AppRules]) -> None:
    """Counts those of a batch of engagements that came too late for conversions which were decided before.

    Call it once they can be seen: who decides a conversion later finds them itself, and counts them. Only one that
    comes in the very moment in which a conversion is decided may be missed.
    """
    late = list(_late_pings(logged, apps))
    if not late:
        return
    async with pool.acquire() as connection:
        for (place, _), found in (await _decided(connection, late)).items():
            each, ping = late[place]
            count(candidate.network_id for candidate in _judged(found, ping, apps[each.record.app_id]))


def _late_pings(logged: Sequence[Logged], apps: Mapping[str, AppRules]) -> Iterator[tuple[Logged, Engagement]]:
    """Yields the pings that are dated before their receipt; most are not."""
    for each in logged:
        entry, record = each
        if not (record.click.is_ping or record.impression.is_ping) or not apps[record.app_id].app.late_window_us:
            continue
        if entry.receive_time_us - event_time_us(record) <= LATE_US:
            continue
        if (engagement := engagement_of(record, entry.receive_time_us)) is not None:
            yield each, engagement


async def _decided(
    connection: Connection, late: Sequence[tuple[Logged, Engagement]]
) -> dict[tuple[int, str], LaterDecision]:
    """Returns the newest decision on each conversion that pings may have been meant for, by place and conversion."""
    keys = frozenset(key for _, ping in late for key in ping.device_keys)
    devices = await find_devices_of_keys(connection, keys) if keys else {}
    asked = [
        AskedPing(
            place=place,
            lane=each.entry.app_lane,
            app_id=each.record.app_id,
            device_ids=sorted({device_id for key in ping.device_keys for device_id in devices.get(key, ())}),
            address_keys=() if ping.device_keys else address_keys(each.record.app_id, ping.ip),
            time_us=ping.time_us - SECOND_US,  # B1: the conversion may be up to a second later than it says
        )
        for place, (each, ping) in enumerate(late)
    ]
    newest: dict[tuple[int, str], LaterDecision] = {}
    for found in await find_later_decisions(connection, asked, limit=MAX_MET):
        newest[found.place, found.conversion_id] = found  # versions come in their order
    return newest


def _judged(found: LaterDecision, ping: Engagement, rules: AppRules) -> Collection[Candidate]:
    decision = decision_pb2.Decision.FromString(found.decision)
    record = record_pb2.Record.FromString(found.record)
    conversion = conversion_of(record, decision.event_name, found.receive_time_us)
    return reported_late(decision, replace(conversion, device_keys=frozenset(ping.device_keys)), [ping], rules)


def _history(decision: decision_pb2.Decision, conversion: Conversion) -> DeviceHistory:
    """Returns as much of a device's history as verdicts depend on: the install before a reprocessed one (F2)."""
    if not decision.reprocess_for:
        return DeviceHistory()
    first = Attribution(
        time_us=timestamp_us(decision.install_time),
        receive_time_us=conversion.receive_time_us,
        conversion_id=decision.reprocess_for,
        kind=ConversionKind.INSTALL,
        type=AttributionType.NONE,
    )
    return DeviceHistory.made_of([first])
