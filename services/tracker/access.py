"""Access: the roles that may call each method, and the resources in the scope of a key. Pure."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

from libs.errors import PermissionDenied
from reengage.tracker.v1.api_key_pb2 import ApiKey

ADMIN, EDITOR, VIEWER = ApiKey.ROLE_ADMIN, ApiKey.ROLE_EDITOR, ApiKey.ROLE_VIEWER
NETWORK, AGENCY, SERVICE = ApiKey.ROLE_NETWORK, ApiKey.ROLE_AGENCY, ApiKey.ROLE_SERVICE
POSTBACK = ApiKey.ROLE_POSTBACK
Role: TypeAlias = "ApiKey.Role.ValueType"

_ADMINS = frozenset({ADMIN})
_EDITORS = frozenset({ADMIN, EDITOR})
_VIEWERS = frozenset({ADMIN, EDITOR, VIEWER})
_SNAPSHOTS = frozenset({ADMIN, SERVICE})
_STANDARD = {  # of each kind of resource: who reads, who writes
    ("Account", "Accounts"): (_ADMINS, _ADMINS),
    ("ApiKey", "ApiKeys"): (_ADMINS, _ADMINS),
    ("App", "Apps"): (_VIEWERS, _EDITORS),
    ("Network", "Networks"): (_VIEWERS | {NETWORK}, _EDITORS),
    ("Agency", "Agencies"): (_VIEWERS, _EDITORS),
    ("SanAccount", "SanAccounts"): (_VIEWERS, _EDITORS),
    ("Campaign", "Campaigns"): (_VIEWERS, _EDITORS),
    ("Segment", "Segments"): (_VIEWERS, _EDITORS),
    ("EventDefinition", "EventDefinitions"): (_VIEWERS, _EDITORS),
}

ROLES: dict[str, frozenset[Role]] = {
    **{
        f"{verb}{plural if verb == 'List' else kind}": readers if verb in ("Get", "List") else writers
        for (kind, plural), (readers, writers) in _STANDARD.items()
        for verb in ("Create", "Get", "List", "Update", "Archive")
    },
    "RotateApiKey": _ADMINS,
    "GetSanAccountCredentials": frozenset({POSTBACK}),
    "GetNetworkSettings": _VIEWERS,
    "UpdateNetworkSettings": _EDITORS,
    "CreateTracker": _EDITORS,
    "GetTracker": _VIEWERS | {NETWORK, AGENCY},
    "ListTrackers": _VIEWERS | {NETWORK, AGENCY},
    "ExportTrackers": _VIEWERS | {NETWORK, AGENCY},
    "UpdateTracker": _EDITORS | {AGENCY},
    "ArchiveTracker": _EDITORS | {AGENCY},
    "BulkEditTrackers": _EDITORS | {AGENCY},
    "CopyTracker": _EDITORS,
    "ImportTrackers": _EDITORS,
    "DraftPostbacks": _VIEWERS,
    "ResolveSettings": _VIEWERS,
    "RegisterEvents": _EDITORS | {SERVICE},
    "PlanSettings": _VIEWERS,
    "ApplySettings": _EDITORS,
    "ListChanges": _VIEWERS,
    "GetSnapshot": _SNAPSHOTS,
    "WatchSnapshot": _SNAPSHOTS,
}
"""The roles that may call each method of TrackerConfigService."""

_ALL_SCOPES_ONLY = frozenset({"GetSnapshot", "WatchSnapshot"})  # they show everything
_NOT_FOR_AGENCIES = ("agency_id", "share_with_publisher", "click_validation_key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The caller that is served: role and scope of a key, and how the audit trail calls it.

    The scope is one app, with the account it belongs to; or an account; or, with neither, everything.
    """

    actor: str
    role: Role
    account_id: str = ""
    app_id: str = ""
    network_id: str = ""
    agency_id: str = ""

    @property
    def sees_all_apps(self) -> bool:
        """Returns whether the scope is everything."""
        return not self.account_id and not self.app_id

    @property
    def is_partner(self) -> bool:
        """Returns whether it is an outsider, who sees trackers only, and no secrets."""
        return self.role in (NETWORK, AGENCY)


_current: ContextVar[Caller] = ContextVar("caller")


def set_caller(caller: Caller) -> None:
    """Makes what follows in this context be served for this caller."""
    _current.set(caller)


def caller() -> Caller:
    """Returns whose call is served. Raises LookupError where nobody's is, so that nothing is shown by mistake."""
    return _current.get()


def check_method(caller: Caller, method: str) -> None:
    """Raises PermissionDenied when the caller's role may not call it at all."""
    if caller.role not in ROLES.get(method, ()):
        role = ApiKey.Role.Name(caller.role)
        raise PermissionDenied("ROLE_NOT_ALLOWED", f"a key of {role} may not call {method}")
    if method in _ALL_SCOPES_ONLY and not caller.sees_all_apps:
        raise PermissionDenied("SCOPE_NOT_ALLOWED", f"{method} shows everything; this key's scope is narrower")


def check_fields(caller: Caller, paths: list[str]) -> None:
    """Raises PermissionDenied when an agency would change what is the owner's to decide."""
    wrong = [path for path in paths if path.split(".")[0] in _NOT_FOR_AGENCIES]
    if caller.role == AGENCY and wrong:
        raise PermissionDenied("FIELD_NOT_ALLOWED", f"an agency may not change {', '.join(wrong)}")


def may_see(caller: Caller, kind: str, resource: Any, account_id: str) -> bool:
    """Returns whether the caller may read a resource. `account_id` is that of the resource, or of its app."""
    if caller.role == NETWORK:
        if kind == "network":
            return bool(resource.network_id == caller.network_id)
        if kind != "tracker" or resource.network_id != caller.network_id:
            return False
        if resource.HasField("share_with_publisher") and not resource.share_with_publisher:
            return False
    if caller.role == AGENCY and (kind != "tracker" or resource.agency_id != caller.agency_id):
        return False
    return in_scope(caller, kind, resource, account_id)


def in_scope(caller: Caller, kind: str, resource: Any, account_id: str) -> bool:
    """Returns whether a resource lies in the caller's scope to read, whatever its role shows of it."""
    if kind in ("network", "agency") and account_id in ("", caller.account_id):
        return True
    if kind == "account" and account_id == caller.account_id:
        return True
    return may_change(caller, resource, account_id)


def may_change(caller: Caller, resource: Any, account_id: str) -> bool:
    """Returns whether a resource that the caller sees is in its scope to write."""
    if caller.sees_all_apps:
        return True
    if caller.app_id:
        return getattr(resource, "app_id", "") == caller.app_id
    return account_id == caller.account_id


def conditions(caller: Caller, kind: str) -> list[tuple[str, str | bool]]:
    """Returns conditions, with `{}` for the value, for what a list shows of the table of a kind.

    Lists of one app's resources are asked for an app in the caller's scope; only the others are narrowed by scope.
    """
    found: list[tuple[str, str | bool]] = []
    if caller.role == NETWORK:
        found.append(("network_id = {}", caller.network_id))
        if kind == "tracker":
            found.append(("share_with_publisher = {}", True))
    if caller.role == AGENCY:
        found.append(("agency_id = {}", caller.agency_id))
    if caller.sees_all_apps:
        return found
    match kind:
        case "network" | "agency":
            found.append(("coalesce(account_id, {0}) = {0}", caller.account_id))
        case "account":
            found.append(("account_id = {}", caller.account_id))
        case "app" | "api_key" if caller.app_id:
            found.append(("app_id = {}", caller.app_id))
        case "app":
            found.append(("account_id = {}", caller.account_id))
        case "api_key":
            in_account = "(account_id = {0} OR app_id IN (SELECT app_id FROM apps WHERE account_id = {0}))"
            found.append((in_account, caller.account_id))
        case _:
            pass
    return found
