"""The kinds of resources that commands list, show, create, edit and archive, each described once.

What an RPC is called, and takes, follows from the name of the message: `GetTracker`, `ListTrackersRequest`. Only what
the protos do not say stands here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

_WORDS = {"api_key": "API key", "san_account": "SAN account", "configuration": "postback configuration"}
_SET_BY_SERVICE = ("status", "create_time", "revision", "etag")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of resource.

    `name` is the field that holds one in requests, and what paths and reasons begin with; `key` the fields that name
    one; `columns` what lists show, if any row has it. Nobody but the service sets fields that are `output_only`.
    """

    name: str
    message_name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    plural: str = ""
    service: str = "tracker"
    output_only: frozenset[str] = frozenset(_SET_BY_SERVICE)

    @property
    def message(self) -> type[Any]:
        """Returns the class of its message."""
        return self.class_of(self.message_name)

    def class_of(self, message_name: str) -> type[Any]:
        """Returns the class of a message of the same service, such as `GetTrackerRequest`."""
        from libs.messages import message_class

        import_module(f"reengage.{self.service}.v1.service_pb2")  # defines them all
        return message_class(f"reengage.{self.service}.v1.{message_name}")

    @property
    def list_method(self) -> str:
        """Returns the RPC that lists them."""
        return f"List{self.plural or f'{self.message_name}s'}"

    @property
    def list_name(self) -> str:
        """Returns the field that holds a list of them."""
        return "agencies" if self.name == "agency" else f"{self.name}s"

    @property
    def words(self) -> str:
        """Returns what people call one of them."""
        return _WORDS.get(self.name, self.name.replace("_", " "))

    @property
    def many(self) -> str:
        """Returns what people call several of them."""
        return self.words.removesuffix("y") + "ies" if self.name == "agency" else f"{self.words}s"

    def key_of(self, resource: Any) -> tuple[str, ...]:
        """Returns the values of the fields that name a resource."""
        return tuple(getattr(resource, name) for name in self.key)


def _output_only(*further: str) -> frozenset[str]:
    return frozenset((*_SET_BY_SERVICE, *further))


ACCOUNT = Kind(
    name="account", message_name="Account", key=("account_id",), columns=("account_id", "name", "status"),
)  # fmt: skip
APP = Kind(
    name="app",
    message_name="App",
    key=("app_id",),
    columns=(
        "app_id", "name", "platform", "account_id", "bundle_id", "time_zone", "currency_code", "sandbox", "status",
    ),
    output_only=_output_only("auth_key_names"),
)  # fmt: skip
NETWORK = Kind(
    name="network",
    message_name="Network",
    key=("network_id",),
    columns=(
        "network_id", "name", "platform", "self_attributing", "account_id", "handles_redirects", "built_in", "status",
    ),
    output_only=_output_only("built_in"),
)  # fmt: skip
NETWORK_SETTINGS = Kind(
    name="network_settings",
    message_name="NetworkSettings",
    plural="NetworkSettings",
    key=("app_id", "network_id"),
    columns=("network_id", "granular_data_policy", "late_pings"),
)
AGENCY = Kind(
    name="agency",
    message_name="Agency",
    plural="Agencies",
    key=("agency_id",),
    columns=("agency_id", "name", "account_id", "status"),
)
SAN_ACCOUNT = Kind(
    name="san_account",
    message_name="SanAccount",
    key=("san_account_id",),
    columns=("san_account_id", "name", "network_id", "external_id", "credential_names", "verified", "status"),
    output_only=_output_only("credential_names"),
)
CAMPAIGN = Kind(
    name="campaign", message_name="Campaign", key=("campaign_id",), columns=("campaign_id", "name", "status"),
)  # fmt: skip
SEGMENT = Kind(
    name="segment",
    message_name="Segment",
    key=("segment_id",),
    columns=("segment_id", "name", "campaign_id", "status"),
    output_only=_output_only("app_id"),
)
TRACKER = Kind(
    name="tracker",
    message_name="Tracker",
    key=("tracker_id",),
    columns=(
        "tracker_id", "name", "type", "network_id", "campaign_id", "segment_id", "agency_id", "events", "status",
    ),
    output_only=_output_only("campaign_id", "app_id", "has_click_validation_key"),
)  # fmt: skip
EVENT_DEFINITION = Kind(
    name="event_definition",
    message_name="EventDefinition",
    key=("app_id", "event_name"),
    columns=(
        "event_name", "display_name", "min_time_to_reengagement", "reengagement_period", "revenue", "disabled",
        "registered", "status",
    ),
    output_only=_output_only("registered"),
)  # fmt: skip
API_KEY = Kind(
    name="api_key",
    message_name="ApiKey",
    key=("api_key_id",),
    columns=(
        "api_key_id", "name", "role", "account_id", "app_id", "network_id", "agency_id", "expire_time",
        "last_use_time", "status",
    ),
    output_only=_output_only("last_use_time", "key_hash"),
)  # fmt: skip
CONFIGURATION = Kind(
    name="configuration",
    message_name="Configuration",
    service="postback",
    key=("configuration_id",),
    columns=(
        "configuration_id", "network_id", "trigger", "adapter", "delivery_method", "delivery_delay", "clicks_only",
        "secret_names", "status",
    ),
    output_only=frozenset({"secret_names", "create_time", "update_time"}),
)  # fmt: skip

TRACKER_KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        ACCOUNT, APP, NETWORK, AGENCY, NETWORK_SETTINGS, SAN_ACCOUNT, CAMPAIGN, SEGMENT, TRACKER, EVENT_DEFINITION,
        API_KEY,
    )
}  # fmt: skip
"""The kinds of tracker, by the names of the fields of its `Resource`."""
