"""The seam between deliveries and kinds of networks: all that one kind does its own way.

`template.py` is the kind of every link-based network, `x.py` is X. Another one is another such module, a member of the
oneof `adapter` in postback.proto, and its case in configuration.py; nothing else knows which kinds there are.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from reengage.postback.v1 import claim_pb2
from services.postback.macros import Values
from services.postback.retry import Answer, Verdict

Report: TypeAlias = Callable[[str, str, str], None]
"""Notes a wrong field: its path, a reason in capitals, and what to change."""


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
    """What makes each signature another one; `time_s` is in seconds since 1970."""

    nonce: str
    time_s: int


class NotRenderableError(Exception):
    """The conversion lacks what the network cannot do without; it will never be sent."""


class Adapter(Protocol):
    """How conversions are told to one kind of network, as configured. Pure."""

    @property
    def method(self) -> str:
        """GET or POST."""

    @property
    def address(self) -> tuple[str, str]:
        """The field that says where it sends, and its value up to the first part that a conversion fills in."""

    @property
    def secret_names(self) -> frozenset[str]:
        """The secrets it cannot do without."""

    @property
    def is_claim_capable(self) -> bool:
        """Whether the network's answer says if it drove the conversion."""

    def requests(self, values: Values, secrets: Mapping[str, str], stamp: Stamp) -> tuple[Request, Request]:
        """The request, and the same with its secrets masked, to be kept and shown. Raises NotRenderableError."""

    def judge(self, answer: Answer) -> Verdict:
        """The verdict on an answer."""

    def claim(self, body: str) -> claim_pb2.Claim | None:
        """The claim in the body of an answer that was judged a success; None when there is none."""


def best_claim(claims: Iterable[claim_pb2.Claim]) -> claim_pb2.Claim | None:
    """Of several claims of one network the one that ranks highest in the waterfall: clicks first, then the newest."""
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
