"""The kinds of resources, each described once; the resource methods and the store work from these descriptions.

A resource is its proto message everywhere in this service: what is stored, checked, returned and streamed is the same
thing, and copying each of them field by field into other words would only invite differences.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from libs.errors import Violations
from reengage.tracker.v1.account_pb2 import Account
from reengage.tracker.v1.agency_pb2 import Agency
from reengage.tracker.v1.api_key_pb2 import ApiKey
from reengage.tracker.v1.app_pb2 import App
from reengage.tracker.v1.campaign_pb2 import Campaign
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.network_settings_pb2 import NetworkSettings
from reengage.tracker.v1.resource_kind_pb2 import ResourceKind
from reengage.tracker.v1.san_account_pb2 import SanAccount
from reengage.tracker.v1.segment_pb2 import Segment
from reengage.tracker.v1.status_pb2 import STATUS_ARCHIVED
from reengage.tracker.v1.tracker_pb2 import Tracker
from services.tracker import catalogue, validation
from services.tracker.validation import Parents

M = TypeVar("M", bound=Message)
Key = tuple[str, ...]

SET_BY_SERVICE = ("status", "create_time", "revision", "etag")
"""Output-only fields of every kind, where it has them."""


def _nothing(*_: object) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[M]):
    """One kind of resource.

    `name` is its field of `Resource`, and what paths and reasons begin with; `key` the fields that name one, and the
    primary key of `table`; `columns` the further fields that the table holds beside the whole message. `parents` come
    in the order in which they lead to each other; a child may do without those that are `optional`. `inherited` fields
    are read off them, `derived` ones are worked out by `complete`, which fills in the defaults of texts and enums, so
    that readers need not know them; settings that fall through to another layer stay unset. `check` looks at a resource
    by itself, `check_fit` at it together with its parents.
    """

    name: str
    message: type[M]
    table: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    check: Callable[[M, Violations], None] = _nothing
    check_fit: Callable[[M, Parents, Violations], None] = _nothing
    parents: "tuple[Kind[Any], ...]" = ()
    optional: "tuple[Kind[Any], ...]" = ()
    inherited: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()
    immutable: tuple[str, ...] = ()
    complete: Callable[[M], None] = _nothing
    # There for every pair of parents, empty until first changed; never created or archived.
    always_there: bool = False
    # Callers name it, so that once archived, or while merely registered, it can be created again.
    named_by_caller: bool = False
    # Those that are there without being stored, of revision 0, until something first needs them.
    built_in: Mapping[Key, M] = field(default_factory=dict)
    # The field that is kept encrypted, apart, and never returned.
    sealed: str = ""
    # A text, or a map of texts, that is kept encrypted inside of the stored resource.
    encrypted: str = ""

    @property
    def number(self) -> ResourceKind.ValueType:
        """Returns its number in the contract."""
        return ResourceKind.Value(f"RESOURCE_KIND_{self.name.upper()}")

    @property
    def output_only(self) -> frozenset[str]:
        """Returns the fields that callers cannot set."""
        return frozenset((*SET_BY_SERVICE, *self.inherited, *self.derived))

    @property
    def nullable(self) -> frozenset[str]:
        """Returns the columns that refer to what a resource may do without."""
        return frozenset(name for parent in self.optional for name in parent.key)

    def key_of(self, message: Message) -> Key:
        """Returns the values of the key fields; of a child they are its reference to this kind."""
        return tuple(getattr(message, name) for name in self.key)

    def with_key(self, key: Key) -> M:
        """Returns an empty resource of that name, as before its first revision."""
        return self.message(**dict(zip(self.key, key, strict=True)), etag="0")

    def is_archived(self, message: Any) -> bool:
        """Returns whether it is archived; settings that are always there never are."""
        return getattr(message, "status", None) == STATUS_ARCHIVED

    def gives_way(self, message: Any) -> bool:
        """Returns whether another of the same name may be created in its place."""
        return self.named_by_caller and (self.is_archived(message) or message.registered)


def _complete_network(network: Network) -> None:
    """Fills in what is not given of a network of the catalogue."""
    built_in = catalogue.NETWORKS.get((network.network_id,))
    network.built_in = built_in is not None
    if built_in is not None:
        given = Network()
        given.CopyFrom(network)
        network.CopyFrom(built_in)
        for name, _ in ((field.name, value) for field, value in given.ListFields()):
            network.ClearField(name)  # type: ignore[arg-type]  # the names are Network's own
        network.MergeFrom(given)


def _complete_san_account(account: SanAccount) -> None:
    account.credential_names[:] = sorted(account.credentials)


def _complete_event_definition(event: EventDefinition) -> None:
    event.display_name = event.display_name or event.event_name


def _complete_app(app: App) -> None:
    app.auth_key_names[:] = sorted(app.auth_keys)
    app.time_zone = app.time_zone or "UTC"
    app.currency_code = app.currency_code or "USD"


def _complete_tracker(tracker: Tracker) -> None:
    tracker.name = tracker.name or tracker.tracker_id
    tracker.type = tracker.type or Tracker.TYPE_ACQUISITION
    if not tracker.HasField("share_with_publisher"):
        tracker.share_with_publisher = True
    tracker.destination_type = tracker.destination_type or Tracker.DESTINATION_TYPE_CUSTOM


ACCOUNT = Kind(
    name="account",
    message=Account,
    table="accounts",
    key=("account_id",),
    columns=("name", "status"),
    check=validation.check_account,
)
APP = Kind(
    name="app",
    message=App,
    table="apps",
    key=("app_id",),
    columns=("account_id", "name", "status"),
    parents=(ACCOUNT,),
    optional=(ACCOUNT,),
    derived=("auth_key_names",),
    immutable=("platform", "account_id"),
    encrypted="auth_keys",
    complete=_complete_app,
    check=validation.check_app,
)
NETWORK = Kind(
    name="network",
    message=Network,
    table="networks",
    key=("network_id",),
    columns=("account_id", "name", "status"),
    parents=(ACCOUNT,),
    optional=(ACCOUNT,),
    derived=("built_in",),
    immutable=("platform", "self_attributing", "account_id"),
    complete=_complete_network,
    built_in=catalogue.NETWORKS,
    check=validation.check_network,
)
AGENCY = Kind(
    name="agency",
    message=Agency,
    table="agencies",
    key=("agency_id",),
    columns=("account_id", "name", "status"),
    parents=(ACCOUNT,),
    optional=(ACCOUNT,),
    immutable=("account_id",),
    check=validation.check_agency,
)
NETWORK_SETTINGS = Kind(
    name="network_settings",
    message=NetworkSettings,
    table="network_settings",
    key=("app_id", "network_id"),
    columns=(),
    parents=(APP, NETWORK),
    always_there=True,
    check_fit=validation.check_network_settings_fit,
)
SAN_ACCOUNT = Kind(
    name="san_account",
    message=SanAccount,
    table="san_accounts",
    key=("san_account_id",),
    columns=("app_id", "network_id", "name", "status"),
    parents=(APP, NETWORK),
    derived=("credential_names",),
    immutable=("app_id", "network_id"),
    complete=_complete_san_account,
    sealed="credentials",
    check=validation.check_san_account,
    check_fit=validation.check_san_account_fits,
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
        "segment_id", "campaign_id", "app_id", "network_id", "agency_id", "name", "type", "events", "default_tracker",
        "san_account_ids", "share_with_publisher", "status",
    ),
    parents=(SEGMENT, CAMPAIGN, APP, NETWORK, AGENCY),
    optional=(AGENCY,),
    inherited=("campaign_id", "app_id"),
    derived=("has_click_validation_key",),
    immutable=("segment_id", "network_id", "type"),
    encrypted="click_validation_key",
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
    derived=("registered",),
    complete=_complete_event_definition,
    check=validation.check_event_definition,
)
API_KEY = Kind(
    name="api_key",
    message=ApiKey,
    table="api_keys",
    key=("api_key_id",),
    columns=("account_id", "app_id", "network_id", "agency_id", "status"),
    parents=(ACCOUNT, APP, NETWORK, AGENCY),
    optional=(ACCOUNT, APP, NETWORK, AGENCY),
    derived=("last_use_time", "key_hash"),
    immutable=("role", "account_id", "app_id", "network_id", "agency_id"),
    check=validation.check_api_key,
    check_fit=validation.check_api_key_fits,
)

KINDS: dict[str, Kind[Any]] = {
    kind.name: kind
    for kind in (
        ACCOUNT, APP, NETWORK, AGENCY, NETWORK_SETTINGS, SAN_ACCOUNT, CAMPAIGN, SEGMENT, TRACKER, EVENT_DEFINITION,
        API_KEY,
    )
}  # fmt: skip
"""All of them by name, parents before their children."""
BY_NUMBER: dict[int, Kind[Any]] = {kind.number: kind for kind in KINDS.values()}
"""All of them by their value in the contract."""
