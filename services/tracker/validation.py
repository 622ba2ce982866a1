"""The rules for resources. Each check notes every wrong field, by its path in the request and a stable reason.

The proto's comments are the rules; numbers such as B2 are those of the attribution rules. What depends on a parent that
does not exist is left unchecked, since that is reported in its place.
"""

import functools
import ipaddress
import re
import zoneinfo
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from libs.domain.link_targets import INTENT, MARKET, SCRIPTS, WEB, LinkError, is_play_store, opened_scheme
from libs.domain.setting_ranges import (
    DAY_S,
    DEFAULT_POST_ENGAGEMENT_DAYS,
    DEFAULT_POST_VIEW_DAYS,
    DURATIONS,
    POST_ENGAGEMENT_DAYS,
    POST_VIEW_DAYS,
    check_days,
    check_ranges,
)
from libs.domain.traffic_rules import check_traffic_rules
from libs.errors import Violations
from libs.time import MAX_TIME_US, MIN_TIME_US, timestamp_us
from reengage.tracker.v1.account_pb2 import Account
from reengage.tracker.v1.agency_pb2 import Agency
from reengage.tracker.v1.api_key_pb2 import ApiKey
from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID, PLATFORM_IOS, App, BlocklistEntry
from reengage.tracker.v1.campaign_pb2 import Campaign
from reengage.tracker.v1.event_definition_pb2 import EventDefinition
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.network_settings_pb2 import NetworkSettings
from reengage.tracker.v1.san_account_pb2 import SanAccount
from reengage.tracker.v1.segment_pb2 import Segment
from reengage.tracker.v1.status_pb2 import STATUS_ARCHIVED
from reengage.tracker.v1.tracker_pb2 import Tracker, TrafficRules
from services.tracker.links import LINK_PARAMETERS

MAX_RESOURCE_BYTES = 16_000
"""The size of a serialized resource: 1,000 of them fit into one message."""
MAX_REQUEST_ID = 64

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_HOST = re.compile(r"(?=.{1,253}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}")
_TEAM = re.compile(r"[A-Z0-9]{10}")
_FINGERPRINT = re.compile(r"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}")
_CURRENCY = re.compile(r"[A-Z]{3}")
_AUTH_KEY = re.compile("[!-~]{1,128}")
_ORIGIN = re.compile(r"https?://(?:[a-z0-9-]+(?:\.[a-z0-9-]+)*|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?")
_USUAL_PORTS = {"https": ":443", "http": ":80"}
_NEED = re.compile(r"[a-z0-9_.]{1,64}")
_NOT_FOR_DEEP_LINKS = SCRIPTS.union(WEB)
_DEFAULT_DAYS = {
    "post_engagement_window": DEFAULT_POST_ENGAGEMENT_DAYS,
    "post_view_window": DEFAULT_POST_VIEW_DAYS,
}
_ONLY_SELF_ATTRIBUTING = (
    "post_engagement_window", "post_view_window", "default_tracker", "target_event", "san_account_ids", "bundle_id",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Parents:
    """The parents of the checked resource that exist, and the resource as it was `before` this change.

    Of a tracker also those of its accounts with self-attributing networks that exist, and which of its events are
    disabled.
    """

    account: Account | None = None
    app: App | None = None
    network: Network | None = None
    agency: Agency | None = None
    campaign: Campaign | None = None
    segment: Segment | None = None
    san_accounts: Mapping[str, SanAccount] = field(default_factory=dict)
    disabled_events: frozenset[str] = frozenset()
    before: Any = None


def is_id(text: str) -> bool:
    """Returns whether a text can be an id."""
    return _ID.fullmatch(text) is not None


def check_id(path: str, text: str, violations: Violations) -> None:
    """Notes what is wrong with an id, or a reference to one."""
    if not text:
        violations.add(path, "REQUIRED", "must be set")
    elif not is_id(text):
        violations.add(path, "INVALID_ID", "must be 1 to 64 of A-Z a-z 0-9 . _ -")


def check_name(path: str, text: str, violations: Violations) -> None:
    """Notes what is wrong with a name that people read: of a resource, or of an event."""
    if not text:
        violations.add(path, "REQUIRED", "must be set")
    elif len(text) > 128:
        violations.add(path, "TOO_LONG", "must be at most 128 characters")
    elif not text.isprintable():
        violations.add(path, "INVALID_TEXT", "must hold printable characters only")


def check_text(path: str, text: str, max_characters: int, violations: Violations) -> None:
    """Notes what is wrong with a text; none is right."""
    if len(text) > max_characters:
        violations.add(path, "TOO_LONG", f"must be at most {max_characters:,} characters")
    elif not text.isprintable():
        violations.add(path, "INVALID_TEXT", "must hold printable characters only")


def check_request_id(text: str, violations: Violations) -> None:
    """Notes what is wrong with a request id; empty is none."""
    if len(text) > MAX_REQUEST_ID or not text.isprintable():
        violations.add("request_id", "INVALID_TEXT", f"must be at most {MAX_REQUEST_ID} printable characters")


def check_message(path: str, message: Message, violations: Violations) -> None:
    """Notes what is wrong with a resource of any kind: its size, unknown enum values, settings out of their ranges."""
    if message.ByteSize() > MAX_RESOURCE_BYTES:
        violations.add(path, "TOO_LARGE", f"must be at most {MAX_RESOURCE_BYTES} bytes as a message")
    _check_enums(path, message, violations)
    check_ranges(path, message, violations)


def check_app(app: App, violations: Violations) -> None:
    """Notes what is wrong with an app and its settings."""
    check_name("app.name", app.name, violations)
    if not app.platform:
        violations.add("app.platform", "REQUIRED", "must be PLATFORM_IOS or PLATFORM_ANDROID")
    if app.time_zone not in _time_zones():
        violations.add("app.time_zone", "UNKNOWN_VALUE", "must be an IANA time zone, as Europe/Berlin")
    if not _CURRENCY.fullmatch(app.currency_code):
        violations.add("app.currency_code", "UNKNOWN_VALUE", "must be an ISO 4217 code, as USD")
    for index, scheme in enumerate(app.url_schemes):
        path = f"app.url_schemes[{index}]"
        if not _SCHEME.fullmatch(scheme):
            violations.add(path, "INVALID_SCHEME", "must be a URL scheme in lower case, as myapp")
        elif scheme in _NOT_FOR_DEEP_LINKS:
            violations.add(path, "NOT_ALLOWED", f"{scheme} is not an app's own scheme")
        elif scheme in app.url_schemes[:index]:
            violations.add(path, "DUPLICATE", f"{scheme} is named twice")
    if app.fallback_url:
        _check_url("app.fallback_url", app.fallback_url, violations)
        if "{" in app.fallback_url:
            violations.add("app.fallback_url", "NOT_ALLOWED", "must hold no macros")
    _check_texts(
        "app.link_domains", app.link_domains, 16, _HOST, "a host in lower case, as go.shop.example", violations
    )
    _check_associations(app, violations)
    _check_blocklist(app.settings.blocklist, violations)
    _check_auth_keys(app, violations)
    _check_origins(app.settings.allowed_origins, violations)


def _check_associations(app: App, violations: Violations) -> None:
    if app.apple_team_id and app.platform != PLATFORM_IOS:
        violations.add("app.apple_team_id", "NOT_ALLOWED", "is for iOS apps only")
    elif app.apple_team_id and not _TEAM.fullmatch(app.apple_team_id):
        violations.add("app.apple_team_id", "INVALID_ID", "must be ten of A-Z 0-9")
    path = "app.certificate_fingerprints"
    if app.certificate_fingerprints and app.platform != PLATFORM_ANDROID:
        violations.add(path, "NOT_ALLOWED", "are for Android apps only")
    else:
        _check_texts(
            path, app.certificate_fingerprints, 8, _FINGERPRINT, "32 bytes in upper case, as AB:CD:…", violations
        )


def _check_texts(
    path: str, texts: Sequence[str], at_most: int, form: re.Pattern[str], words: str, violations: Violations
) -> None:
    if len(texts) > at_most:
        violations.add(path, "TOO_MANY", f"must be at most {at_most}")
    for index, text in enumerate(texts):
        if not form.fullmatch(text):
            violations.add(f"{path}[{index}]", "INVALID_TEXT", f"must be {words}")
        elif text in texts[:index]:
            violations.add(f"{path}[{index}]", "DUPLICATE", f"{text} is named twice")


def _check_blocklist(blocklist: Sequence[BlocklistEntry], violations: Violations) -> None:
    if len(blocklist) > 200:
        violations.add("app.settings.blocklist", "TOO_MANY", "must be at most 200")
    for index, entry in enumerate(blocklist):
        path = f"app.settings.blocklist[{index}]"
        check_name(f"{path}.reason", entry.reason, violations)
        blocked = entry.WhichOneof("blocked")
        if blocked is None or not getattr(entry, blocked):
            violations.add(path, "REQUIRED", "must name a site, an address or a device")
        elif blocked == "ip_range":
            _check_ip_range(f"{path}.ip_range", entry.ip_range, violations)
        else:
            check_text(f"{path}.{blocked}", getattr(entry, blocked), 256, violations)


def _check_ip_range(path: str, text: str, violations: Violations) -> None:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        violations.add(path, "INVALID_IP_ADDRESS", "must be an address or a network, as 203.0.113.0/24")


def _check_auth_keys(app: App, violations: Violations) -> None:
    if len(app.auth_keys) > 2:
        violations.add("app.auth_keys", "TOO_MANY", "must be at most 2")
    for name, secret in app.auth_keys.items():
        if not _AUTH_KEY.fullmatch(name):
            violations.add("app.auth_keys", "INVALID_ID", "an API key must be 1 to 128 of ASCII, without spaces")
        elif not 8 <= len(secret) <= 256:
            violations.add(f"app.auth_keys[{name}]", "OUT_OF_RANGE", "a secret must be 8 to 256 characters")
    if app.settings.strict_authentication and not app.auth_keys:
        violations.add("app.settings.strict_authentication", "NOT_ALLOWED", "needs one of auth_keys first")


def _check_origins(origins: Sequence[str], violations: Violations) -> None:
    path = "app.settings.allowed_origins"
    if len(origins) > 64:
        violations.add(path, "TOO_MANY", "must be at most 64")
    for index, origin in enumerate(origins):
        if origin == "*" and len(origins) > 1:
            violations.add(f"{path}[{index}]", "NOT_ALLOWED", "* allows every origin, and stands alone")
        elif origin != "*" and not (_ORIGIN.fullmatch(origin) and len(origin) <= 256):
            violations.add(f"{path}[{index}]", "INVALID_ORIGIN", "must be as https://shop.example, or *")
        elif origin.endswith(_USUAL_PORTS.get(origin.partition(":")[0], " ")):
            violations.add(f"{path}[{index}]", "INVALID_ORIGIN", "browsers leave the usual port out")
        elif origin in origins[:index]:
            violations.add(f"{path}[{index}]", "DUPLICATE", f"{origin} is named twice")


def check_network(network: Network, violations: Violations) -> None:
    """Notes what is wrong with a network."""
    check_name("network.name", network.name, violations)
    if not network.platform:
        violations.add("network.platform", "REQUIRED", "must be PLATFORM_IOS or PLATFORM_ANDROID")
    for name, allowed in (
        ("post_engagement_windows", DURATIONS["post_engagement_window"]),
        ("post_view_windows", DURATIONS["post_view_window"]),
    ):
        windows = getattr(network, name)
        if windows and not network.self_attributing:
            violations.add(f"network.{name}", "NOT_ALLOWED", "is for self-attributing networks only")
        for index, window in enumerate(windows):
            if window.nanos or window.seconds % DAY_S or not allowed.min_s <= window.seconds <= allowed.max_s:
                violations.add(f"network.{name}[{index}]", "OUT_OF_RANGE", f"must be {allowed.text}, in whole days")
    _check_link_macros(network, violations)
    if len(network.postback_needs) > 16:
        violations.add("network.postback_needs", "TOO_MANY", "must be at most 16")
    for index, need in enumerate(network.postback_needs):
        if not _NEED.fullmatch(need.name):
            violations.add(f"network.postback_needs[{index}].name", "INVALID_ID", "must be 1 to 64 of a-z 0-9 _ .")
        check_text(f"network.postback_needs[{index}].description", need.description, 256, violations)


def _check_link_macros(network: Network, violations: Violations) -> None:
    if network.link_macros and network.self_attributing:
        violations.add("network.link_macros", "NOT_ALLOWED", "are for link-based networks only")
    for name, macro in network.link_macros.items():
        if name not in LINK_PARAMETERS:
            text = f"there is no parameter {name[:64]!r}; there are {', '.join(LINK_PARAMETERS)}"
            violations.add("network.link_macros", "UNKNOWN_VALUE", text)
        elif not 0 < len(macro) <= 128 or not macro.isprintable():
            violations.add(f"network.link_macros[{name}]", "INVALID_TEXT", "must be 1 to 128 printable characters")


def check_account(account: Account, violations: Violations) -> None:
    """Notes what is wrong with an account."""
    check_name("account.name", account.name, violations)


def check_agency(agency: Agency, violations: Violations) -> None:
    """Notes what is wrong with an agency."""
    check_name("agency.name", agency.name, violations)


def check_san_account(account: SanAccount, violations: Violations) -> None:
    """Notes what is wrong with an account with a self-attributing network."""
    check_id("san_account.app_id", account.app_id, violations)
    check_id("san_account.network_id", account.network_id, violations)
    check_name("san_account.name", account.name, violations)
    check_text("san_account.external_id", account.external_id, 128, violations)
    if len(account.credentials) > 16:
        violations.add("san_account.credentials", "TOO_MANY", "must be at most 16")
    for name, value in account.credentials.items():
        if not is_id(name):
            violations.add("san_account.credentials", "INVALID_ID", "names must be 1 to 64 of A-Z a-z 0-9 . _ -")
        elif not 0 < len(value.encode()) <= 4096:
            violations.add(f"san_account.credentials[{name}]", "OUT_OF_RANGE", "must be 1 to 4,096 bytes")


def check_san_account_fits(_account: SanAccount, parents: Parents, violations: Violations) -> None:
    """Notes a network that is not self-attributing, of another platform, or of another account."""
    _check_platforms("san_account.network_id", parents, violations)
    _check_owner("san_account.network_id", parents.network, parents, violations)
    if parents.network is not None and not parents.network.self_attributing:
        violations.add("san_account.network_id", "NOT_ALLOWED", "must be a self-attributing network")


def check_api_key(key: ApiKey, violations: Violations) -> None:
    """Notes what is wrong with a key: its role says which scopes it must have."""
    check_name("api_key.name", key.name, violations)
    if not key.role:
        violations.add("api_key.role", "REQUIRED", "must be set")
    if key.account_id and key.app_id:
        violations.add("api_key.app_id", "NOT_ALLOWED", "give an app, or an account, or neither")
    for name, role in (("network_id", ApiKey.ROLE_NETWORK), ("agency_id", ApiKey.ROLE_AGENCY)):
        if key.role == role and not getattr(key, name):
            violations.add(f"api_key.{name}", "REQUIRED", "the role needs it")
        elif key.role != role and getattr(key, name):
            violations.add(f"api_key.{name}", "NOT_ALLOWED", "the role has none")
    if key.role == ApiKey.ROLE_POSTBACK:
        violations.add("api_key.role", "NOT_ALLOWED", "credentials are for postback, whose key tracker is started with")
    if key.role == ApiKey.ROLE_SERVICE and (key.account_id or key.app_id):
        violations.add("api_key.role", "NOT_ALLOWED", "a service's key has no narrower scope")
    if key.HasField("expire_time"):
        _check_timestamp("api_key.expire_time", key.expire_time, violations)


def check_api_key_fits(_key: ApiKey, parents: Parents, violations: Violations) -> None:
    """Notes a network or an agency of another account."""
    _check_owner("api_key.network_id", parents.network, parents, violations)
    _check_owner("api_key.agency_id", parents.agency, parents, violations)


def check_network_settings_fit(_settings: NetworkSettings, parents: Parents, violations: Violations) -> None:
    """Notes a network of another platform or of another account."""
    _check_platforms("network_settings.network_id", parents, violations)
    _check_owner("network_settings.network_id", parents.network, parents, violations)


def check_campaign(campaign: Campaign, violations: Violations) -> None:
    """Notes what is wrong with a campaign."""
    check_id("campaign.app_id", campaign.app_id, violations)
    check_name("campaign.name", campaign.name, violations)


def check_segment(segment: Segment, violations: Violations) -> None:
    """Notes what is wrong with a segment."""
    check_id("segment.campaign_id", segment.campaign_id, violations)
    check_name("segment.name", segment.name, violations)


def check_event_definition(event: EventDefinition, violations: Violations) -> None:
    """Notes what is wrong with the settings of an event."""
    if event.display_name != event.event_name:
        check_name("event_definition.display_name", event.display_name, violations)


def check_tracker(tracker: Tracker, violations: Violations) -> None:
    """Notes what is wrong with a tracker by itself."""
    check_id("tracker.segment_id", tracker.segment_id, violations)
    check_id("tracker.network_id", tracker.network_id, violations)
    check_name("tracker.name", tracker.name, violations)
    _check_events(tracker, violations)
    if tracker.install_url:
        _check_install_url(tracker, violations)
    if len(tracker.custom_parameters) > 64:
        violations.add("tracker.custom_parameters", "TOO_MANY", "must be at most 64")
    if "" in tracker.custom_parameters:
        violations.add("tracker.custom_parameters", "REQUIRED", "must not have an empty key")
    if tracker.click_validation_key and not 16 <= len(tracker.click_validation_key) <= 256:
        violations.add("tracker.click_validation_key", "OUT_OF_RANGE", "must be 16 to 256 characters, or empty")
    check_text("tracker.target_event", tracker.target_event, 128, violations)
    check_text("tracker.bundle_id", tracker.bundle_id, 128, violations)
    if len(tracker.san_account_ids) > 32:
        violations.add("tracker.san_account_ids", "TOO_MANY", "must be at most 32")
    _check_traffic("tracker.traffic_rules", tracker.traffic_rules, violations)


def check_tracker_fits(tracker: Tracker, parents: Parents, violations: Violations) -> None:
    """Notes what is wrong with a tracker together with its app and network."""
    _check_platforms("tracker.network_id", parents, violations)
    _check_owner("tracker.network_id", parents.network, parents, violations)
    _check_owner("tracker.agency_id", parents.agency, parents, violations)
    if parents.app is not None:
        _check_destination(tracker, parents.app, violations)
    if parents.network is not None and parents.network.self_attributing:
        _check_self_attributing(tracker, parents.network, violations)
        _check_san_accounts(tracker, parents, violations)
    elif parents.network is not None:
        _check_link_based(tracker, parents.network, violations)
    held = parents.before.events if parents.before is not None else ()
    for index, event in enumerate(tracker.events):
        if event in parents.disabled_events and event not in held:
            violations.add(f"tracker.events[{index}]", "DISABLED", f"{event!r} is disabled")


def _check_events(tracker: Tracker, violations: Violations) -> None:
    """Notes events that break D1: a reengagement tracker has one or more, an acquisition tracker none."""
    if tracker.type == Tracker.TYPE_REENGAGEMENT and not tracker.events:
        violations.add("tracker.events", "REQUIRED", "a reengagement tracker needs at least one event")
    if tracker.type == Tracker.TYPE_ACQUISITION and tracker.events:
        violations.add("tracker.events", "NOT_ALLOWED", "an acquisition tracker has no events")
    for index, event in enumerate(tracker.events):
        check_name(f"tracker.events[{index}]", event, violations)
        if event in tracker.events[:index]:
            violations.add(f"tracker.events[{index}]", "DUPLICATE", f"{event!r} is named twice")


def _check_install_url(tracker: Tracker, violations: Violations) -> None:
    path, url = "tracker.install_url", tracker.install_url
    if tracker.destination_type != Tracker.DESTINATION_TYPE_GOOGLE_REFERRER:
        _check_url(path, url, violations)
        return
    _check_url(path, url, violations, schemes=(*WEB, MARKET))
    if not is_play_store(url) and all(violation.field != path for violation in violations.found):
        text = "must begin with https://play.google.com/store/apps/details? or market://details?, for GOOGLE_REFERRER"
        violations.add(path, "NOT_ALLOWED", text)


def _check_destination(tracker: Tracker, app: App, violations: Violations) -> None:
    if tracker.destination_type == Tracker.DESTINATION_TYPE_GOOGLE_REFERRER and app.platform != PLATFORM_ANDROID:
        violations.add("tracker.destination_type", "NOT_ALLOWED", "GOOGLE_REFERRER is for Android apps only")
    if tracker.deep_link:
        _check_url("tracker.deep_link", tracker.deep_link, violations, schemes=("https", *app.url_schemes))
        if tracker.deep_link[:7].lower() == f"{INTENT}:" and app.platform != PLATFORM_ANDROID:
            violations.add("tracker.deep_link", "NOT_ALLOWED", "intent: is for Android apps only")


def _check_traffic(path: str, rules: TrafficRules, violations: Violations) -> None:
    for name in ("start_time", "end_time"):
        if rules.HasField(name):
            _check_timestamp(f"{path}.{name}", getattr(rules, name), violations)
    check_traffic_rules(path, rules, violations)


def _check_san_accounts(tracker: Tracker, parents: Parents, violations: Violations) -> None:
    held = parents.before.san_account_ids if parents.before is not None else ()
    for index, account_id in enumerate(tracker.san_account_ids):
        path = f"tracker.san_account_ids[{index}]"
        account = parents.san_accounts.get(account_id)
        if account is None or (account.app_id, account.network_id) != (tracker.app_id, tracker.network_id):
            violations.add(path, "NOT_FOUND", "must be an account of this app with this network")
        elif account_id in tracker.san_account_ids[:index]:
            violations.add(path, "DUPLICATE", f"{account_id} is named twice")
        elif account_id not in held and account.status == STATUS_ARCHIVED:
            violations.add(path, "ARCHIVED", "must not be archived")
        elif account_id not in held and not account.verified:
            violations.add(path, "NOT_VERIFIED", "must be verified first")


def _check_self_attributing(tracker: Tracker, network: Network, violations: Violations) -> None:
    if tracker.type == Tracker.TYPE_REENGAGEMENT and len(tracker.events) > 1:
        violations.add("tracker.events", "TOO_MANY", "a self-attributing network's tracker has exactly one event")
    if tracker.windows.ListFields():  # B3
        violations.add("tracker.windows", "NOT_ALLOWED", "a self-attributing network's tracker overrides no windows")
    engagement_s = _check_allowed_days(
        tracker, "post_engagement_window", network.post_engagement_windows, POST_ENGAGEMENT_DAYS, violations
    )
    view_s = _check_allowed_days(tracker, "post_view_window", network.post_view_windows, POST_VIEW_DAYS, violations)
    if (view_s or 0) > (engagement_s or DEFAULT_POST_ENGAGEMENT_DAYS * DAY_S):
        violations.add("tracker.post_view_window", "OUT_OF_RANGE", "must not be above the post-engagement window")


def _check_link_based(tracker: Tracker, network: Network, violations: Violations) -> None:
    if not tracker.install_url and not network.handles_redirects:
        violations.add("tracker.install_url", "REQUIRED", "a link-based network's tracker needs it")
    set_fields = {field.name for field, _ in tracker.ListFields()}
    for name in _ONLY_SELF_ATTRIBUTING:
        if name in set_fields:
            violations.add(f"tracker.{name}", "NOT_ALLOWED", "is for self-attributing networks only")


def _check_platforms(path: str, parents: Parents, violations: Violations) -> None:
    if parents.app is not None and parents.network is not None and parents.app.platform != parents.network.platform:
        violations.add(path, "PLATFORM_MISMATCH", "must be a network of the app's platform")


def _check_owner(path: str, owned: Network | Agency | None, parents: Parents, violations: Violations) -> None:
    """Notes a resource of another account: it serves the apps of its own only."""
    account_id = parents.app.account_id if parents.app is not None else getattr(parents.account, "account_id", None)
    if owned is not None and owned.account_id and account_id is not None and owned.account_id != account_id:
        violations.add(path, "OTHER_ACCOUNT", "must belong to no account, or to the same")


def _check_allowed_days(
    tracker: Tracker, name: str, windows: Iterable[Duration], days_else: Sequence[int], violations: Violations
) -> int | None:
    """Notes a window of a tracker that its network does not allow (B4); returns its seconds if it is set and right."""
    path, allowed, window = f"tracker.{name}", days(windows) or days_else, getattr(tracker, name)
    if not tracker.HasField(name):  # type: ignore[arg-type]  # a field of Tracker
        if _DEFAULT_DAYS[name] not in allowed:
            text = f"must be given: the network does not allow {_DEFAULT_DAYS[name]} days, the default"
            violations.add(path, "REQUIRED", text)
        return None
    if all(violation.field != path for violation in violations.found):  # within its range
        check_days(path, window, allowed, violations)
    return None if any(violation.field == path for violation in violations.found) else int(window.seconds)


def days(windows: Iterable[Duration]) -> tuple[int, ...]:
    """Returns windows of whole days as their numbers, ascending."""
    return tuple(sorted(window.seconds // DAY_S for window in windows))


def _check_timestamp(path: str, time: Timestamp, violations: Violations) -> None:
    if not MIN_TIME_US <= timestamp_us(time) <= MAX_TIME_US or not 0 <= time.nanos <= 999_999_999:
        violations.add(path, "OUT_OF_RANGE", "must be a time of the years 1 to 9999")


def _check_url(path: str, url: str, violations: Violations, schemes: tuple[str, ...] = WEB) -> None:
    try:
        scheme = opened_scheme(url)
    except LinkError as error:
        violations.add(path, error.reason, error.message)
        return
    if "@" in urlsplit(url).netloc:
        violations.add(path, "INVALID_URL", "must not hold a user or password")
    if scheme not in schemes:
        violations.add(path, "INVALID_SCHEME", f"must begin with {', '.join(f'{scheme}:' for scheme in schemes)}")


def _check_enums(path: str, message: Message, violations: Violations) -> None:
    for described, value in message.ListFields():
        inner = f"{path}.{described.name}"
        if described.is_repeated:
            continue  # whoever knows its items checks them
        if described.enum_type is not None and value not in described.enum_type.values_by_number:
            violations.add(inner, "UNKNOWN_VALUE", f"must be a value of {described.enum_type.name}")
        elif described.message_type is not None:
            _check_enums(inner, value, violations)


@functools.cache
def _time_zones() -> set[str]:
    return zoneinfo.available_timezones()


def check_key(path: str, names: tuple[str, ...], key: tuple[Any, ...], violations: Violations) -> None:
    """Notes what is wrong with the fields that name a resource; `path` goes before each, empty or ending in a dot."""
    for name, text in zip(names, key, strict=True):
        check = check_name if name == "event_name" else check_id
        check(f"{path}{name}", text, violations)
