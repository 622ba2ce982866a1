"""The words of attribution: what is decided upon, and what a decision says.

Times are integers: microseconds since the epoch (`_us`). Ids are opaque text. Plain values only; the rules are in
rules.py, matching.py and decide.py. What the hot path makes many of is a tuple: a frozen dataclass costs more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import NamedTuple

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US


class EngagementKind(StrEnum):
    CLICK = "CLICK"
    IMPRESSION = "IMPRESSION"


class ConversionKind(StrEnum):
    INSTALL = "INSTALL"
    EVENT = "EVENT"


class TrackerType(StrEnum):
    ACQUISITION = "ACQUISITION"
    REENGAGEMENT = "REENGAGEMENT"


class MatchKind(StrEnum):
    """The ways in which an engagement matches a device, strongest first (A1); CLAIM is a network's own word (E)."""

    CLICK_ID = "CLICK_ID"
    DEVICE_ID = "DEVICE_ID"
    MODELED = "MODELED"
    IP = "IP"
    CLAIM = "CLAIM"


class WindowKind(IntEnum):
    """The windows of section B. Integers, because compiled windows and levels are tuples with this index."""

    CLICK_DEVICE = 0
    CLICK_EQUALIZER = 1
    CLICK_MODELED = 2
    CLICK_IP = 3
    IMPRESSION_DEVICE = 4
    IMPRESSION_MODELED = 5
    IMPRESSION_IP = 6
    EVENT_ASSOCIATION = 7
    POST_ENGAGEMENT = 8
    POST_VIEW = 9


class Layer(StrEnum):
    """The place that the value of a window came from, first to last (B3)."""

    TRACKER = "TRACKER"
    NETWORK = "NETWORK"
    APP = "APP"
    BUILT_IN = "BUILT_IN"


class Visitor(IntEnum):
    """The one who made an engagement, as far as is known (A9). The numbers are the API's."""

    PERSON = 0
    BOT = 1
    PREFETCH = 2


class DeviceType(StrEnum):
    """The type of a device, as far as its user agent tells."""

    PHONE = "PHONE"
    TABLET = "TABLET"
    TV = "TV"
    DESKTOP = "DESKTOP"


class TrafficRule(StrEnum):
    """The kind of a tracker's traffic rule, in the order in which they are asked."""

    DATES = "DATES"
    OS = "OS"
    OS_VERSION = "OS_VERSION"
    DEVICE_TYPE = "DEVICE_TYPE"
    COUNTRY = "COUNTRY"


class Outcome(StrEnum):
    ATTRIBUTED = "ATTRIBUTED"
    ORGANIC = "ORGANIC"
    DUPLICATE = "DUPLICATE"
    REPROCESSED = "REPROCESSED"
    REPROCESSED_ORGANIC = "REPROCESSED_ORGANIC"
    REENGAGED = "REENGAGED"
    CREDITED = "CREDITED"
    UNATTRIBUTED = "UNATTRIBUTED"


class AttributionType(StrEnum):
    INSTALL = "INSTALL"
    REENGAGEMENT = "REENGAGEMENT"
    NONE = "NONE"


class Reason(StrEnum):
    """Reason for which nobody won; the first that holds is stored (G2). DEVICE_NOT_KNOWN is for identity links (F3)."""

    DUPLICATE_INSTALL = "DUPLICATE_INSTALL"
    EVENT_BEFORE_INSTALL = "EVENT_BEFORE_INSTALL"
    EVENT_NOT_SELECTED = "EVENT_NOT_SELECTED"
    REFUND = "REFUND"
    MTR_NOT_MET = "MTR_NOT_MET"
    SESSION_ALREADY_REENGAGED = "SESSION_ALREADY_REENGAGED"
    NO_CANDIDATE = "NO_CANDIDATE"
    NO_WINNER = "NO_WINNER"
    DEVICE_NOT_KNOWN = "DEVICE_NOT_KNOWN"


class Verdict(StrEnum):
    """The fate of a candidate; of several that hold, the first is stored (G2)."""

    WON = "WON"
    NO_TRACKER_FOR_CLAIM = "NO_TRACKER_FOR_CLAIM"
    TRACKER_ARCHIVED = "TRACKER_ARCHIVED"
    WRONG_TRACKER_TYPE = "WRONG_TRACKER_TYPE"
    EVENT_NOT_SELECTED = "EVENT_NOT_SELECTED"
    IMPRESSIONS_NOT_ALLOWED = "IMPRESSIONS_NOT_ALLOWED"
    MATCH_KIND_NOT_ALLOWED = "MATCH_KIND_NOT_ALLOWED"
    REPORTED_LATE = "REPORTED_LATE"
    DUPLICATE_CLICK = "DUPLICATE_CLICK"
    BOT = "BOT"
    PREFETCH = "PREFETCH"
    BLOCKLISTED = "BLOCKLISTED"
    GRANULAR_DATA_NOT_ALLOWED = "GRANULAR_DATA_NOT_ALLOWED"
    VIEW_WINDOW_ZERO = "VIEW_WINDOW_ZERO"
    WINDOW_DISABLED = "WINDOW_DISABLED"
    AFTER_CONVERSION = "AFTER_CONVERSION"
    OUTSIDE_WINDOW = "OUTSIDE_WINDOW"
    DEVICE_ACTIVE = "DEVICE_ACTIVE"
    TRAFFIC_RULE = "TRAFFIC_RULE"
    ENGAGEMENT_SPENT = "ENGAGEMENT_SPENT"
    LOST_TO_HIGHER_LEVEL = "LOST_TO_HIGHER_LEVEL"
    LOST_TO_COMPLETED_VIEW = "LOST_TO_COMPLETED_VIEW"
    LOST_TO_MORE_RECENT = "LOST_TO_MORE_RECENT"


class Because(StrEnum):
    """The kind of record that arrived late, so that a conversion was decided again (D12)."""

    LATE_ENGAGEMENT = "LATE_ENGAGEMENT"
    LATE_INSTALL = "LATE_INSTALL"
    LATE_EVENT = "LATE_EVENT"


class UserAgent(NamedTuple):
    """The parts of a user agent that are compared (A1), and its `DeviceType`, for traffic rules.

    "" for what it does not tell, or hides (A5).
    """

    model: str
    os: str
    os_major: str
    os_minor: str
    device_type: str = ""


class ClientHints(NamedTuple):
    """Hints of a browser about its device, beside its user agent (A5); "" for what it does not say."""

    model: str = ""
    platform: str = ""
    platform_version: str = ""


NO_HINTS = ClientHints()


@dataclass(frozen=True, slots=True, kw_only=True)
class Engagement:
    """A click or an impression on a tracker of the app that is being decided for.

    `device_keys` are the match keys of its usable device ids (A2), empty when it carried none. `click_id` is the
    network's id (A6), not ours: ours is `engagement_id`. `ip` is normalised, "" when absent. Not `valid`: the click
    failed its signature check or came too late. `duplicate` as `matching.duplicates` says (A6). `country` is that of
    its address, ISO 3166-1, "" when it is not known. `is_ping`: its time is the word of a network (D12).
    """

    engagement_id: str
    kind: EngagementKind
    tracker_id: str
    time_us: int
    receive_time_us: int
    is_ping: bool = False
    device_keys: tuple[bytes, ...] = ()
    ip: str = ""
    user_agent: UserAgent | None = None
    click_id: str = ""
    completed_view: bool = False
    valid: bool = True
    duplicate: bool = False
    visitor: Visitor = Visitor.PERSON
    country: str = ""

    @property
    def counted_us(self) -> int:
        """Returns the time that orders it among its repeats (A6). OURS: of a ping that is its receipt (D12)."""
        return self.receive_time_us if self.is_ping else self.time_us


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Claim:
    """A self-attributing network's answer that it drove the conversion (E). A view claim is an impression (B5)."""

    network_id: str
    kind: EngagementKind
    time_us: int
    campaign_name: str = ""
    granular_data_allowed: bool = True

    @property
    def candidate_id(self) -> str:
        return f"claim:{self.network_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """An install, or a post-install event of name `event_name` ("" for an install).

    `device_keys` are the keys of the ids of the record and of those its device is known by (A3). `click_id` is our own
    click id that came back, "" when none did. `has_idfa` tells whether the record itself carried a usable IDFA (A4),
    `is_refund` whether its amount is negative (D11), `is_session_start` that it may go on, and be no event (D4).
    `country` as of an engagement.
    """

    conversion_id: str
    kind: ConversionKind
    time_us: int
    receive_time_us: int
    event_name: str = ""
    device_keys: frozenset[bytes] = frozenset()
    click_id: str = ""
    ip: str = ""
    user_agent: UserAgent | None = None
    limit_ad_tracking: bool = False
    has_idfa: bool = False
    is_refund: bool = False
    country: str = ""
    is_session_start: bool = False

    @property
    def latest_us(self) -> int:
        """Returns the latest moment that its time may mean (B1): whole seconds are a second cut off."""
        if self.time_us % SECOND_US or self.receive_time_us <= self.time_us:
            return self.time_us
        return min(self.time_us + SECOND_US - 1, self.receive_time_us)


class Win(NamedTuple):
    """A conversion that an engagement has won (D5)."""

    time_us: int
    receive_time_us: int
    conversion_id: str

    def counts_for(self, conversion: Conversion, late_window_us: int) -> bool:
        """Returns whether another conversion counts it: it happened before that, or was decided for good (D12)."""
        return (
            not late_window_us
            or self[:2] <= (conversion.time_us, conversion.receive_time_us)
            or self.receive_time_us + late_window_us < conversion.receive_time_us
        )


class Candidate(NamedTuple):
    """One engagement or claim that was considered, with its verdict (G2).

    `tracker_id` and `network_id` are "" where none is known: a claim that no tracker fits has only its network.
    `window` is the one that applies to it and `level` the one it competes on, None and 0 without a tracker.
    `lookback_us` is negative when it came after the conversion, and 0 when a conversion from before it gave it back
    (B1). `redacted`: its campaign is withheld (E2). `traffic_rule`: which of its tracker's refused it, if one did.
    """

    engagement_id: str
    kind: EngagementKind
    time_us: int
    tracker_id: str
    network_id: str
    verdict: Verdict
    matched_by: MatchKind
    lookback_us: int
    level: int = 0
    window: WindowKind | None = None
    window_us: int | None = None
    window_layer: Layer | None = None
    completed_view: bool = False
    redacted: bool = False
    traffic_rule: TrafficRule | None = None

    @property
    def is_influencer(self) -> bool:
        """Returns whether it was in time and lost to the winner (C4)."""
        return self.verdict in _LOST


_LOST = (Verdict.LOST_TO_HIGHER_LEVEL, Verdict.LOST_TO_COMPLETED_VIEW, Verdict.LOST_TO_MORE_RECENT)


class Decision(NamedTuple):
    """The decision on one conversion, and why (G1).

    `tracker_id`, `network_id`, `campaign` and `segment` are those of the winner, or, for CREDITED, of the source; the
    last two None when `redacted` (E2). What describes the match (`engagement_id` to `window_layer`) is None unless this
    very conversion was won. `reason` is None when it was. `candidates` are ordered by engagement id.

    `source_…`: the conversion that made the source, an organic one too, and the engagement that won it; of a conversion
    that made one itself (D6) its own. `install_time_us`: when the first install that is known happened.
    """

    conversion_id: str
    outcome: Outcome
    attribution_type: AttributionType
    settings_revision: int
    install_time_us: int | None
    reason: Reason | None = None
    tracker_id: str | None = None
    network_id: str | None = None
    campaign: str | None = None
    segment: str | None = None
    redacted: bool = False
    source_conversion_id: str | None = None
    source_time_us: int | None = None
    source_engagement_id: str | None = None
    engagement_id: str | None = None
    matched_by: MatchKind | None = None
    level: int | None = None
    lookback_us: int | None = None
    window: WindowKind | None = None
    window_us: int | None = None
    window_layer: Layer | None = None
    reprocess_for: str | None = None
    custom_dimensions: Mapping[str, str] = MappingProxyType({})
    candidates: tuple[Candidate, ...] = ()
    claims_unavailable: tuple[str, ...] = ()

    @property
    def install_known(self) -> bool:
        """Returns whether the install of the device is known (D9)."""
        return self.install_time_us is not None

    @property
    def influencers(self) -> tuple[Candidate, ...]:
        """Returns every candidate that was in time and lost (C4)."""
        return tuple(candidate for candidate in self.candidates if candidate.is_influencer)
