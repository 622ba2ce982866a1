"""The words of the domain. Enums have the numbers of the protos, which are also those of the columns."""

from dataclasses import dataclass, field
from enum import IntEnum
from uuid import UUID

from services.postback.adapters.adapter import Adapter


class Status(IntEnum):
    """Status of a configuration."""

    LIVE = 1
    PAUSED = 2
    ARCHIVED = 3


class State(IntEnum):
    """State of a delivery; all but PENDING are its end, until it is sent again."""

    PENDING = 1
    DELIVERED = 2
    REFUSED = 3
    EXHAUSTED = 4
    SUPERSEDED = 5


class Superseded(IntEnum):
    """Reason for which the newest version of a decision would not have a network told (D12)."""

    OTHER_WINNER = 1
    NO_CLICK = 2
    NO_CONVERSION = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A configuration as the sending of conversions needs it."""

    configuration_id: str
    app_id: str
    network_id: str
    trigger: str
    status: Status
    adapter: Adapter
    delay_us: int
    retry_attempts: int
    network_only: bool
    clicks_only: bool
    respect_data_controlled: bool
    allowed_countries: frozenset[str]
    blocked_countries: frozenset[str]
    is_revenue: bool
    timeout_s: float
    deliveries_per_second: int
    secrets: dict[str, str] = field(repr=False)

    @property
    def is_claim_capable(self) -> bool:
        """Returns whether the network's answer says if it drove the conversion (E1)."""
        return self.adapter.description.is_claim_capable

    @property
    def makes_quick_tries(self) -> bool:
        """Returns whether the first tries after a failed one come soon: somebody waits for the network's answer."""
        return self.is_claim_capable and self.retry_attempts > 0


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
    conversion_us: int
    retention_days: int
    version: int
    """The decision's; 0 while there is none."""
    conversion: bytes = field(repr=False)
    delay_us: int
    once_a_day: bool
    """Held back when another conversion of the device was told to this configuration less than 24 hours apart."""
    awaits_decision: bool
    """A claim is asked for: the conversion has not been decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """A conversion for a configuration: the delivery that it makes, or changes."""

    delivery: NewDelivery
    is_wanted: bool
    """It makes the delivery, or takes it up again."""
    superseded: Superseded | None
    """The reason for which a delivery that an older version made is not to be sent (any more)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """The number of deliveries of a configuration that are wanted, and for how long."""

    configuration_id: str
    room: int
    length_us: int
    is_claim: bool = False
    """Somebody waits for the answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """A delivery to be sent now, by this process alone until its lease ends."""

    lease_id: UUID
    delivery_id: UUID
    configuration_id: str
    conversion_us: int
    retention_days: int
    conversion: bytes = field(repr=False)
    number: int
    """The number of the attempt to be made, in this run: 1, 2, …"""
    failure_count: int
    redelivery_count: int
    is_superseded: bool
    """Nothing is to be sent any more: its network lost the conversion while an attempt was under way."""
    leased_us: int
    waited_us: int
    """Since it was due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """An attempt that has ended, and what it makes of its delivery."""

    leased: Leased
    state: State
    wait_us: int
    """Until the next attempt, while PENDING."""
    verdict: int
    """A value of Attempt.Verdict."""
    attempt: bytes = field(repr=False)
    """A serialised message Attempt."""
    pauses_configuration: bool
    network_claim: bytes | None = None
    """A serialised message Claim, when the network answered with one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAnswer:
    """A network's answer to a claim request, as far as it is known."""

    delivery_id: UUID
    state: State
    """The delivery's: while it is PENDING, the answer may come."""
    network_claim: bytes | None
    """A serialised message Claim, of the first answer that was one."""
    is_under_way: bool
    """It is being asked now."""
    last_verdict: int | None
    """A value of Attempt.Verdict, of the last attempt that failed; None when none did."""
    last_attempt: bytes | None = field(repr=False)
    """A serialised message Attempt, likewise; empty when it was interrupted."""
