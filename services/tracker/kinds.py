"""The seven kinds of resources, each described once; the standard methods and the store work from these descriptions.

A resource is its proto message everywhere in this service: what is stored, checked, answered and streamed is the same
thing, and copying seven of them field by field into other words would only invite differences.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from libs.errors import Violations
from reengage.tracker.v1.tracker_pb2 import (
    STATUS_ARCHIVED,
    App,
    Campaign,
    EventDefinition,
    Network,
    NetworkSettings,
    Resource,
    Segment,
    Tracker,
)
from services.tracker import validation
from services.tracker.validation import Parents

M = TypeVar("M", bound=Message)
Key = tuple[str, ...]

SET_BY_SERVICE = ("status", "create_time", "revision")
"""Output-only fields of every kind, where it has them."""


def _nothing(*_: object) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[M]):
    """One kind of resource.

    `name` is its field of `Resource`, and what paths and reasons begin with; `key` the fields that name one, and the
    primary key of `table`; `columns` the further fields that the table holds beside the whole message. `parents` come
    in the order in which they lead to each other; `inherited` fields are read off them. `complete` fills in the
    defaults of texts and enums, so that readers need not know them; settings that fall through to another layer stay
    unset. `check` looks at a resource by itself, `check_fit` at it together with its parents.
    """

    name: str
    message: type[M]
    table: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    check: Callable[[M, Violations], None]
    check_fit: Callable[[M, Parents, Violations], None] = _nothing
    parents: "tuple[Kind[Any], ...]" = ()
    inherited: tuple[str, ...] = ()
    immutable: tuple[str, ...] = ()
    complete: Callable[[M], None] = _nothing
    # There for every pair of parents, empty until first changed; never created or archived.
    always_there: bool = False
    # Callers name it, so that once archived it can be created again.
    named_by_caller: bool = False

    @property
    def output_only(self) -> frozenset[str]:
        """Fields that callers cannot set."""
        return frozenset((*SET_BY_SERVICE, *self.inherited))

    def key_of(self, message: Message) -> Key:
        """The values of the key fields; of a child they are its reference to this kind."""
        return tuple(getattr(message, name) for name in self.key)

    def with_key(self, key: Key) -> M:
        """An empty resource of that name."""
        return self.message(**dict(zip(self.key, key, strict=True)))

    def is_archived(self, message: Any) -> bool:
        """Whether it is archived; settings that are always there never are."""
        return getattr(message, "status", None) == STATUS_ARCHIVED

    def parse(self, stored: bytes) -> M:
        """A stored resource."""
        return self.message.FromString(stored)

    def parse_any(self, stored: bytes) -> Resource:
        """A stored resource as one of any kind."""
        resource = Resource()
        getattr(resource, self.name).MergeFromString(stored)
        return resource


def _complete_app(app: App) -> None:
    app.time_zone = app.time_zone or "UTC"
    app.currency_code = app.currency_code or "USD"


def _complete_tracker(tracker: Tracker) -> None:
    tracker.name = tracker.name or tracker.tracker_id
    tracker.type = tracker.type or Tracker.TYPE_ACQUISITION
    tracker.destination_type = tracker.destination_type or Tracker.DESTINATION_TYPE_CUSTOM


APP = Kind(
    name="app",
    message=App,
    table="apps",
    key=("app_id",),
    columns=("name", "status"),
    immutable=("platform",),
    complete=_complete_app,
    check=validation.check_app,
)
NETWORK = Kind(
    name="network",
    message=Network,
    table="networks",
    key=("network_id",),
    columns=("name", "status"),
    immutable=("platform", "self_attributing"),
    check=validation.check_network,
)
NETWORK_SETTINGS = Kind(
    name="network_settings",
    message=NetworkSettings,
    table="network_settings",
    key=("app_id", "network_id"),
    columns=(),
    parents=(APP, NETWORK),
    always_there=True,
    check=validation.check_network_settings,
    check_fit=validation.check_network_settings_fit,
)
CAMPAIGN = Kind(
    name="campaign",
    message=Campaign,
    table="campaigns",
    key=("campaign_id",),
    columns=("app_id", "name", "status"),
    parents=(APP,),
    immutable=("app_id",),
    check=validation.check_campaign,
)
SEGMENT = Kind(
    name="segment",
    message=Segment,
    table="segments",
    key=("segment_id",),
    columns=("campaign_id", "app_id", "name", "status"),
    parents=(CAMPAIGN, APP),
    inherited=("app_id",),
    immutable=("campaign_id",),
    check=validation.check_segment,
)
TRACKER = Kind(
    name="tracker",
    message=Tracker,
    table="trackers",
    key=("tracker_id",),
    columns=(
        "segment_id", "campaign_id", "app_id", "network_id", "name", "type", "events", "default_tracker", "status",
    ),
    parents=(SEGMENT, CAMPAIGN, APP, NETWORK),
    inherited=("campaign_id", "app_id"),
    immutable=("segment_id", "network_id", "type"),
    complete=_complete_tracker,
    check=validation.check_tracker,
    check_fit=validation.check_tracker_fits,
)  # fmt: skip
EVENT_DEFINITION = Kind(
    name="event_definition",
    message=EventDefinition,
    table="event_definitions",
    key=("app_id", "event_name"),
    columns=("status",),
    parents=(APP,),
    named_by_caller=True,
    check=validation.check_event_definition,
)

KINDS: dict[str, Kind[Any]] = {
    kind.name: kind for kind in (APP, NETWORK, NETWORK_SETTINGS, CAMPAIGN, SEGMENT, TRACKER, EVENT_DEFINITION)
}
"""All of them by name, parents before their children."""
