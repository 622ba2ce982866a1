"""The seam between deliveries and kinds of networks: all that one kind does its own way.

An adapter is one module of this package. It describes itself and registers its class with `register`; nothing else
knows which adapters there are. `template.py` is the adapter of every link-based network, `x.py` that of X.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar, Protocol, Self, TypeAlias, TypeVar

from reengage.postback.v1 import claim_pb2
from services.postback.macros import Values
from services.postback.retry import Answer, Verdict

Report: TypeAlias = Callable[[str, str, str], None]
"""Notes a wrong field: its name, a reason in capitals, and what to change."""

FieldValue: TypeAlias = str | bool | int | tuple[str, ...] | Mapping[str, str]
"""The value of a field: a text or choice, a flag, a number or a duration in microseconds, a list, or headers."""


class FieldType(IntEnum):
    """Type of a field, with the number that it has in the protos."""

    TEXT = 1
    SECRET = 2
    CHOICE = 3
    FLAG = 4
    NUMBER = 5
    DURATION = 6
    LIST = 7
    HEADERS = 8


class Option(IntEnum):
    """Field of a configuration that not every adapter takes, with the number that it has in the protos."""

    DELIVERY_DELAY = 1
    DELIVERY_METHOD = 2
    CLICKS_ONLY = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """One value that a field may have, as people write it: durations as `7d`."""

    value: str | int
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field of an adapter: how it is asked for, and what it may be.

    `default` is written as people write it: durations as `7d`. An empty text counts as not given. Whatever `allowed`,
    `max_characters` (of a text, or of each entry) and `max_entries` do not say is the adapter's own to check.
    """

    name: str
    type: FieldType
    label: str
    help: str
    required: bool = False
    default: str | bool | int | None = None
    allowed: tuple[Allowed, ...] = ()
    max_characters: int = 0
    max_entries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The description that an adapter gives of itself."""

    name: str
    label: str
    help: str
    fields: tuple[Field, ...]
    catalogue_networks: tuple[str, ...] = ()
    """The networks of tracker's catalogue that it is made for, without the platform; none: every link-based one."""
    is_claim_capable: bool = False
    """The network's answer says whether it drove the conversion (E1)."""
    options: frozenset[Option] = frozenset(Option)
    max_deliveries_per_second: int = 100_000
    takes_named_secrets: bool = False
    """A configuration may hold secrets beside those among the fields."""

    @property
    def secret_names(self) -> frozenset[str]:
        """Returns the names of the fields that are secrets."""
        return frozenset(one.name for one in self.fields if one.type is FieldType.SECRET)


class FieldValues:
    """The values of an adapter's fields, of the types that its description says.

    A text that was not given is empty, a flag is False, and likewise for the other types.
    """

    def __init__(self, values: Mapping[str, FieldValue]) -> None:
        self._values = values

    def text(self, name: str) -> str:
        """Returns a text or a choice."""
        value = self._values.get(name, "")
        assert isinstance(value, str)
        return value

    def flag(self, name: str) -> bool:
        """Returns a flag."""
        return bool(self._values.get(name, False))

    def number(self, name: str) -> int:
        """Returns a number, or a duration in microseconds."""
        value = self._values.get(name, 0)
        assert isinstance(value, int)
        return value

    def entries(self, name: str) -> tuple[str, ...]:
        """Returns the entries of a list."""
        value = self._values.get(name, ())
        assert isinstance(value, tuple)
        return value

    def headers(self, name: str) -> Mapping[str, str]:
        """Returns headers by name."""
        value = self._values.get(name, {})
        assert isinstance(value, Mapping)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request to be made. `unmatched` names the macros that gave the default value, sorted."""

    method: str
    url: str
    headers: dict[str, str]
    body: str
    unmatched: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """The part of a signature that makes each another one; `time_s` is in seconds since 1970."""

    nonce: str
    time_s: int


class NotRenderableError(Exception):
    """The conversion lacks what the network cannot do without; it will never be sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The address of an adapter: the field that holds it, its value up to the first part that a conversion fills."""

    field_name: str
    start: str = field(repr=False)


class Adapter(Protocol):
    """The way in which conversions are told to one kind of network, as configured. Pure."""

    description: ClassVar[Description]

    @classmethod
    def configure(cls, values: FieldValues, report: Report) -> Self:
        """Returns the adapter with these values, and reports every one that is wrong.

        Values that the description alone refuses were reported before, and are as if they had not been given.
        """

    @property
    def method(self) -> str:
        """Returns GET or POST."""

    @property
    def address(self) -> Address:
        """Returns the address that requests go to."""

    @property
    def secret_names(self) -> frozenset[str]:
        """Returns the secrets that it needs. Where it is claim-capable, an account of the tracker may have them."""

    @property
    def san_account_id(self) -> str:
        """Returns the account that has the secrets which the configuration lacks; "": the tracker's first."""

    def requests(self, values: Values, secrets: Mapping[str, str], stamp: Stamp) -> tuple[Request, Request]:
        """Returns the request, and the same with its secrets masked, to be kept and shown.

        Raises NotRenderableError.
        """

    def judge(self, answer: Answer) -> Verdict:
        """Returns the verdict on an answer."""

    def claim(self, body: str) -> claim_pb2.Claim | None:
        """Returns the claim in the body of an answer that was judged a success; None when it holds none."""


ADAPTERS: dict[str, type[Adapter]] = {}
"""Every adapter by name."""

A = TypeVar("A", bound=Adapter)


def register(adapter: type[A]) -> type[A]:
    """Makes an adapter known; a class decorator.

    Raises ValueError when its name is taken, or when it is claim-capable and takes options: a claim is asked for when
    the conversion arrives, before it is known who won.
    """
    description = adapter.description
    if description.name in ADAPTERS:
        raise ValueError(f"two adapters are called {description.name}")
    if description.is_claim_capable and description.options:
        raise ValueError(f"{description.name} is claim-capable and takes options")
    ADAPTERS[description.name] = adapter
    return adapter


def best_claim(claims: Iterable[claim_pb2.Claim]) -> claim_pb2.Claim | None:
    """Returns the claim of one network that ranks highest in the waterfall (clicks first, then the newest), if any."""
    return min(
        claims,
        key=lambda claim: (
            claim.is_view,
            -claim.engagement_time.ToNanoseconds(),
            claim.granular_data_forbidden,
            claim.campaign_name,
        ),
        default=None,
    )
