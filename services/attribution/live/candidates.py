"""Finds what may have won a conversion: the engagements stored under its match keys below the heads it is decided at.

Live deciding and deciding again ask here alike, each conversion by itself: what is found for one does not depend on
what else is asked at the same time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from libs.db import Connection
from services.attribution.decision.decide import CONSIDERED_US, judge, trackers_that_may_win
from services.attribution.decision.history import DeviceHistory
from services.attribution.decision.matching import DUPLICATE_CLICK_US, conversion_keys, device_key, raw_id_keys
from services.attribution.decision.model import Conversion, Engagement, EngagementKind, Verdict, WindowKind
from services.attribution.decision.rules import AppRules
from services.attribution.storage.store import AskedKey, FoundEngagement, Store
from services.attribution.wire.records import network_click_key

MOST_CONSIDERED = 40
"""OURS: under one match key, the nearest so many engagements before a conversion, and after it, are considered.

Behind one address of a mobile carrier there may be 100,000 clicks a month: each would be read, judged and stored with
every conversion from there."""

LOOKED_THROUGH = 1_000
"""When the nearest hold no click that settles it, so many are looked through for those that may win: a flood of clicks
that cannot win hides none that can."""


@dataclass(slots=True, kw_only=True)
class Question:
    """A conversion that can be won. `find_candidates` adds its device keys and its candidates, by id.

    `ids` are those its device is known by, as (kind, value). Of `history` only matters whether it knows an install.
    `heads` says which of the heads given it is decided at.
    """

    rules: AppRules
    conversion: Conversion
    ids: Sequence[tuple[str, str]]
    history: DeviceHistory
    heads: int = 0
    candidates: dict[str, Engagement] = field(default_factory=dict)


async def find_candidates(
    store: Store, connection: Connection, questions: Sequence[Question], heads: Sequence[str]
) -> None:
    """Fill in the candidates of each question, repeated clicks marked. `heads` are as `store.heads_text` gives them."""
    if not questions:
        return
    lengths = await store.hash_lengths(connection, {question.rules.app.app_id for question in questions})
    asked: list[AskedKey] = []
    for number, question in enumerate(questions):
        app_id = question.rules.app.app_id
        device_keys = frozenset[bytes]().union(
            *(_device_keys(app_id, kind, value, lengths.get(app_id, frozenset())) for kind, value in question.ids)
        )
        question.conversion = replace(question.conversion, device_keys=device_keys)
        time_us = question.conversion.time_us
        asked += [
            AskedKey(key, time_us, app_id, number, question.heads)
            for key in conversion_keys(question.rules.app, question.conversion)
        ]
    if not asked:
        return
    found = await store.find_engagements(connection, asked, heads, span_us=CONSIDERED_US, most=MOST_CONSIDERED)
    await _consider(store, connection, questions, found.engagements, heads)
    full = ((asked[place], reached_us) for place, reached_us in found.reached_us.items())
    if unsettled := [key for key, reached_us in full if not _settled(questions[key.conversion], key, reached_us)]:
        asking = [questions[key.conversion] for key in unsettled]
        further = await store.find_further(
            connection,
            unsettled,
            heads,
            [_user_agent_begins(question.conversion) for question in asking],
            _trackers(asking),
            span_us=CONSIDERED_US,
            most=MOST_CONSIDERED,
            through=LOOKED_THROUGH,
        )
        await _consider(store, connection, questions, further, heads)


async def _consider(
    store: Store,
    connection: Connection,
    questions: Sequence[Question],
    found: Sequence[FoundEngagement],
    heads: Sequence[str],
) -> None:
    """Add what was found to the candidates of the questions."""
    clicks = {
        (
            network_click_key(engagement.tracker_id, engagement.click_id),
            engagement.time_us,
            engagement.engagement_id,
            at,
        )
        for number, engagement in found
        if engagement.click_id
        for at in (questions[number].heads,)
    }
    repeats = set()
    if clicks:
        # A6, whichever device the first one was of. Two conversions may know of different firsts.
        repeated = await store.find_repeats(connection, clicks, heads, within_us=DUPLICATE_CLICK_US)
        repeats = {(engagement_id, at) for _, engagement_id, at in repeated}
    for number, engagement in found:
        question = questions[number]
        is_repeat = bool(repeats) and (engagement.engagement_id, question.heads) in repeats
        candidate = replace(engagement, duplicate=True) if is_repeat else engagement
        question.candidates[engagement.engagement_id] = candidate


def _settled(question: Question, key: AskedKey, reached_us: int) -> bool:
    """Whether nothing beyond the reach of a key can win: a click on the best level of that key, and nearer, can."""
    conversion, rules = question.conversion, question.rules
    by_device = key.match_key in conversion.device_keys
    best = rules.levels[WindowKind.CLICK_DEVICE if by_device else WindowKind.CLICK_MODELED]
    return any(
        engagement.time_us >= reached_us
        and engagement.kind is EngagementKind.CLICK
        and (candidate := judge(engagement, conversion, question.history, rules)) is not None
        and candidate.verdict is Verdict.WON
        and candidate.level <= best
        for engagement in question.candidates.values()
    )


def _user_agent_begins(conversion: Conversion) -> str:
    """As the user agents begin that match by MODELED, whether or not the OS minor version counts (A5)."""
    return "" if conversion.user_agent is None else "\t".join(conversion.user_agent[:3])


def _trackers(questions: Sequence[Question]) -> list[frozenset[str]]:
    """For each question the trackers that may win it; those of one app and event are looked up once."""
    known: dict[tuple[str, str, str], frozenset[str]] = {}
    keys = [(q.rules.app.app_id, q.conversion.kind, q.conversion.event_name) for q in questions]
    for key, question in zip(keys, questions, strict=True):
        if key not in known:
            known[key] = trackers_that_may_win(question.conversion, question.rules)
    return [known[key] for key in keys]


def _device_keys(app_id: str, kind: str, value: str, lengths: frozenset[int]) -> frozenset[bytes]:
    """All forms in which an engagement may carry a raw id (A3); a hash is only itself."""
    if kind.endswith(("_md5", "_sha1", "_sha256")):
        return frozenset((device_key(app_id, value),))
    return raw_id_keys(app_id, value, lengths)
