"""A scenario: a small story of settings and of what was received, in order of receipt.

OURS: the records know what the format does not show but the rules speak of: claims on installs (F1),
`limit_ad_tracking` on events (A4), `prefetch` on clicks and impressions (A9), and the `country` of an address, which a
database would tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.attribution.decision.model import NO_HINTS, Claim, ClientHints, EngagementKind
from services.attribution.decision.rules import App, EventDefinition, Network, Tracker

OUTPUT_KEYS = (
    "id",
    "kind",
    "outcome",
    "attribution_type",
    "tracker",
    "network",
    "source",
    "engagement",
    "matched_by",
    "level",
    "lookback_s",
    "reason",
    "install_known",
    "custom_dimensions",
    "candidates",
    "shared_ids",
    "version",
    "because",
)
"""The keys of a line of the simulator's output, in order; `expect` may name any of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngagementRecord:
    """A click or an impression as it was received.

    `is_prefetch`: a browser fetched it beforehand (A9). `is_ping`: its time is the word of its network (D12).
    """

    id: str
    kind: EngagementKind
    time_us: int
    receive_time_us: int
    tracker: str
    device: Mapping[str, str] = field(default_factory=dict)
    ip: str = ""
    ua: str = ""
    client_hints: ClientHints = NO_HINTS
    click_id: str = ""
    completed_view: bool = False
    is_prefetch: bool = False
    country: str = ""
    is_ping: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionRecord:
    """An install, or an event with its `name` ("" for an install), as received. `click` is our click id, come back.

    `is_refund`: its amount is negative (D11). `is_session_start`: it may go on, and be no event (D4).
    """

    id: str
    time_us: int
    receive_time_us: int
    name: str = ""
    device: Mapping[str, str] = field(default_factory=dict)
    ip: str = ""
    ua: str = ""
    client_hints: ClientHints = NO_HINTS
    click: str = ""
    limit_ad_tracking: bool = False
    claims: tuple[Claim, ...] = ()
    is_refund: bool = False
    is_session_start: bool = False
    country: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A story: settings, what was received in order of receipt, and what is expected of it by conversion id."""

    text: str
    app: App
    networks: tuple[Network, ...]
    trackers: tuple[Tracker, ...]
    events: tuple[EventDefinition, ...]
    timeline: tuple[EngagementRecord | ConversionRecord, ...]
    expect: Mapping[str, Mapping[str, Any]]
