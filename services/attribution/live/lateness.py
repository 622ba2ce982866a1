"""Finds the devices that a late record concerns (D12): by an id, a click id or an address, never by a search."""

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import TypeAlias

from libs.db import Connection
from reengage.ingest.v1 import record_pb2
from services.attribution.decision.decide import CONSIDERED_US
from services.attribution.decision.matching import DUPLICATE_CLICK_US, address_keys, hash_keys
from services.attribution.decision.model import SECOND_US, Engagement
from services.attribution.storage.decisions import find_wins
from services.attribution.storage.devices import find_devices_of_keys
from services.attribution.storage.engagements import find_repeating
from services.attribution.storage.hashed_ids import find_hash_lengths
from services.attribution.storage.late_arrivals import (
    AskedDevice,
    AskedEngagement,
    LateArrival,
    devices_by_engagement,
    find_latest,
)
from services.attribution.wire.records import engagement_of, network_click_key

MAX_BY_ADDRESS = 50
"""OURS: under each key of its address a late engagement concerns so many conversions, the nearest after it."""

Concerned: TypeAlias = Mapping[uuid.UUID, LateArrival]
"""The devices that late records concern, each with the one that was received first."""


async def concerned_devices(connection: Connection, arrivals: Sequence[LateArrival]) -> Concerned:
    """Returns the devices that late arrivals of one app, given in order of receipt, concern."""
    found: dict[uuid.UUID, LateArrival] = {}
    engagements: list[tuple[LateArrival, Engagement]] = []
    for arrival in arrivals:
        if arrival.device_id is not None:
            found.setdefault(arrival.device_id, arrival)
        elif (engagement := _engagement(arrival.engagement or b"", arrival.receive_time_us)) is not None:
            engagements.append((arrival, engagement))
    by_wins = await _winners_of_repeats(connection, engagements)
    for device_id, arrival in (*by_wins, *await _by_engagements(connection, engagements)):
        found.setdefault(device_id, arrival)
    return found


def _engagement(record: bytes, receive_time_us: int) -> Engagement | None:
    return engagement_of(record_pb2.Record.FromString(record), receive_time_us)


async def _winners_of_repeats(
    connection: Connection, engagements: Sequence[tuple[LateArrival, Engagement]]
) -> list[tuple[uuid.UUID, LateArrival]]:
    """Returns the devices with conversions won by later clicks that late ones make repeats (A6)."""
    by_key = {
        network_click_key(each.tracker_id, each.click_id): (arrival, each)
        for arrival, each in reversed(engagements)
        if each.click_id
    }
    if not by_key:
        return []
    clicks = [(key, each.counted_us, each.engagement_id) for key, (_, each) in by_key.items()]
    repeating = await find_repeating(connection, clicks, within_us=DUPLICATE_CLICK_US)
    arrival_of = {engagement_id: by_key[key][0] for key, engagement_id in repeating}
    lane, app_id = engagements[0][0].lane, engagements[0][0].app_id
    won = await find_wins(connection, {(lane, engagement_id) for engagement_id in arrival_of}) if arrival_of else ()
    return [(each.device_id, arrival_of[each.engagement_id]) for each in won if each.app_id == app_id]


async def _by_engagements(
    connection: Connection, engagements: Sequence[tuple[LateArrival, Engagement]]
) -> list[tuple[uuid.UUID, LateArrival]]:
    """Returns the devices with conversions that engagements may change, each with the arrival of the engagement."""
    if not engagements:
        return []
    asked = [
        AskedEngagement(
            place,
            arrival.lane,
            arrival.app_id,
            engagement.engagement_id,
            address_keys(arrival.app_id, engagement.ip),
            engagement.time_us,
        )
        for place, (arrival, engagement) in enumerate(engagements)
    ]
    found = set(
        await devices_by_engagement(connection, asked, slack_us=SECOND_US, span_us=CONSIDERED_US, limit=MAX_BY_ADDRESS)
    )
    found |= await _by_ids(connection, engagements[0][0].app_id, engagements)
    return [(device_id, engagements[place][0]) for place, device_id in sorted(found)]


async def _by_ids(
    connection: Connection, app_id: str, engagements: Sequence[tuple[LateArrival, Engagement]]
) -> set[tuple[int, uuid.UUID]]:
    """Returns (place, device) of the devices that the ids of engagements lead to, if they have later conversions."""
    lengths = await find_hash_lengths(connection, {app_id}, is_on_conversions=True)
    keys = [_keys(arrival, engagement, lengths.get(app_id, ())) for arrival, engagement in engagements]
    everything = frozenset[bytes]().union(*keys)
    devices = await find_devices_of_keys(connection, everything) if everything else {}
    asked = [
        (place, arrival.lane, arrival.app_id, device_id, engagement.time_us - SECOND_US)
        for place, (arrival, engagement) in enumerate(engagements)
        for key in keys[place]
        for device_id in devices.get(key, ())
    ]
    if not asked:
        return set()
    latest = await find_latest(
        connection, {AskedDevice(*each[1:4]) for each in asked}, after_us=min(each[4] for each in asked)
    )
    return {(place, device_id) for place, *_, device_id, time_us in asked if latest.get(device_id, time_us) > time_us}


def _keys(arrival: LateArrival, engagement: Engagement, hash_lengths: Collection[int]) -> frozenset[bytes]:
    """Returns the keys that a device may be known by: of an engagement's ids, and of hashes of the raw ones (A3)."""
    if not hash_lengths:
        return frozenset(engagement.device_keys)
    ids = record_pb2.Record.FromString(arrival.engagement or b"").device_ids.values()
    hashes = (hash_keys(arrival.app_id, value, length) for value in ids for length in hash_lengths)
    return frozenset(engagement.device_keys).union(*hashes)
