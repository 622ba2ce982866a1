"""Reads the log's records as what attribution decides upon."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple

from libs.domain.device_ids import HASH_METHOD_OF_LENGTH, HASHED_KINDS
from libs.domain.event_names import DEEP_LINK, IDENTITY_LINK, INSTALL, SESSION_BEGIN
from libs.time import SECOND_US, timestamp_us
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import log_pb2, record_pb2
from reengage.postback.v1 import claim_pb2
from services.attribution.decision.matching import (
    device_key,
    engagement_keys,
    hash_keys,
    hash_length,
    normalise_ip,
    own_key,
)
from services.attribution.decision.model import (
    NO_HINTS,
    Claim,
    ClientHints,
    Conversion,
    ConversionKind,
    Engagement,
    EngagementKind,
    Visitor,
)
from services.attribution.decision.rules import AppRules
from services.attribution.decision.user_agents import user_agent_of
from services.attribution.storage.engagements import EngagementRow, IndexRows, NetworkClick
from services.attribution.storage.hashed_ids import HashedId, HashedKind
from services.attribution.storage.late_arrivals import LateArrival

LATE_US = SECOND_US // 4
"""OURS: an engagement that is received within so long of its time is in time: no app is opened faster (D12)."""


class Logged(NamedTuple):
    """A log entry and its record."""

    entry: log_pb2.LogEntry
    record: record_pb2.Record


class RecordTooLargeError(Exception):
    """An entry that the log gives without its record, because it is too large."""


def parse(entries: Iterable[log_pb2.LogEntry]) -> list[Logged]:
    """Returns the entries with their records. Raises RecordTooLargeError, or DecodeError for bytes that are none."""
    return [Logged(entry, _record_of(entry)) for entry in entries]


def _record_of(entry: log_pb2.LogEntry) -> record_pb2.Record:
    if entry.too_large_bytes:
        raise RecordTooLargeError(f"it has {entry.too_large_bytes:,} bytes")
    return record_pb2.Record.FromString(entry.record)


def index_rows(
    logged: Iterable[Logged],
    apps: Mapping[str, AppRules],
    hash_lengths: Mapping[str, Collection[int]],
    *,
    are_late: bool = False,
) -> IndexRows:
    """Returns the rows of a batch's engagements; records of other kinds are passed over.

    Every app named must be in `apps`. `hash_lengths` are, by app, those of the hashes that conversions carry (A3). Rows
    come sorted by key: two workers that insert at once lock in the same order. `are_late`: what was received after them
    has been decided already, whatever they say of their time.
    """
    rows: list[EngagementRow] = []
    clicks: list[NetworkClick] = []
    hashed_ids: set[HashedId] = set()
    hashed_kinds: set[HashedKind] = set()
    retentions: set[tuple[str, int]] = set()
    late: list[LateArrival] = []
    for entry, record in logged:
        engagement = engagement_of(record, entry.receive_time_us)
        if engagement is None:
            continue
        rules = apps[record.app_id]
        app = rules.app
        if _may_change(engagement, rules) and (are_late or engagement.receive_time_us - engagement.time_us > LATE_US):
            late.append(_late_arrival(entry, record))
        hashed_kinds.update(HashedKind(app.app_id, kind, entry.app_lane) for kind in _hashed_kinds(record))
        if lengths := hash_lengths.get(app.app_id):
            hashed_ids.update(hashed_ids_of(record, lengths, engagement.time_us, app.retention_days))
        retentions.add((app.app_id, app.retention_days))
        own = own_key(app.app_id, engagement.engagement_id)
        user_agent = None if engagement.user_agent is None else "\t".join(engagement.user_agent)
        device_keys = b"".join(engagement.device_keys)
        is_click = engagement.kind is EngagementKind.CLICK
        rows.extend(
            EngagementRow(
                match_key=key,
                time_us=engagement.time_us,
                engagement_id=engagement.engagement_id,
                lane=entry.lane,
                position=entry.position,
                receive_time_us=entry.receive_time_us,
                is_click=is_click,
                is_ping=engagement.is_ping,
                tracker_id=engagement.tracker_id,
                device_keys=device_keys,
                ip=engagement.ip,
                user_agent=user_agent,
                click_id=engagement.click_id,
                completed_view=engagement.completed_view,
                is_valid=engagement.valid,
                visitor=engagement.visitor,
                country=engagement.country,
                record=entry.record if key == own else None,
                retention_days=app.retention_days,
            )
            for key in dict.fromkeys((own, *engagement_keys(app, engagement)))
        )
        if engagement.click_id and engagement.visitor is Visitor.PERSON and engagement.valid:
            click_key = network_click_key(engagement.tracker_id, engagement.click_id)
            clicks.append(
                NetworkClick(
                    click_key,
                    engagement.counted_us,
                    engagement.engagement_id,
                    entry.receive_time_us,
                    app.retention_days,
                )
            )
    rows.sort(key=lambda row: (row.match_key, row.time_us, row.engagement_id))
    clicks.sort()
    return IndexRows(
        engagements=rows,
        network_clicks=clicks,
        hashed_ids=list(hashed_ids),
        hashed_kinds=hashed_kinds,
        retentions=retentions,
        late=late,
    )


def hashed_ids_of(
    record: record_pb2.Record, hash_lengths: Iterable[int], time_us: int, retention_days: int
) -> Iterator[HashedId]:
    """Yields the rows that an engagement's raw ids are found by, from their hashes of these lengths (A3)."""
    for kind, value in record.device_ids.items():
        if kind not in HASHED_KINDS:
            raw_key = device_key(record.app_id, value)
            for length in hash_lengths:
                for hash_key in hash_keys(record.app_id, value, length):
                    yield HashedId.of(hash_key, raw_key, time_us, retention_days)


def _hashed_kinds(record: record_pb2.Record) -> Iterator[str]:
    """Yields the kinds of an engagement's hashed ids, whether or not its sender calls them hashed."""
    for kind, value in record.device_ids.items():
        if (length := hash_length(value)) is not None:
            raw_kind, _ = HASHED_KINDS.get(kind, (kind, 0))
            yield f"{raw_kind}_{HASH_METHOD_OF_LENGTH[length]}"


def _may_change(engagement: Engagement, rules: AppRules) -> bool:
    """Returns whether an engagement that arrives late may change what was decided before (D12).

    A ping does so only if its network is trusted with the past.
    """
    return bool(rules.app.late_window_us) and (not engagement.is_ping or is_trusted(engagement, rules))


def is_trusted(engagement: Engagement, rules: AppRules) -> bool:
    """Returns whether late pings of an engagement's network may win (D12)."""
    tracker = rules.trackers.get(engagement.tracker_id)
    return tracker is not None and tracker.network.late_pings_us > 0


def _late_arrival(entry: log_pb2.LogEntry, record: record_pb2.Record) -> LateArrival:
    return LateArrival(
        lane=entry.app_lane,
        app_id=record.app_id,
        record_id=record.record_id,
        receive_time_us=entry.receive_time_us,
        because=decision_pb2.BECAUSE_LATE_ENGAGEMENT,
        engagement_id=record.record_id,
        engagement=entry.record,
    )


def engagement_of(record: record_pb2.Record, receive_time_us: int) -> Engagement | None:
    """Returns the engagement a record is, None when it is none.

    A click or impression; or a deep-link open that names a tracker and no click (universal links bypass the redirect):
    that click is given back with the open itself, so it wins with a lookback of 0 (B1).
    """
    time_us, is_ping = event_time_us(record), False
    match record.WhichOneof("kind"):
        case "click":
            click = record.click
            tracker_id, click_id, kind = click.tracker_id, click.click_id, EngagementKind.CLICK
            completed_view, visitor = False, Visitor(click.visitor)
            valid = not click.invalid and not click.invalidity
            is_ping = click.is_ping
        case "impression":
            view = record.impression
            tracker_id, click_id, kind = view.tracker_id, "", EngagementKind.IMPRESSION
            completed_view, visitor, is_ping = view.completed_view, Visitor(view.visitor), view.is_ping
            valid = not view.invalidity
        case "deep_link_open":
            opened = record.deep_link_open
            if not opened.tracker_id or opened.click_record_id:
                return None
            tracker_id, click_id, kind = opened.tracker_id, "", EngagementKind.CLICK
            completed_view, valid, visitor = False, True, Visitor.PERSON
        case _:
            return None
    return Engagement(
        engagement_id=record.record_id,
        kind=kind,
        tracker_id=tracker_id,
        time_us=time_us,
        receive_time_us=receive_time_us,
        is_ping=is_ping,
        device_keys=tuple(device_key(record.app_id, value) for value in record.device_ids.values()),
        ip=normalise_ip(record.ip_address) if record.ip_address else "",
        user_agent=user_agent_of(record.user_agent, _hints(record)),
        click_id=click_id,
        completed_view=completed_view,
        valid=valid,
        visitor=visitor,
        country=record.country,
    )


def _hints(record: record_pb2.Record) -> ClientHints:
    if not record.HasField("client_hints"):
        return NO_HINTS
    hints = record.client_hints
    return ClientHints(hints.model, hints.platform, hints.platform_version)


def conversion_of(record: record_pb2.Record, event_name: str | None, receive_time_us: int) -> Conversion:
    """Returns the conversion a record is, given its name; without the keys of its device's ids."""
    return Conversion(
        conversion_id=record.record_id,
        kind=ConversionKind.INSTALL if event_name == INSTALL else ConversionKind.EVENT,
        time_us=event_time_us(record),
        receive_time_us=receive_time_us,
        event_name="" if event_name is None or event_name == INSTALL else event_name,
        click_id=click_id_of(record),
        ip=normalise_ip(record.ip_address) if record.ip_address else "",
        user_agent=user_agent_of(record.user_agent, _hints(record)),
        limit_ad_tracking=record.limit_ad_tracking,
        has_idfa="idfa" in record.device_ids,
        is_refund=record.event.revenue.amount_micros < 0,
        country=record.country,
        is_session_start=record.HasField("session"),
    )


def claims_of(stored: bytes | None) -> tuple[list[Claim], list[str]]:
    """Returns what networks claim, and those that did not answer in time (E4), of a serialised ConversionClaims."""
    claims: list[Claim] = []
    unavailable: list[str] = []
    for answer in claim_pb2.ConversionClaims.FromString(stored).answers if stored else ():
        if answer.state == claim_pb2.ClaimAnswer.STATE_CLAIMED:
            claim = answer.claim
            claims.append(
                Claim(
                    network_id=answer.network_id,
                    kind=EngagementKind.IMPRESSION if claim.is_view else EngagementKind.CLICK,
                    time_us=claim.engagement_time.ToMicroseconds(),
                    campaign_name=claim.campaign_name,
                    granular_data_allowed=not claim.granular_data_forbidden,
                )
            )
        elif answer.state == claim_pb2.ClaimAnswer.STATE_UNAVAILABLE:
            unavailable.append(answer.network_id)
    return claims, unavailable


def event_name_of(record: record_pb2.Record) -> str | None:
    """Returns the name attribution decides a record under, None when there is nothing to decide."""
    match record.WhichOneof("kind"):
        case "install":
            return INSTALL
        case "event":
            return record.event.event_name
        case "session":
            return SESSION_BEGIN if record.session.state == record_pb2.Session.STATE_START else None
        case "deep_link_open":
            return DEEP_LINK
        case "identity_link":
            return IDENTITY_LINK
        case _:
            return None


def click_id_of(record: record_pb2.Record) -> str:
    """Returns our click id that came back with a record, "" when none did."""
    match record.WhichOneof("kind"):
        case "install":
            return record.install.click_record_id
        case "event":
            return record.event.click_record_id
        case "session":
            return record.session.click_record_id
        case "deep_link_open":
            return record.deep_link_open.click_record_id or (
                record.record_id if record.deep_link_open.tracker_id else ""
            )
        case _:
            return ""


def event_time_us(record: record_pb2.Record) -> int:
    """Returns when it happened."""
    return timestamp_us(record.event_time)


def network_click_key(tracker_id: str, click_id: str) -> bytes:
    """Returns the key of a network's click id on a tracker (A6)."""
    return blake2b(f"{tracker_id}\0{click_id}".encode(), digest_size=16).digest()
