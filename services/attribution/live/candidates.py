"""Finds what may have won a conversion: the engagements stored under its match keys that were received in time.

Live deciding and replays ask here alike, each conversion by itself: what is found for one does not depend on what else
is asked at the same time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from libs.db import MAX_ROWS, Connection, in_statements
from libs.domain.device_ids import HASHED_KINDS
from services.attribution.decision.decide import CONSIDERED_US, judge, trackers_that_may_win
from services.attribution.decision.history import DeviceHistory
from services.attribution.decision.matching import (
    DUPLICATE_CLICK_US,
    Id,
    conversion_keys,
    device_key,
    is_hash,
    raw_id_keys,
)
from services.attribution.decision.model import Conversion, Engagement, EngagementKind, Verdict, WindowKind
from services.attribution.decision.rules import AppRules
from services.attribution.storage.engagements import (
    AskedKey,
    FoundEngagement,
    find_engagements,
    find_further,
    find_pings,
    find_repeats,
    find_used_keys,
)
from services.attribution.storage.hashed_ids import find_hash_lengths, find_raw_keys
from services.attribution.wire.records import network_click_key

MAX_CONSIDERED = 40
"""OURS: under one match key, the nearest so many engagements before a conversion, and after it, are considered.

Behind one address of a mobile carrier there may be 100,000 clicks a month: each would be read, judged and stored with
every conversion from there."""

MAX_CANDIDATES = 200
"""OURS: under all keys of a conversion together, the nearest so many engagements before it, and after it."""

MAX_FORMS = 100
"""OURS: a conversion considers engagements under so many forms of its device's ids (A3), the ids themselves first.

Nobody's device is engaged under as many: but someone can make clicks with every form of every id that a device has."""

MAX_LOOKED_THROUGH = 1_000
"""When the nearest hold no click that settles it, so many are looked through for those that may win: a flood of clicks
that cannot win hides none that can."""
MAX_KEYS_LOOKED_THROUGH = 20
"""OURS: of one conversion. Those of its addresses and of its ids themselves come first."""

_FEW_KEYS = 100
"""So many keys of a conversion are asked for at once; of more, most are of forms that nobody ever sent (A3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateQuery:
    """A conversion that can be won.

    `ids` are those its device is known by, as (kind, value). Of `history` only matters whether it knows an install.
    Engagements received after `until_us` do not count.
    """

    rules: AppRules
    conversion: Conversion
    ids: Sequence[Id]
    history: DeviceHistory
    until_us: int


class Candidates(NamedTuple):
    """A conversion with the keys of its device's ids, and the engagements that may have won it, by id."""

    conversion: Conversion
    engagements: dict[str, Engagement]


async def find_candidates(connection: Connection, queries: Sequence[CandidateQuery]) -> list[Candidates]:
    """Returns the candidates of each query, repeated clicks marked."""
    if not queries:
        return []
    found = [Candidates(conversion, {}) for conversion in await _with_keys(connection, queries)]
    asked = [
        AskedKey(key, conversion.time_us, query.rules.app.app_id, number, query.until_us)
        for number, (query, (conversion, _)) in enumerate(zip(queries, found, strict=True))
        for key in conversion_keys(query.rules.app, conversion)
    ]
    used = await _without_empty(connection, queries, asked)
    unsettled: list[AskedKey] = []
    for some in _whole_conversions(used):
        nearest = await find_engagements(connection, some, span_us=CONSIDERED_US, limit=MAX_CONSIDERED)
        await _add(connection, queries, found, nearest.engagements)
        reached = {some[place]: reached_us for place, reached_us in nearest.reached_us.items()}
        for number, keys in _by_conversion(some):
            reached |= _reduce(found[number], keys)
        unsettled += _unsettled(queries, found, reached)
    for some in in_statements(unsettled):
        further = await find_further(
            connection,
            some,
            [_user_agent_begins(found[key.conversion].conversion) for key in some],
            _trackers([queries[key.conversion] for key in some]),
            span_us=CONSIDERED_US,
            limit=MAX_CONSIDERED,
            through=MAX_LOOKED_THROUGH,
        )
        await _add(connection, queries, found, further)
    return found


async def _without_empty(
    connection: Connection, queries: Sequence[CandidateQuery], asked: Sequence[AskedKey]
) -> Sequence[AskedKey]:
    """Returns the keys asked for without those that hold nothing, where a conversion has many, and no more than count.

    Conversions of one device have the same keys: these are looked at once.
    """
    many = {number for number, keys in _by_conversion(asked) if len(keys) > _FEW_KEYS}
    if not many:
        return asked
    used = await find_used_keys(connection, [key for key in asked if key.conversion in many], span_us=CONSIDERED_US)
    kept: list[AskedKey] = []
    for number, keys in _by_conversion(asked):
        if number not in many:
            kept += keys
            continue
        of_it = [key for key in keys if key.match_key in used]
        if len(of_it) > MAX_FORMS:  # those that hold something for it alone: whatever else is asked
            its_own = await find_used_keys(connection, of_it, span_us=CONSIDERED_US)
            of_it = _first(queries[number], [key for key in of_it if key.match_key in its_own], MAX_FORMS)
        kept += of_it
    return kept


def _whole_conversions(asked: Sequence[AskedKey]) -> Iterator[list[AskedKey]]:
    """Yields keys in lists, each for one statement; those of one conversion stay together."""
    some: list[AskedKey] = []
    for _, keys in _by_conversion(asked):
        if some and len(some) + len(keys) > MAX_ROWS:
            yield some
            some = []
        some += keys
    if some:
        yield some


def _by_conversion(asked: Iterable[AskedKey]) -> Iterator[tuple[int, list[AskedKey]]]:
    for number, keys in groupby(asked, key=attrgetter("conversion")):
        yield number, list(keys)


def _first(query: CandidateQuery, keys: Sequence[AskedKey], limit: int) -> list[AskedKey]:
    """Returns the first of a conversion's keys: of its click and addresses, of its ids themselves, of their hashes."""
    if len(keys) <= limit:
        return list(keys)
    app, conversion = query.rules.app, replace(query.conversion, device_keys=frozenset())
    plain = [device_key(app.app_id, value) for _, value in query.ids]
    order = {key: place for place, key in enumerate((*conversion_keys(app, conversion), *plain))}
    return sorted(keys, key=lambda key: (order.get(key.match_key, len(order)), key.match_key))[:limit]


def _reduce(found: Candidates, keys: Sequence[AskedKey]) -> dict[AskedKey, int]:
    """Leaves a conversion the nearest of too many candidates, and the click that it gives back.

    Returns how far its keys reach then, as `Found` does.
    """
    conversion, engagements = found
    if len(engagements) <= MAX_CANDIDATES:
        return {}
    time_us = conversion.time_us
    in_order = sorted(engagements.values(), key=lambda each: (abs(each.time_us - time_us), each.engagement_id))
    earlier = [each for each in in_order if each.time_us < time_us]
    later = [each for each in in_order if each.time_us >= time_us]
    kept = {each.engagement_id for each in (*earlier[:MAX_CANDIDATES], *later[:MAX_CANDIDATES])}
    for engagement_id in engagements.keys() - kept - {conversion.click_id}:
        del engagements[engagement_id]
    if len(earlier) <= MAX_CANDIDATES:
        return {}
    return dict.fromkeys(keys, earlier[MAX_CANDIDATES - 1].time_us)


def _unsettled(
    queries: Sequence[CandidateQuery], found: Sequence[Candidates], reached: Mapping[AskedKey, int]
) -> Iterator[AskedKey]:
    """Yields the keys beyond whose reach something may lie that can win."""
    unsettled = [
        key
        for key, reached_us in reached.items()
        if not _is_settled(queries[key.conversion], found[key.conversion], key, reached_us)
    ]
    for number, keys in _by_conversion(sorted(unsettled, key=attrgetter("conversion"))):
        yield from _first(queries[number], keys, MAX_KEYS_LOOKED_THROUGH)


async def find_late_pings(connection: Connection, query: CandidateQuery) -> Candidates:
    """Returns the server pings that are dated before a conversion and were received after it (D12)."""
    [conversion] = await _with_keys(connection, [query])
    app_id = query.rules.app.app_id
    asked = [
        AskedKey(key, conversion.time_us, app_id, 0, query.until_us)
        for key in conversion_keys(query.rules.app, conversion)
    ]
    pings = await find_pings(
        connection,
        [key.match_key for key in await _without_empty(connection, [query], asked)],
        app_id,
        time_us=conversion.latest_us,
        receive_time_us=conversion.receive_time_us,
        until_us=query.until_us,
        span_us=CONSIDERED_US,
        through=MAX_LOOKED_THROUGH,
        limit=MAX_CONSIDERED,
    )
    return Candidates(conversion, {ping.engagement_id: ping for ping in pings})


async def _with_keys(connection: Connection, queries: Sequence[CandidateQuery]) -> list[Conversion]:
    """Returns the conversions, each with the keys of its device's ids in all forms that engagements carry (A3)."""
    app_ids = {query.rules.app.app_id for query in queries}
    lengths = await find_hash_lengths(connection, app_ids, is_on_conversions=False)
    raw_keys = await _raw_keys(connection, queries)
    known: dict[tuple[str, tuple[Id, ...]], frozenset[bytes]] = {}
    conversions = []
    for query in queries:
        app_id, ids = query.rules.app.app_id, tuple(query.ids)
        keys = known.get((app_id, ids))
        if keys is None:  # the conversions of a device have the same, as a rule
            keys = known[app_id, ids] = _keys_of(app_id, ids, lengths.get(app_id, frozenset()), raw_keys)
        conversions.append(replace(query.conversion, device_keys=keys))
    return conversions


async def _raw_keys(connection: Connection, queries: Sequence[CandidateQuery]) -> Mapping[bytes, Set[bytes]]:
    """Returns for the hashes that conversions carry the keys of the raw ids that engagements carry for them (A3)."""
    hash_keys = {
        device_key(query.rules.app.app_id, value)
        for query in queries
        for kind, value in query.ids
        if is_hash(kind, value)
    }
    if not hash_keys:
        return {}
    times_us = [query.conversion.time_us for query in queries]
    return await find_raw_keys(
        connection, hash_keys, start_us=min(times_us) - CONSIDERED_US, end_us=max(times_us) + CONSIDERED_US
    )


def _keys_of(
    app_id: str, ids: Iterable[Id], lengths: frozenset[int], raw_keys: Mapping[bytes, Set[bytes]]
) -> frozenset[bytes]:
    return frozenset[bytes]().union(*(_device_keys(app_id, kind, value, lengths, raw_keys) for kind, value in ids))


async def _add(
    connection: Connection,
    queries: Sequence[CandidateQuery],
    found: Sequence[Candidates],
    engagements: Sequence[FoundEngagement],
) -> None:
    """Adds engagements to the candidates that they were found for."""
    clicks = {
        (
            network_click_key(engagement.tracker_id, engagement.click_id),
            engagement.counted_us,
            engagement.engagement_id,
            queries[number].until_us,
        )
        for number, engagement in engagements
        if engagement.click_id
    }
    repeats = set[tuple[str, int]]()
    if clicks:
        # A6, whichever device the first one was of. Two conversions may know of different firsts.
        repeats = await find_repeats(connection, clicks, within_us=DUPLICATE_CLICK_US)
    for number, engagement in engagements:
        is_repeat = bool(repeats) and (engagement.engagement_id, queries[number].until_us) in repeats
        candidate = replace(engagement, duplicate=True) if is_repeat else engagement
        found[number].engagements[engagement.engagement_id] = candidate


def _is_settled(query: CandidateQuery, found: Candidates, key: AskedKey, reached_us: int) -> bool:
    """Returns whether nothing beyond the reach of a key can win: a click on its best level, and nearer, can."""
    conversion, rules = found.conversion, query.rules
    by_device = key.match_key in conversion.device_keys
    best = rules.levels[WindowKind.CLICK_DEVICE if by_device else WindowKind.CLICK_MODELED]
    return any(
        engagement.time_us >= reached_us
        and engagement.kind is EngagementKind.CLICK
        and (candidate := judge(engagement, conversion, query.history, rules)) is not None
        and candidate.verdict is Verdict.WON
        and candidate.level <= best
        for engagement in found.engagements.values()
    )


def _user_agent_begins(conversion: Conversion) -> str:
    """Returns how the user agents begin that match by MODELED, whether or not the OS minor version counts (A5)."""
    return "" if conversion.user_agent is None else "\t".join(conversion.user_agent[:3])


def _trackers(queries: Sequence[CandidateQuery]) -> list[frozenset[str]]:
    """Returns for each query the trackers that may win it; those of one app and event are looked up once."""
    known: dict[tuple[str, str, str], frozenset[str]] = {}
    keys = [(each.rules.app.app_id, each.conversion.kind, each.conversion.event_name) for each in queries]
    for key, query in zip(keys, queries, strict=True):
        if key not in known:
            known[key] = trackers_that_may_win(query.conversion, query.rules)
    return [known[key] for key in keys]


def _device_keys(
    app_id: str, kind: str, value: str, lengths: frozenset[int], raw_keys: Mapping[bytes, Set[bytes]]
) -> Set[bytes]:
    """Returns the keys of all forms in which an engagement may carry an id (A3): of a hash itself, and its raw id."""
    if kind not in HASHED_KINDS:
        return raw_id_keys(app_id, value, lengths)
    key = device_key(app_id, value)
    return {key} | raw_keys.get(key, set())
