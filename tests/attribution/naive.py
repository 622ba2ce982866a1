"""A second implementation of the rules, sections A to F and the order of G2: written from the rules alone, to be
compared with the product's. It looks at everything that was received, again for every conversion, and keeps nothing but
the list of what was decided. Slow and plain on purpose; it shares a scenario's words with what it checks, and no rule.
"""

import hashlib
import itertools
import re
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from typing import Any

from services.attribution.decision.model import Claim, EngagementKind, TrackerType, WindowKind
from services.attribution.decision.rules import Network, Tracker
from services.attribution.simulator.scenario import ConversionRecord, EngagementRecord, Scenario

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
FOREVER = 10**18

BUILT_IN = {
    WindowKind.CLICK_DEVICE: 30 * DAY,
    WindowKind.CLICK_MODELED: 7 * DAY,
    WindowKind.CLICK_IP: 7 * DAY,
    WindowKind.CLICK_EQUALIZER: 0,
    WindowKind.IMPRESSION_DEVICE: DAY,
    WindowKind.IMPRESSION_MODELED: DAY,
    WindowKind.IMPRESSION_IP: DAY,
    WindowKind.EVENT_ASSOCIATION: FOREVER,
}
"""B2; the last one D8."""

VERDICTS = (
    "NO_TRACKER_FOR_CLAIM",
    "TRACKER_ARCHIVED",
    "WRONG_TRACKER_TYPE",
    "EVENT_NOT_SELECTED",
    "IMPRESSIONS_NOT_ALLOWED",
    "MATCH_KIND_NOT_ALLOWED",
    "REPORTED_LATE",
    "DUPLICATE_CLICK",
    "BOT",
    "PREFETCH",
    "GRANULAR_DATA_NOT_ALLOWED",
    "VIEW_WINDOW_ZERO",
    "WINDOW_DISABLED",
    "AFTER_CONVERSION",
    "OUTSIDE_WINDOW",
    "DEVICE_ACTIVE",
    "TRAFFIC_RULE",
    "ENGAGEMENT_SPENT",
)
"""Of G2, in its order; BLOCKLISTED cannot be said in a scenario."""


NOT_PRINTED = ("redacted", "install_time", "source_engagement")
"""The fields that a decision tells as well: a change of one makes a new version."""


@dataclass(kw_only=True)
class Decided:
    """A decided conversion, and the answers that later conversions of its device need."""

    conversion: ConversionRecord
    place: int
    nobodys: set[tuple[str, str]] = field(default_factory=set)
    line: dict[str, Any] = field(default_factory=dict)
    version: int = 0
    because: str = ""

    @property
    def order(self) -> tuple[int, int, int]:
        """Returns the order of times; at equal times that of receipt (D12)."""
        return self.conversion.time_us, self.conversion.receive_time_us, self.place

    @property
    def outcome(self) -> str:
        return str(self.line.get("outcome"))

    @property
    def is_install(self) -> bool:
        return not self.conversion.name

    @property
    def is_counted_install(self) -> bool:
        return self.is_install and self.outcome != "DUPLICATE"

    @property
    def is_attribution(self) -> bool:
        """Returns whether it is an install, attributed or organic, or a reengagement (D3, D6)."""
        return self.is_counted_install or self.outcome == "REENGAGED"


@dataclass(kw_only=True)
class Considered:
    """An engagement or a claim, and why it cannot win: every reason that holds."""

    id: str
    time: int
    tracker: Tracker | None
    network: str
    matched_by: str
    level: int = 0
    completed_view: bool = False
    is_late: bool = False
    skew: int = 0
    redacted: bool = False
    refusals: set[str]
    verdict: str = ""


@dataclass(kw_only=True, eq=False)
class Device:
    """The conversions that were decided for a device, and the ids that lead to it; `named` in the order of naming."""

    ids: set[tuple[str, str]]
    named: list[tuple[str, str]]
    decided: list[Decided]


def decide_all(scenario: Scenario) -> list[dict[str, Any]]:
    """Returns the lines of output of a scenario, one per conversion in order of receipt."""
    return Naive(scenario).run()


class Naive:
    """The naive reading of a scenario: after each record it decides all that is open, in the order of times (D12).

    `decided` is what a conversion knows of when it is decided: of the earlier all, of the later what was decided for
    good when it arrived. `winners` are all conversions that it may count as such (D5).
    """

    def __init__(self, scenario: Scenario) -> None:
        self.app = scenario.app
        self.scenario = scenario
        self.engagements: list[EngagementRecord] = []
        self.received: list[Decided] = []
        self.decided: list[Decided] = []
        self.devices: dict[str, Device] = {}

    def run(self) -> list[dict[str, Any]]:
        for place, record in enumerate(self.scenario.timeline):
            if isinstance(record, EngagementRecord):
                self.engagements.append(record)
                because = "LATE_ENGAGEMENT"
            else:
                self.received.append(Decided(conversion=record, place=place))
                self.received[-1].nobodys = nobodys([each.conversion for each in self.received])
                because = "LATE_EVENT" if record.name else "LATE_INSTALL"
            for each in sorted(self.received, key=lambda decided: decided.order):
                if each.version == 0 or (self.app.late_window_us and not self.is_closed(each, record.receive_time_us)):
                    self.decide(each, because)
        return [
            {key: value for key, value in each.line.items() if key not in NOT_PRINTED}
            | {"version": each.version}
            | ({"because": each.because} if each.because else {})
            for each in self.received
            if each.line
        ]

    def is_closed(self, decided: Decided, time_us: int) -> bool:
        return decided.conversion.receive_time_us + self.app.late_window_us < time_us

    def knows(self, one: Decided, other: Decided) -> bool:
        """Returns whether one conversion is decided with another before it."""
        if not self.app.late_window_us:
            return other.place < one.place
        return other.order < one.order or self.is_closed(other, one.conversion.receive_time_us)

    def decide(self, each: Decided, because: str) -> None:
        self.decided = [other for other in self.received if other is not each and self.knows(each, other)]
        self.devices = {}
        record = each.conversion
        if record.is_session_start and self.goes_on(record):
            line = {}
        else:
            line = self.event(record) if record.name else self.install(record)
            installs = [other.conversion.time_us for other in self.history(record) if other.is_counted_install]
            line["shared_ids"] = self.shared_ids(each)
            line["install_time"] = min(installs, default=None if record.name else record.time_us)
        if each.version == 0:
            each.line, each.version = line, 1
        elif told(line) != told(each.line):
            each.line, each.version, each.because = line, each.version + 1, because

    # F

    def install(self, install: ConversionRecord) -> dict[str, Any]:
        history = self.history(install)
        earlier = [decided for decided in history if decided.is_counted_install]
        line = blank(install, "install", install_known=True)
        if not earlier:
            self.let_compete(line, install, TrackerType.ACQUISITION, "ATTRIBUTED", "ORGANIC")
            return line
        window = self.app.install_reprocessing_window_us
        latest = max(decided.conversion.time_us for decided in earlier)
        if window is None or install.time_us - latest < window:
            line.update(outcome="DUPLICATE", reason="DUPLICATE_INSTALL")
            return line
        self.let_compete(line, install, TrackerType.REENGAGEMENT, "REPROCESSED", "REPROCESSED_ORGANIC")
        return line

    # D

    def event(self, event: ConversionRecord) -> dict[str, Any]:
        history = self.history(event)
        line = blank(event, "event", install_known=any(decided.is_install for decided in history))
        reason = self.ineligible(event, history)
        if reason is None:
            self.let_compete(line, event, TrackerType.REENGAGEMENT, "REENGAGED", "UNATTRIBUTED")
        else:
            line.update(outcome="UNATTRIBUTED", reason=reason)
        if reason == "MTR_NOT_MET":
            line["custom_dimensions"] = {"mtr_rejected": str(self.mtr(event.name) // SECOND)}
        if line["outcome"] == "UNATTRIBUTED":
            self.credit(line, event, history)
        return line

    def goes_on(self, session: ConversionRecord) -> bool:
        """D4. OURS: not exactly 30 minutes later."""
        return any(
            each.conversion.name and 0 <= session.time_us - each.conversion.time_us < 30 * MINUTE
            for each in self.history(session)
        )

    def ineligible(self, event: ConversionRecord, history: list[Decided]) -> str | None:
        installs = [decided.conversion.time_us for decided in history if decided.is_counted_install]
        if installs and event.time_us <= min(installs):
            return "EVENT_BEFORE_INSTALL"  # D10
        if not any(
            tracker.live and tracker.type == TrackerType.REENGAGEMENT and event.name in tracker.events
            for tracker in self.scenario.trackers
        ):
            return "EVENT_NOT_SELECTED"  # D1
        if event.is_refund:
            return "REFUND"  # D11
        attributions = [decided.conversion.time_us for decided in history if decided.is_attribution]
        mtr = self.mtr(event.name)
        if mtr > 0 and attributions and event.time_us - max(attributions) < mtr:
            return "MTR_NOT_MET"  # D3
        if event.name == "SessionBegin" and any(
            abs(event.time_us - decided.conversion.time_us) < DAY
            for decided in history
            if decided.outcome == "REENGAGED" and decided.conversion.name == "SessionBegin"
        ):
            return "SESSION_ALREADY_REENGAGED"  # D4
        return None

    def mtr(self, event_name: str) -> int:
        for definition in self.scenario.events:
            if definition.event_name == event_name:
                return definition.mtr_us
        return DAY

    def reengagement_period(self, event_name: str) -> int:
        for definition in self.scenario.events:
            if definition.event_name == event_name:
                return definition.reengagement_period_us
        return FOREVER

    def credit(self, line: dict[str, Any], event: ConversionRecord, history: list[Decided]) -> None:
        """D6, D8."""
        source = max(
            (a for a in history if a.is_attribution and a.conversion.time_us <= event.time_us), key=when, default=None
        )
        if source is None:
            return
        if source.line["tracker"] is None:
            line["source"] = source.conversion.id
            return
        age = event.time_us - source.conversion.time_us
        if not source.is_install and age >= self.reengagement_period(source.conversion.name):
            return
        if age >= self.window(self.tracker(source.line["tracker"]), WindowKind.EVENT_ASSOCIATION):
            return
        line["outcome"] = "CREDITED"
        line["source"] = source.conversion.id
        line["source_engagement"] = source.line["engagement"]
        for key in ("attribution_type", "tracker", "network", "redacted"):
            line[key] = source.line[key]

    # C

    def let_compete(
        self, line: dict[str, Any], conversion: ConversionRecord, needed: TrackerType, won: str, lost: str
    ) -> None:
        considered = self.considered(conversion, needed)
        winner: Considered | None = None
        for candidate in considered:
            if not candidate.refusals and (winner is None or self.beats(candidate, winner)):
                winner = candidate
        for candidate in considered:
            candidate.verdict = self.verdict(candidate, winner)
        line["candidates"] = [
            {"engagement": candidate.id, "verdict": candidate.verdict}
            for candidate in sorted(considered, key=lambda candidate: candidate.id)
        ]
        if winner is None:
            came_before = any(not candidate.is_late for candidate in considered)  # D12
            line.update(outcome=lost, reason="NO_WINNER" if came_before else "NO_CANDIDATE")
            line["source"] = None if conversion.name else conversion.id
            return
        assert winner.tracker is not None
        line.update(
            outcome=won,
            attribution_type="INSTALL" if needed == TrackerType.ACQUISITION else "REENGAGEMENT",
            tracker=winner.tracker.tracker_id,
            network=winner.network,
            source=conversion.id,
            source_engagement=winner.id,
            engagement=winner.id,
            matched_by=winner.matched_by,
            level=winner.level,
            lookback_s=(conversion.time_us - winner.time) // SECOND,
            redacted=winner.redacted,
        )
        if winner.skew > 0:  # B1, and it was given back
            line["custom_dimensions"] = {"clock_skew": str(Decimal(winner.skew) / SECOND)}

    def beats(self, one: Considered, other: Considered) -> bool:
        if one.level != other.level:
            return one.level < other.level
        if self.app.prioritize_completed_view and one.completed_view != other.completed_view:
            return one.completed_view
        if one.time != other.time:
            return one.time > other.time
        return one.id < other.id

    def verdict(self, candidate: Considered, winner: Considered | None) -> str:
        for verdict in VERDICTS:
            if verdict in candidate.refusals:
                return verdict
        assert winner is not None
        if candidate is winner:
            return "WON"
        if candidate.level > winner.level:
            return "LOST_TO_HIGHER_LEVEL"
        if self.app.prioritize_completed_view and winner.completed_view and not candidate.completed_view:
            return "LOST_TO_COMPLETED_VIEW"
        return "LOST_TO_MORE_RECENT"

    def considered(self, conversion: ConversionRecord, needed: TrackerType) -> list[Considered]:
        found = []
        for engagement in self.engagements:
            kind = self.match(engagement, conversion)
            if kind is None or abs(conversion.time_us - engagement.time_us) > 31 * DAY:
                continue
            if self.late(engagement, conversion) <= 0 or self.age(engagement, conversion) > 0:  # D12
                found.append(self.engagement(engagement, kind, conversion, needed))
        found += [self.claim(claim, conversion, needed) for claim in conversion.claims]
        return found

    def engagement(
        self, engagement: EngagementRecord, kind: str, conversion: ConversionRecord, needed: TrackerType
    ) -> Considered:
        tracker = self.tracker(engagement.tracker)
        is_click = engagement.kind == EngagementKind.CLICK
        if kind in ("CLICK_ID", "DEVICE_ID"):
            window_kind = WindowKind.CLICK_DEVICE if is_click else WindowKind.IMPRESSION_DEVICE
            level = 1 if is_click else 4
        elif kind == "MODELED":
            window_kind = WindowKind.CLICK_MODELED if is_click else WindowKind.IMPRESSION_MODELED
            level = 2 if is_click else 5
        else:
            window_kind = WindowKind.CLICK_IP if is_click else WindowKind.IMPRESSION_IP
            level = 3 if is_click else 6
        age = self.age(engagement, conversion)
        if kind == "MODELED" and is_click and 0 < age < self.window(tracker, WindowKind.CLICK_EQUALIZER):
            level = 1
        refusals = self.tracker_refusals(tracker, conversion, needed) | self.time_refusals(
            age, self.window(tracker, window_kind)
        )
        late = self.late(engagement, conversion)
        refusals |= self.ping_refusals(engagement, late)
        if kind == "CLICK_ID" and late <= 0:  # B1: it came before
            refusals.discard("AFTER_CONVERSION")
        if not is_click and not self.impressions_allowed(tracker.network_id, needed):
            refusals.add("IMPRESSIONS_NOT_ALLOWED")
        if kind in ("MODELED", "IP") and usable_ids(engagement) and not self.is_inclusive(conversion):
            refusals.add("MATCH_KIND_NOT_ALLOWED")
        if self.is_duplicate(engagement):
            refusals.add("DUPLICATE_CLICK")
        refusals |= visitor_refusals(engagement)
        refusals |= self.activity_refusals(min(engagement.time_us, conversion.time_us), conversion)
        if self.breaks_traffic_rules(tracker, engagement.time_us, engagement):
            refusals.add("TRAFFIC_RULE")
        if 0 < tracker.max_conversions_per_engagement <= self.times_won(engagement.id):
            refusals.add("ENGAGEMENT_SPENT")
        return Considered(
            id=engagement.id,
            time=conversion.time_us - (max(age, 0) if kind == "CLICK_ID" else age),
            skew=0 if self.age(engagement, conversion) >= 0 else engagement.time_us - conversion.time_us,
            tracker=tracker,
            network=tracker.network_id,
            matched_by=kind,
            level=level,
            completed_view=engagement.completed_view,
            is_late=late > 0,
            refusals=refusals,
        )

    def tracker_refusals(self, tracker: Tracker, conversion: ConversionRecord, needed: TrackerType) -> set[str]:
        refusals = set()
        if not tracker.live:
            refusals.add("TRACKER_ARCHIVED")
        if tracker.type != needed:
            refusals.add("WRONG_TRACKER_TYPE")
        if conversion.name and conversion.name not in tracker.events:
            refusals.add("EVENT_NOT_SELECTED")
        return refusals

    def ping_refusals(self, engagement: EngagementRecord, late: int) -> set[str]:
        """D12."""
        network = self.network(self.tracker(engagement.tracker).network_id)
        return {"REPORTED_LATE"} if engagement.is_ping and late > network.late_pings_us else set()

    def late(self, engagement: EngagementRecord, conversion: ConversionRecord) -> int:
        """Returns by how much an engagement was received after a conversion."""
        return engagement.receive_time_us - conversion.receive_time_us

    def age(self, engagement: EngagementRecord, conversion: ConversionRecord) -> int:
        """B1: a time in whole seconds means the latest moment of that second that is not after receipt."""
        age = conversion.time_us - engagement.time_us
        if age <= 0 and conversion.time_us % SECOND == 0 and engagement.time_us % SECOND:
            latest = min(conversion.time_us + SECOND - 1, conversion.receive_time_us)
            return max(age, latest - engagement.time_us)
        return age

    def time_refusals(self, age: int, window: int) -> set[str]:
        """B1, B2."""
        refusals = set()
        if window == 0:
            refusals.add("WINDOW_DISABLED")
        if age <= 0:
            refusals.add("AFTER_CONVERSION")
        if age >= window:
            refusals.add("OUTSIDE_WINDOW")
        return refusals

    def activity_refusals(self, time: int, conversion: ConversionRecord) -> set[str]:
        """D13. OURS: not by what happened in the same second; a duplicate install is no activity."""
        was_active = any(
            each.conversion.time_us // SECOND < time // SECOND
            and time - each.conversion.time_us < self.app.inactivity_window_us
            for each in self.history(conversion)
            if each.conversion.name or each.is_counted_install
        )
        return {"DEVICE_ACTIVE"} if was_active and conversion.name else set()

    def breaks_traffic_rules(self, tracker: Tracker, time: int, told: EngagementRecord | ConversionRecord) -> bool:
        """OURS: lists of what is allowed take nothing that is not known, all else only refuses what is known."""
        rules = tracker.traffic_rules
        if rules is None:
            return False
        agent, country = read_agent(told), told.country
        version = []
        if agent.get("os", "").upper() == self.app.platform:
            version = [int(agent[part]) for part in ("major", "minor") if agent.get(part)]
        lowest, highest = rules.min_os_version, rules.max_os_version
        pairs = list(zip(version, lowest, strict=False)), list(zip(version, highest, strict=False))
        differing = [next((pair for pair in each if pair[0] != pair[1]), (0, 0)) for each in pairs]
        return any(
            (
                rules.start_us is not None and time < rules.start_us,
                rules.end_us is not None and time >= rules.end_us,
                rules.operating_systems and agent.get("os") not in rules.operating_systems,
                differing[0][0] < differing[0][1],
                differing[1][0] > differing[1][1],
                rules.device_types and device_type(told.ua) not in rules.device_types,
                country in rules.blocked_countries,
                rules.allowed_countries and country not in rules.allowed_countries,
            )
        )

    def impressions_allowed(self, network_id: str, needed: TrackerType) -> bool:
        """B5."""
        if needed == TrackerType.ACQUISITION:
            return True
        return self.app.allow_reengagement_impressions and self.network(network_id).supports_impressions

    def is_duplicate(self, engagement: EngagementRecord) -> bool:
        """A6. OURS: nothing repeats what no person clicked."""
        if not engagement.click_id:
            return False
        for other in self.engagements:
            if visitor_refusals(other):
                continue
            if other.tracker == engagement.tracker and other.click_id == engagement.click_id:
                is_earlier = (counted(other), other.id) < (counted(engagement), engagement.id)
                if is_earlier and counted(engagement) - counted(other) < 7 * DAY:
                    return True
        return False

    def times_won(self, engagement_id: str) -> int:
        """D5."""
        return sum(decided.line.get("engagement") == engagement_id for decided in self.decided)

    def window(self, tracker: Tracker, kind: WindowKind) -> int:
        """B3."""
        network = self.network(tracker.network_id)
        if kind in tracker.windows and not network.self_attributing:
            return tracker.windows[kind]
        if kind in network.windows:
            return network.windows[kind]
        if kind in self.app.windows:
            return self.app.windows[kind]
        return BUILT_IN[kind]

    # E

    def claim(self, claim: Claim, conversion: ConversionRecord, needed: TrackerType) -> Considered:
        tracker = self.bucket(claim, conversion, needed)
        is_click = claim.kind == EngagementKind.CLICK
        refusals = set()
        if tracker is None:
            refusals.add("NO_TRACKER_FOR_CLAIM")
        else:
            if is_click:
                window = tracker.windows.get(WindowKind.POST_ENGAGEMENT, 14 * DAY)
            else:
                window = tracker.windows.get(WindowKind.POST_VIEW, 0)
                if window == 0:
                    refusals.add("VIEW_WINDOW_ZERO")
            refusals |= self.tracker_refusals(tracker, conversion, needed)
            refusals |= self.time_refusals(conversion.time_us - claim.time_us, window)
            refusals |= self.activity_refusals(claim.time_us, conversion)
            if self.breaks_traffic_rules(tracker, claim.time_us, conversion):
                refusals.add("TRAFFIC_RULE")
        if not is_click and not self.impressions_allowed(claim.network_id, needed):
            refusals.add("IMPRESSIONS_NOT_ALLOWED")
        if not claim.granular_data_allowed and self.network(claim.network_id).granular_data_policy == "REJECT":
            refusals.add("GRANULAR_DATA_NOT_ALLOWED")
        return Considered(
            id=f"claim:{claim.network_id}",
            time=claim.time_us,
            tracker=tracker,
            network=claim.network_id,
            matched_by="CLAIM",
            level=1 if is_click else 4,
            redacted=not claim.granular_data_allowed,
            refusals=refusals,
        )

    def bucket(self, claim: Claim, conversion: ConversionRecord, needed: TrackerType) -> Tracker | None:
        """E3."""
        possible = [
            tracker
            for tracker in self.scenario.trackers
            if tracker.network_id == claim.network_id and tracker.type == needed and tracker.live
            if not conversion.name or conversion.name in tracker.events
        ]
        named = [
            tracker
            for tracker in possible
            if re.search(rf"(?<![A-Za-z0-9]){re.escape(tracker.tracker_id)}(?![A-Za-z0-9])", claim.campaign_name)
        ]
        if named:  # OURS: of several names the longest, then the lowest
            return min(named, key=lambda tracker: (-len(tracker.tracker_id), tracker.tracker_id))
        for tracker in possible:
            if tracker.default_tracker:
                return tracker
        # OURS: of those set up at one time the highest
        return max(possible, key=lambda tracker: (tracker.create_time_us, tracker.tracker_id), default=None)

    # A

    def match(self, engagement: EngagementRecord, conversion: ConversionRecord) -> str | None:
        """Returns the strongest kind by which they match (A1)."""
        if engagement.kind == EngagementKind.CLICK and conversion.click and conversion.click == engagement.id:
            return "CLICK_ID"
        if self.shares_an_id(engagement, conversion):
            return "DEVICE_ID"
        if engagement.ip and conversion.ip:
            same_ip = engagement.ip == conversion.ip
            if self.app.modeled_level == "IP_RANGE":
                is_modeled = ip_range(engagement.ip) == ip_range(conversion.ip)
            elif self.app.modeled_level == "IP_ONLY":
                is_modeled = same_ip
            else:
                is_modeled = same_ip and self.same_user_agent(engagement, conversion)
            if is_modeled:
                return "MODELED"
            if same_ip:
                return "IP"
        return None

    def shares_an_id(self, engagement: EngagementRecord, conversion: ConversionRecord) -> bool:
        """A3. OURS: an engagement's id is compared whatever its kind."""
        return any(
            self.is_carried(engaged, known) for engaged in usable_ids(engagement) for known in self.sought(conversion)
        )

    def sought(self, conversion: ConversionRecord) -> set[tuple[str, str]]:
        """G2, OURS: its own ids, and of those of its device the latest of each kind, then the ones before, up to 30.

        Of a kind no more than the latest 20.
        """
        device = self.device(conversion)
        sought = usable_ids(conversion) & device.ids
        kinds = {kind for kind, _ in device.named}
        latest = {kind: [one for one in reversed(device.named) if one[0] == kind][:20] for kind in kinds}
        for age, kind in itertools.product(range(20), sorted(kinds)):
            if len(sought) < 30:
                sought.update(latest[kind][age : age + 1])
        return sought

    def is_carried(self, engaged: tuple[str, str], known: tuple[str, str]) -> bool:
        """Returns whether an engagement's id may stand for one that a device is known by."""
        if hash_method(known) is None:
            return plain(engaged[1]) in spellings(known[1])
        if plain(engaged[1]) == plain(known[1]):
            return True
        is_raw = engaged[0].rpartition("_")[2] not in ("md5", "sha1", "sha256")
        return is_raw and is_hash_of(known, (raw_kind(known[0]), engaged[1]))

    def same_user_agent(self, one: EngagementRecord, other: ConversionRecord) -> bool:
        """A5: the OS and one thing more are known of both, and nothing that is known of both contradicts."""
        first, second = read_agent(one), read_agent(other)
        if not first or not second or first["os"] != second["os"]:
            return False
        both = {name for name in first.keys() & second.keys() if first[name] and second[name]}
        if self.app.omit_os_minor:
            both.discard("minor")
        for name in both - {"model"}:
            if first[name] != second[name]:
                return False
        if "model" in both:
            models = {first["model"], second["model"]}
            if len(models) > 1 and "iPhone" not in models:
                return False
        return bool(both & {"model", "major"})

    def is_inclusive(self, conversion: ConversionRecord) -> bool:
        """A4."""
        if self.app.device_attribution == "INCLUSIVE":
            return True
        has_idfa = any(kind == "idfa" for kind, _ in usable_ids(conversion))
        return (
            self.app.limit_ad_tracking_fallback
            and self.app.platform == "IOS"
            and conversion.limit_ad_tracking
            and not has_idfa
        )

    # The device: records that share any usable id that is not nobody's (A8), one of them raw and the other with its
    # hash (A3), or both alike. What was joined once stays so.

    def history(self, conversion: ConversionRecord) -> list[Decided]:
        """Returns what was decided for the device of a conversion before it."""
        return self.device(conversion).decided

    def device(self, conversion: ConversionRecord) -> Device:
        """Returns the device of a conversion as what it knows of makes it, in the order of times."""
        if conversion.id not in self.devices:
            self.devices[conversion.id] = self.find_device(conversion)
        return self.devices[conversion.id]

    def find_device(self, conversion: ConversionRecord) -> Device:
        by_time = self.app.late_window_us > 0
        (own,) = [each for each in self.received if each.conversion is conversion]
        devices: list[Device] = []
        for each in [*sorted(self.decided, key=lambda other: other.order if by_time else (other.place,)), own]:
            ids = {one for one in usable_ids(each.conversion) if bare(one) not in each.nobodys}
            joined = [device for device in devices if one_device(device.ids, ids)]
            made = Device(ids=ids.union(*(device.ids for device in joined)), named=[], decided=[each])
            for one in (*(one for device in joined for one in device.named), *sorted(ids)):
                if bare(one) not in map(bare, made.named):
                    made.named.append(one)
            made.decided = [*(earlier for device in joined for earlier in device.decided), each]
            devices = [device for device in devices if device not in joined] + [made]
        known = {one for one in devices[-1].ids if bare(one) not in own.nobodys}
        named = [one for one in devices[-1].named if one in known]
        return Device(ids=known, named=named, decided=devices[-1].decided[:-1])

    def shared_ids(self, decided: Decided) -> dict[str, int]:
        """A8: the nobody's ids of a record, with how many advertising ids they have met. OURS: in order of receipt."""
        received = [each.conversion for each in self.received if each.place <= decided.place]
        ids = usable_ids(decided.conversion)
        return {one[0]: met(one, received) for one in ids if bare(one) in decided.nobodys}

    def tracker(self, tracker_id: str) -> Tracker:
        (tracker,) = [tracker for tracker in self.scenario.trackers if tracker.tracker_id == tracker_id]
        return tracker

    def network(self, network_id: str) -> Network:
        (network,) = [network for network in self.scenario.networks if network.network_id == network_id]
        return network


def counted(engagement: EngagementRecord) -> int:
    """OURS: among clicks with the same click id a ping comes when it is received."""
    return engagement.receive_time_us if engagement.is_ping else engagement.time_us


def told(line: dict[str, Any]) -> dict[str, Any]:
    """Returns the part that makes a new version when it changes: all but candidates that did not win."""
    if not line:
        return line
    return {**line, "candidates": None}


def blank(conversion: ConversionRecord, kind: str, *, install_known: bool) -> dict[str, Any]:
    return {
        "id": conversion.id,
        "kind": kind,
        "outcome": None,
        "attribution_type": "NONE",
        "tracker": None,
        "network": None,
        "source": None,
        "engagement": None,
        "matched_by": None,
        "level": None,
        "lookback_s": None,
        "reason": None,
        "install_known": install_known,
        "custom_dimensions": {},
        "candidates": [],
        "shared_ids": {},
        "redacted": False,
        "install_time": None,
        "source_engagement": None,
    }


MACRO_STYLES = [
    "{name}",
    "{{name}}",
    "[name]",
    "(name)",
    "<name>",
    "%name%",
    "%%name%%",
    "%{name}",
    "${name}",
    "$name$",
    "#{name}",
    "__name__",
    "##name##",
]
"""A7."""


def usable_ids(record: EngagementRecord | ConversionRecord) -> set[tuple[str, str]]:
    """A2."""
    return {(kind, value) for kind, value in record.device.items() if is_usable(value)}


@cache
def is_usable(value: str) -> bool:
    """Returns whether an id is somebody's, read from the words of A2 and A7 alone."""
    word = value.strip().lower()
    bare = "".join(word.replace("-", "").replace(":", "").split())
    if set(bare) <= {"0"} or set(bare) <= {"f"}:
        return False
    words = "null (null) nil none undefined unknown n/a na false true anonymous optout not_available replace_me -1"
    kinds = "idfa idfv adid android_id oaid custom kochava_device_id rida faid imei udid mac odin"
    hashed = [f"{kind}_{method}" for kind in kinds.split() for method in ("md5", "sha1", "sha256")]
    if word in [*words.split(), *kinds.split(), *hashed, "device_id", "gaid", "device_id=device_id"]:
        return False
    if bare in ("020000000000", "9774d56d682e549c", "012345678912345"):
        return False
    return not any(
        len(word) > len(left) + len(right)
        and word.startswith(left)
        and word.endswith(right)
        and re.fullmatch(r"\s*[a-z_][a-z0-9_.:-]*\s*", word[len(left) : len(word) - len(right)])
        for left, right in (mark.split("name") for mark in MACRO_STYLES)
    )


def visitor_refusals(engagement: EngagementRecord) -> set[str]:
    """A9, of the bots that the tests know. OURS: a phone's browser is a person's unless it says otherwise."""
    is_bot = re.search("WhatsApp/|Googlebot/|facebookexternalhit", engagement.ua)
    return ({"BOT"} if is_bot else set()) | ({"PREFETCH"} if engagement.is_prefetch else set())


def when(decided: Decided) -> tuple[int, int, str]:
    """Returns the order of attributions. OURS: of two at one time, received at once, the higher id is the later."""
    return decided.conversion.time_us, decided.conversion.receive_time_us, decided.conversion.id


ADVERTISING = ("adid", "idfa", "oaid", "rida", "faid")


def met(one: tuple[str, str], received: list[ConversionRecord]) -> int:
    """Returns how many raw advertising ids came in one record with an id (A8), or with what it is a hash of."""
    return len(set().union(*(met_itself(each, received) for each in (one, *nobodys_behind(one, received)))))


def met_itself(one: tuple[str, str], received: list[ConversionRecord]) -> set[str]:
    return {
        plain(value)
        for record in received
        if shared({one}, usable_ids(record))
        for kind, value in usable_ids(record)
        if kind in ADVERTISING
    }


def nobodys(received: list[ConversionRecord]) -> set[tuple[str, str]]:
    """A8: the ids that are nobody's once these records were received."""
    return {bare(one) for record in received for one in usable_ids(record) if is_nobodys(one, received)}


def bare(one: tuple[str, str]) -> tuple[str, str]:
    return one[0], plain(one[1])


def is_nobodys(one: tuple[str, str], received: list[ConversionRecord]) -> bool:
    """A8. OURS: the hash of an id that is nobody's is nobody's."""
    if one[0].split("_")[0] in ADVERTISING:
        return False
    return len(met_itself(one, received)) > 5 or bool(nobodys_behind(one, received))


def nobodys_behind(one: tuple[str, str], received: list[ConversionRecord]) -> list[tuple[str, str]]:
    """Returns the raw ids that are nobody's and that an id is a hash of."""
    raw = {each for record in received for each in usable_ids(record) if is_hash_of(one, each)}
    return [each for each in raw if len(met_itself(each, received)) > 5]


def raw_kind(kind: str) -> str:
    return kind.removesuffix("_md5").removesuffix("_sha1").removesuffix("_sha256")


def hash_method(one: tuple[str, str]) -> str | None:
    """Returns how a conversion's id is hashed: as its kind says, when it looks like that."""
    method = one[0].rpartition("_")[2]
    digits = {"md5": 32, "sha1": 40, "sha256": 64}.get(method)
    return method if digits and re.fullmatch(f"[0-9a-f]{{{digits}}}", plain(one[1])) else None


def is_hash_of(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """A3: once, of whatever spelling."""
    method = hash_method(one)
    return (
        method is not None
        and raw_kind(one[0]) == other[0]
        and plain(one[1]) in {hashlib.new(method, text.encode()).hexdigest() for text in texts_of(other[1])}
    )


def one_device(some: set[tuple[str, str]], others: set[tuple[str, str]]) -> bool:
    return shared(some, others) or any(
        is_hash_of(one, other) or is_hash_of(other, one) for one in some for other in others
    )


def shared(some: set[tuple[str, str]], others: set[tuple[str, str]]) -> bool:
    return any(
        kind == other_kind and plain(value) == plain(other) for kind, value in some for other_kind, other in others
    )


def plain(value: str) -> str:
    return value.lower().replace("-", "").replace(":", "")


@cache
def spellings(raw: str) -> set[str]:
    """Returns everything an engagement may carry for a raw id, in plain spelling (A3)."""
    once = {digest for text in texts_of(raw) for digest in digests(text)}
    twice = {digest for text in once for digest in digests(text) | digests(text.upper())}
    return {plain(raw)} | once | twice


@cache
def texts_of(raw: str) -> frozenset[str]:
    """Returns the texts that may have been hashed for a raw id."""
    texts = {raw, raw.lower(), raw.upper(), plain(raw), plain(raw).upper()}
    if re.fullmatch("[0-9a-f]{32}", plain(raw)):
        dashed = str(uuid.UUID(plain(raw)))
        texts |= {dashed, dashed.upper()}
    return frozenset(texts)


def digests(text: str) -> set[str]:
    return {hashlib.new(name, text.encode()).hexdigest() for name in ("md5", "sha1", "sha256")}


def read_agent(told: EngagementRecord | ConversionRecord) -> dict[str, str]:
    """A5: what a user agent tells of a device, and what client hints of Android tell where it does not."""
    known, hints = read_user_agent(told.ua), told.client_hints
    if hints.platform != "Android" or known.get("os") == "iOS":
        return known
    major, _, rest = hints.platform_version.partition(".")
    version = {"major": major, "minor": rest.partition(".")[0] or "0"} if major else {}
    return {"os": "Android", "model": hints.model} | ({} if known.get("major") else version) | known


def read_user_agent(ua: str) -> dict[str, str]:
    """Returns what the shapes of user agents that the tests use tell of a device (A1, A5)."""
    if "Android 10; K)" in ua:
        return {"os": "Android"}
    if found := re.search(r"; Android (\d+)(?:\.(\d+))?[^;]*; ([^;)]+)\)", ua):
        return {"os": "Android", "major": found[1], "minor": found[2] or "0", "model": found[3]}
    if found := re.search(r"Darwin/(\d+)", ua):
        return {"os": "iOS", "major": {"23": "17", "24": "18", "25": "26"}[found[1]]}
    if "iPhone OS 18_6" in ua:
        return {"os": "iOS", "model": "iPhone", "major": "26" if "Version/26" in ua else ""}
    if found := re.search(r"iPhone OS (\d+)(?:_(\d+))?", ua):
        model = re.search(r"FBDV/([^;]+)", ua)
        return {"os": "iOS", "major": found[1], "minor": found[2] or "0", "model": model[1] if model else "iPhone"}
    return {}


def device_type(ua: str) -> str:
    """Returns the type of a device, of the user agents that the tests use."""
    types = {"iPhone;": "PHONE", "Android.*Mobile": "PHONE", "iPad": "TABLET", "Macintosh|Windows NT": "DESKTOP"}
    return next((name for shape, name in types.items() if re.search(shape, ua)), "")


def ip_range(ip: str) -> str:
    """A5, of addresses in their shortest form with the first three groups written out."""
    return ip.rsplit(".", 1)[0] if "." in ip else ":".join(ip.split(":")[:3])
