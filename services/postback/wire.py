"""A configuration as callers write it, as it is stored, and as deliveries are sent by it."""

import re
from collections.abc import Callable
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict, ParseDict
from yarl import URL

from libs.errors import Violations
from libs.vault import Vault
from reengage.postback.v1 import configuration_pb2
from services.postback.adapters import x
from services.postback.adapters.adapter import Adapter
from services.postback.adapters.template import parse
from services.postback.guard import Guard
from services.postback.macros import is_known
from services.postback.model import Configuration, Status
from services.postback.store import StoredConfiguration

DELAYS_S = (0, 30, 60, 120, 180, 300, 600)
OUTPUT_ONLY = ("secret_names", "create_time", "update_time")
_COLUMNS = ("configuration_id", "app_id", "status", "secrets", *OUTPUT_ONLY)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_WRITABLE_STATUS = (configuration_pb2.Configuration.STATUS_LIVE, configuration_pb2.Configuration.STATUS_PAUSED)
_SECRET_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def complete(message: configuration_pb2.Configuration) -> None:
    """Fill in the defaults of what is left out."""
    message.status = message.status or configuration_pb2.Configuration.STATUS_LIVE
    message.delivery_method = message.delivery_method or configuration_pb2.Configuration.DELIVERY_METHOD_ALL
    if message.HasField("template"):
        message.template.method = message.template.method or configuration_pb2.Template.METHOD_GET
    if message.HasField("x"):
        x.complete(message.x)
    if not message.HasField("retry_attempts"):
        message.retry_attempts = 3
    if not message.HasField("attempt_timeout"):
        message.attempt_timeout.FromSeconds(5)
    message.delivery_delay.SetInParent()
    for name in OUTPUT_ONLY:
        message.ClearField(name)  # type: ignore[arg-type]


_RULES: tuple[tuple[str, Callable[[configuration_pb2.Configuration], bool], str, str], ...] = (
    (
        "configuration_id",
        lambda m: bool(_ID.fullmatch(m.configuration_id)),
        "INVALID_ID",
        "1 to 64 of A-Z a-z 0-9 . _ -",
    ),
    ("app_id", lambda m: _is_text(m.app_id, 256), "REQUIRED", "1 to 256 characters without NUL"),
    ("network_id", lambda m: _is_text(m.network_id, 256), "REQUIRED", "1 to 256 characters without NUL"),
    (
        "trigger",
        lambda m: _is_text(m.trigger, 128),
        "REQUIRED",
        "_install or an event: 1 to 128 characters without NUL",
    ),
    ("status", lambda m: m.status in _WRITABLE_STATUS, "NOT_ALLOWED", "LIVE or PAUSED; ArchiveConfiguration archives"),
    (
        "delivery_method",
        lambda m: m.delivery_method in configuration_pb2.Configuration.DeliveryMethod.values(),
        "UNKNOWN",
        "must be a value of DeliveryMethod",
    ),
    (
        "delivery_delay",
        lambda m: _seconds(m.delivery_delay) in DELAYS_S,
        "NOT_ALLOWED",
        f"one of {', '.join(map(str, DELAYS_S))} seconds",
    ),
    ("retry_attempts", lambda m: 0 <= m.retry_attempts <= 10, "OUT_OF_RANGE", "0 to 10"),
    ("attempt_timeout", lambda m: 1 <= _seconds(m.attempt_timeout) <= 30, "OUT_OF_RANGE", "1 to 30 seconds"),
    ("deliveries_per_second", lambda m: 0 <= m.deliveries_per_second <= 100_000, "OUT_OF_RANGE", "0 to 100,000"),
    ("secrets", lambda m: len(m.secrets) <= 16, "TOO_MANY", "at most 16"),
    ("secrets", lambda m: all(map(_SECRET_NAME.fullmatch, m.secrets)), "INVALID_NAME", "1 to 64 of A-Z a-z 0-9 _ -"),
    (
        "secrets",
        lambda m: all(1 <= len(value.encode()) <= 4096 for value in m.secrets.values()),
        "INVALID_VALUE",
        "1 to 4,096 bytes each",
    ),
    (
        "template.method",
        lambda m: m.template.method in configuration_pb2.Template.Method.values(),
        "UNKNOWN",
        "must be a value of Method",
    ),
    ("template.default_value", lambda m: len(m.template.default_value) <= 1024, "TOO_LONG", "at most 1,024 characters"),
    (
        "template.success_substring",
        lambda m: len(m.template.success_substring) <= 1024,
        "TOO_LONG",
        "at most 1,024 characters",
    ),
)


# A claim is asked for before it is known who won.
_ASKED_AT_ONCE: tuple[tuple[str, Callable[[configuration_pb2.Configuration], bool]], ...] = (
    ("delivery_delay", lambda m: not m.delivery_delay.ToNanoseconds()),
    ("delivery_method", lambda m: m.delivery_method == configuration_pb2.Configuration.DELIVERY_METHOD_ALL),
    ("clicks_only", lambda m: not m.clicks_only),
)


def check(message: configuration_pb2.Configuration, guard: Guard) -> None:
    """Raise InvalidArgument with every wrong field of a completed configuration."""
    violations = Violations()
    for field, holds, reason, description in _RULES:
        if not holds(message):
            violations.add(f"configuration.{field}", reason, description)
    known = len(violations.found)
    adapter = _adapter(message, violations)
    if adapter is None:
        violations.add("configuration.adapter", "REQUIRED", "exactly one of template, x")
    else:
        if len(violations.found) == known:
            _check_address(*adapter.address, guard, violations)
        _check_secrets(message, adapter, violations)
        _check_claims(message, adapter, violations)
    violations.check()


def to_stored(message: configuration_pb2.Configuration, vault: Vault) -> tuple[Status, dict[str, Any], bytes]:
    """What of a completed configuration is stored beside its id and app: status, settings, sealed secrets."""
    rest = configuration_pb2.Configuration()
    rest.CopyFrom(message)
    for name in _COLUMNS:
        rest.ClearField(name)  # type: ignore[arg-type]
    status = Status(configuration_pb2.Configuration.Status.Name(message.status).removeprefix("STATUS_"))
    return status, MessageToDict(rest, preserving_proto_field_name=True), vault.seal(dict(message.secrets))


def from_stored(stored: StoredConfiguration, vault: Vault) -> configuration_pb2.Configuration:
    """The whole configuration, secrets included: never to be answered as it is, see `public`."""
    # A newer release may have stored fields that this one does not know.
    message = ParseDict(stored.settings, configuration_pb2.Configuration(), ignore_unknown_fields=True)
    message.configuration_id, message.app_id = stored.configuration_id, stored.app_id
    message.status = configuration_pb2.Configuration.Status.Value(f"STATUS_{stored.status}")
    message.secrets.update(vault.open(stored.secrets))
    message.create_time.FromDatetime(stored.create_time)
    message.update_time.FromDatetime(stored.update_time)
    return message


def public(message: configuration_pb2.Configuration) -> configuration_pb2.Configuration:
    """The configuration as callers see it: of its secrets the names."""
    shown = configuration_pb2.Configuration()
    shown.CopyFrom(message)
    shown.secret_names[:] = sorted(message.secrets)
    shown.secrets.clear()
    return shown


def compiled(message: configuration_pb2.Configuration) -> Configuration:
    """What sending conversions needs of a configuration that was checked."""
    adapter = _adapter(message, Violations())
    assert adapter is not None, "a configuration without an adapter is refused"
    return Configuration(
        configuration_id=message.configuration_id,
        app_id=message.app_id,
        network_id=message.network_id,
        trigger=message.trigger,
        status=Status(configuration_pb2.Configuration.Status.Name(message.status).removeprefix("STATUS_")),
        adapter=adapter,
        delay_s=float(message.delivery_delay.seconds),
        retry_attempts=message.retry_attempts,
        network_only=message.delivery_method == configuration_pb2.Configuration.DELIVERY_METHOD_NETWORK_ONLY,
        clicks_only=message.clicks_only,
        respect_data_controlled=message.respect_data_controlled,
        is_revenue=message.is_revenue,
        timeout_s=_seconds(message.attempt_timeout),
        deliveries_per_second=message.deliveries_per_second,
        secrets=dict(message.secrets),
    )


def _adapter(message: configuration_pb2.Configuration, violations: Violations) -> Adapter | None:
    def report(field: str, reason: str, description: str) -> None:
        violations.add(f"configuration.{field}", reason, description)

    match message.WhichOneof("adapter"):
        case "template":
            return parse(
                post=message.template.method == configuration_pb2.Template.METHOD_POST,
                url=message.template.url,
                headers=message.template.headers,
                body=message.template.body,
                default_value=message.template.default_value,
                success_substring=message.template.success_substring,
                is_known=is_known,
                report=report,
            )
        case "x":
            return x.parse(message.x, report)
        case None:
            return None


def _check_secrets(message: configuration_pb2.Configuration, adapter: Adapter, violations: Violations) -> None:
    field = f"configuration.{message.WhichOneof('adapter')}"
    for name in sorted(adapter.secret_names - message.secrets.keys()):
        violations.add(field, "UNKNOWN_SECRET", f"secret.{name}: there is no secret of this name")


def _check_claims(message: configuration_pb2.Configuration, adapter: Adapter, violations: Violations) -> None:
    if adapter.is_claim_capable:
        for field, is_default in _ASKED_AT_ONCE:
            if not is_default(message):
                violations.add(f"configuration.{field}", "NOT_ALLOWED", "every conversion is asked about on arrival")


def _check_address(field: str, start: str, guard: Guard, violations: Violations) -> None:
    try:
        refusal = guard.refusal(URL(start, encoded=True))
    except ValueError:
        violations.add(f"configuration.{field}", "INVALID_URL", "not a URL: http(s)://host or http(s)://host:port")
        return
    if refusal:
        violations.add(f"configuration.{field}", "ADDRESS_FORBIDDEN", refusal)


def _is_text(text: str, most: int) -> bool:
    return 1 <= len(text) <= most and "\0" not in text


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
