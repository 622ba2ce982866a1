"""Runs a scenario: the real decision code on a story, with no server and no database."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from typing import Any

from libs.domain.device_ids import HASHED_KINDS, usable_ids
from libs.domain.visitors import find_bot
from services.attribution.decision.decide import decide
from services.attribution.decision.matching import (
    conversion_keys,
    device_key,
    duplicates,
    engagement_keys,
    hash_length,
    is_hash,
    own_key,
    raw_id_keys,
)
from services.attribution.decision.model import SECOND_US, Conversion, ConversionKind, Decision, Engagement, Visitor
from services.attribution.decision.rules import AppRules, compile_rules
from services.attribution.decision.user_agents import parse_user_agent
from services.attribution.simulator.collector import collector_paused
from services.attribution.simulator.devices import Devices, RawIds
from services.attribution.simulator.scenario import OUTPUT_KEYS, ConversionRecord, EngagementRecord, Scenario


def simulate(scenario: Scenario) -> list[dict[str, Any]]:
    """Returns the output: one object per conversion in the order of receipt, with the keys OUTPUT_KEYS."""
    with collector_paused():
        return list(simulate_one_by_one(scenario))


def simulate_one_by_one(scenario: Scenario) -> Iterator[dict[str, Any]]:
    """Yields the output as `simulate` returns it, each object as soon as its conversion is decided."""
    rules = compile_rules(
        app=scenario.app, networks=scenario.networks, trackers=scenario.trackers, events=scenario.events
    )
    story = _Story(rules)
    for record in scenario.timeline:
        if isinstance(record, EngagementRecord):
            story.receive_engagement(record)
        else:
            decision, shared = story.receive_conversion(record)
            if decision is not None:
                yield _line(record, decision, shared)


def check(output: list[dict[str, Any]], expect: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a readable line for each difference between the output and what is expected by conversion id.

    A list must be equal, an object may be a subset.
    """
    lines = {line["id"]: line for line in output}
    return [d for name, expected in expect.items() for d in _differences(name, expected, lines.get(name))]


def _differences(place: str, expected: Any, actual: Any) -> list[str]:
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        return [d for key, value in expected.items() for d in _differences(f"{place}.{key}", value, actual.get(key))]
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        pairs = enumerate(zip(expected, actual, strict=True))
        return [d for at, (value, other) in pairs for d in _differences(f"{place}[{at}]", value, other)]
    if type(expected) is type(actual) and expected == actual:
        return []
    return [f"{place}: expected {_json(expected)}, got {_json(actual)}"]


class _Story:
    """The records received so far. It stands for the database of the live path, and decides nothing itself.

    OURS: the ids of installs and events make a device known; a click that names two ids joins no devices, since anyone
    can make a click.
    """

    def __init__(self, rules: AppRules) -> None:
        self._rules = rules
        self._engagements: dict[str, Engagement] = {}
        self._ids_by_key: defaultdict[bytes, list[str]] = defaultdict(list)
        self._ids_by_click_id: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        self._hash_lengths: set[int] = set()
        self._wins: Counter[str] = Counter()
        self._devices, self._engaged_ids = Devices(), RawIds()

    def receive_engagement(self, record: EngagementRecord) -> None:
        app = self._rules.app
        device_ids = usable_ids(record.device).values()
        self._hash_lengths.update(length for value in device_ids if (length := hash_length(value)))
        engagement = Engagement(
            engagement_id=record.id,
            kind=record.kind,
            tracker_id=record.tracker,
            time_us=record.time_us,
            device_keys=tuple(device_key(app.app_id, value) for value in device_ids),
            ip=record.ip,
            user_agent=parse_user_agent(record.ua) if record.ua else None,
            click_id=record.click_id,
            completed_view=record.completed_view,
            visitor=_visitor(record),
            country=record.country,
        )
        self._engagements[record.id] = engagement
        for kind, value in usable_ids(record.device).items():
            self._engaged_ids.add(kind, value)
        for key in (own_key(app.app_id, record.id), *engagement_keys(app, engagement)):
            self._ids_by_key[key].append(record.id)
        if record.click_id:
            self._mark_duplicates(engagement)

    def receive_conversion(self, record: ConversionRecord) -> tuple[Decision | None, Mapping[str, int]]:
        """Returns the decision on a record, None for a session that goes on (D4); and its shared ids (A8).

        These are given by kind, with how many advertising ids share each.
        """
        app = self._rules.app
        device_ids = usable_ids(record.device)
        device, shared = self._devices.take(device_ids)
        goes_on = record.is_session_start and device.history.goes_on(record.time_us, device.active_us)
        if record.name:
            device.active_us.append(record.time_us)
        if goes_on:
            return None, shared
        conversion = Conversion(
            conversion_id=record.id,
            kind=ConversionKind.EVENT if record.name else ConversionKind.INSTALL,
            time_us=record.time_us,
            event_name=record.name,
            device_keys=frozenset().union(
                *(self._device_keys(kind, value) for (kind, _), spellings in device.ids.items() for value in spellings)
            ),
            click_id=record.click,
            ip=record.ip,
            user_agent=parse_user_agent(record.ua) if record.ua else None,
            limit_ad_tracking=record.limit_ad_tracking,
            has_idfa="idfa" in device_ids,
            is_refund=record.is_refund,
            country=record.country,
        )
        keys = conversion_keys(app, conversion)
        found = {engagement_id for key in keys for engagement_id in self._ids_by_key.get(key, ())}
        decision = decide(
            conversion,
            device.history,
            self._rules,
            candidates=[self._engagements[engagement_id] for engagement_id in found],
            wins=self._wins,
            claims=record.claims,
        )
        device.history = device.history.after(conversion, decision)
        if decision.engagement_id is not None:
            self._wins[decision.engagement_id] += 1
        return decision, shared

    def _mark_duplicates(self, engagement: Engagement) -> None:
        ids = self._ids_by_click_id[engagement.tracker_id, engagement.click_id]
        ids.append(engagement.engagement_id)
        group = [self._engagements[engagement_id] for engagement_id in ids]
        repeated = duplicates(group)
        for member in group:
            self._engagements[member.engagement_id] = replace(member, duplicate=member.engagement_id in repeated)

    def _device_keys(self, kind: str, value: str) -> Set[bytes]:
        """Returns the keys under which an engagement may carry an id: of a hash itself, and its raw id (A3)."""
        app_id = self._rules.app.app_id
        if kind not in HASHED_KINDS:
            return raw_id_keys(app_id, value, self._hash_lengths)
        same = self._engaged_ids.of(value, HASHED_KINDS[kind][1]) if is_hash(kind, value) else ()
        return {device_key(app_id, value), *(device_key(app_id, raw_id) for _, raw_id in same)}


def _visitor(record: EngagementRecord) -> Visitor:
    """Applies A9."""
    if find_bot(record.ua) is not None:
        return Visitor.BOT
    return Visitor.PREFETCH if record.is_prefetch else Visitor.PERSON


def _line(record: ConversionRecord, decision: Decision, shared: Mapping[str, int]) -> dict[str, Any]:
    lookback_us = decision.lookback_us
    values = (
        record.id,
        "event" if record.name else "install",
        decision.outcome.value,
        decision.attribution_type.value,
        decision.tracker_id,
        decision.network_id,
        decision.source_conversion_id,
        decision.engagement_id,
        None if decision.matched_by is None else decision.matched_by.value,
        decision.level,
        None if lookback_us is None else lookback_us // SECOND_US,
        None if decision.reason is None else decision.reason.value,
        decision.install_known,
        dict(decision.custom_dimensions),
        [{"engagement": c.engagement_id, "verdict": c.verdict.value} for c in decision.candidates],
        dict(shared),
    )
    return dict(zip(OUTPUT_KEYS, values, strict=True))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
