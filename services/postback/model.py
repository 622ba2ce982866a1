"""The words of the domain."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.postback.adapters.adapter import Adapter


class Status(StrEnum):
    """Status of a configuration."""

    LIVE = "LIVE"
    PAUSED = "PAUSED"
    ARCHIVED = "ARCHIVED"


class State(StrEnum):
    """State of a delivery; all but PENDING are its end, until it is replayed."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    REFUSED = "REFUSED"
    EXHAUSTED = "EXHAUSTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A configuration as the sending of conversions needs it."""

    configuration_id: str
    app_id: str
    network_id: str
    trigger: str
    status: Status
    adapter: Adapter
    delay_s: float
    retry_attempts: int
    network_only: bool
    clicks_only: bool
    respect_data_controlled: bool
    is_revenue: bool
    timeout_s: float
    deliveries_per_second: int
    secrets: dict[str, str] = field(repr=False)

    @property
    def makes_quick_tries(self) -> bool:
        """Whether the first tries after a failed one are soon: somebody waits for the answer to a claim."""
        return self.adapter.is_claim_capable and self.retry_attempts > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDelivery:
    """A delivery to be made; `conversion` is a serialised message Conversion."""

    delivery_id: UUID
    configuration_id: str
    app_id: str
    network_id: str
    conversion_id: str
    event_name: str
    device_id: str
    conversion_time: datetime
    retention_days: int
    conversion: bytes
    delay_s: float
    once_a_day: bool
    """Held back when another conversion of the device was told to this configuration less than 24 hours apart."""
    awaits_decision: bool
    """A claim is asked for: the conversion has not been decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How many deliveries of a configuration are wanted, and for how long their sender has them to himself."""

    configuration_id: str
    room: int
    lease_s: float
    is_claim: bool = False
    """Its answers are waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A delivery to be sent now, by this process alone until its lease ends."""

    claim_id: UUID
    delivery_id: UUID
    configuration_id: str
    conversion_time: datetime
    retention_days: int
    conversion: bytes
    number: int
    """Of the attempt to be made, in this run: 1, 2, …"""
    failure_count: int
    replay_count: int
    claim_time: datetime
    waited_s: float
    """Since it was due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What became of an attempt, and of its delivery."""

    claimed: Claimed
    state: State
    wait_s: float
    """Until the next attempt, while PENDING."""
    verdict: str
    attempt: bytes
    """A serialised message Attempt."""
    pauses_configuration: bool
    network_claim: bytes | None = None
    """A serialised message Claim, when the network answered with one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAnswer:
    """What is known of a network's answer to a claim request."""

    state: State
    """The delivery's: while it is PENDING, the answer may come."""
    network_claim: bytes | None
    """A serialised message Claim, of the first answer that was one."""
