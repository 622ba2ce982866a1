"""Configurations as callers write them: their defaults, their rules, and what an update changes."""

import re
from collections.abc import Callable, Iterable, Iterator

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from yarl import URL

from libs.domain.traffic_rules import check_countries
from libs.errors import Violations
from reengage.postback.v1.configuration_pb2 import Configuration
from services.postback.adapters.adapter import ADAPTERS, Adapter, Description, Option
from services.postback.fields import complete_fields, read_fields
from services.postback.guard import Guard

DELAYS_S = (0, 30, 60, 120, 180, 300, 600)
MAX_SECRETS, MAX_SECRET_BYTES = 16, 4096

_OUTPUT_ONLY = ("secret_names", "create_time", "update_time")
_IMMUTABLE = ("configuration_id", "app_id", "network_id", "trigger")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECRET_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def complete(message: Configuration) -> None:
    """Fills in the defaults of what is left out, and clears what is output only."""
    message.status = message.status or Configuration.STATUS_LIVE
    message.delivery_method = message.delivery_method or Configuration.DELIVERY_METHOD_ALL
    if not message.HasField("retry_attempts"):
        message.retry_attempts = 3
    if not message.HasField("attempt_timeout"):
        message.attempt_timeout.FromSeconds(5)
    message.delivery_delay.SetInParent()
    message.adapter_fields.SetInParent()
    if adapter := ADAPTERS.get(message.adapter):
        complete_fields(adapter.description, message.adapter_fields)
    for name in _OUTPUT_ONLY:
        message.ClearField(name)  # type: ignore[arg-type]


def check(message: Configuration, guard: Guard) -> None:
    """Raises InvalidArgument with every wrong field of a completed configuration."""
    violations = Violations()
    _check_names(message, violations)
    for field, holds, reason, description in _RULES:
        if not holds(message):
            violations.add(f"configuration.{field}", reason, description)
    check_countries("configuration", message, violations)
    _check_secrets(message, violations)
    adapter = ADAPTERS.get(message.adapter)
    if adapter is None:
        reason = "NOT_ALLOWED" if message.adapter else "REQUIRED"
        violations.add("configuration.adapter", reason, f"must be one of {', '.join(sorted(ADAPTERS))}")
    else:
        _check_options(message, adapter.description, violations)
        _check_adapter(message, adapter, guard, violations)
    violations.check()


def configured(message: Configuration, violations: Violations) -> Adapter:
    """Returns the adapter of a completed configuration, and notes every wrong field of it, each once.

    Raises KeyError when there is no such adapter.
    """
    adapter = ADAPTERS[message.adapter]
    reported: set[str] = set()

    def report(name: str, reason: str, description: str) -> None:
        if name not in reported:
            reported.add(name)
            violations.add(f"configuration.adapter_fields.{name}", reason, description)

    return adapter.configure(read_fields(adapter.description, message.adapter_fields, report), report)


def merge(update: Configuration, mask: FieldMask, into: Configuration) -> None:
    """Copies the fields that an update mask names, clearing those that are not set. Raises InvalidArgument."""
    _check_mask(mask, update.adapter if "adapter" in mask.paths else into.adapter)
    for path in mask.paths:
        whole, _, name = path.partition(".")
        if whole == "adapter_fields" and name:
            into.adapter_fields.fields.pop(name, None)
            if name in update.adapter_fields:
                into.adapter_fields.fields[name].CopyFrom(update.adapter_fields.fields[name])
        elif whole == "secrets" and name:
            into.secrets.pop(name, None)
            if name in update.secrets:
                into.secrets[name] = update.secrets[name]
        else:
            FieldMask(paths=[path]).MergeMessage(update, into, replace_message_field=True, replace_repeated_field=True)


def changed_fields(before: Configuration, after: Configuration) -> list[str]:
    """Returns the fields in which two completed configurations differ, sorted, as paths of an update mask."""
    return sorted(_changed(before, after))


def _changed(before: Configuration, after: Configuration) -> Iterator[str]:
    for descriptor in Configuration.DESCRIPTOR.fields:
        name = descriptor.name
        if name in _OUTPUT_ONLY:
            continue
        if name == "adapter_fields":
            old, new = before.adapter_fields.fields, after.adapter_fields.fields
            keys = {*old, *new}
            yield from (f"{name}.{key}" for key in keys if old.get(key) != new.get(key))
        elif name == "secrets":
            keys = {*before.secrets, *after.secrets}
            yield from (f"{name}.{key}" for key in keys if before.secrets.get(key) != after.secrets.get(key))
        elif getattr(before, name) != getattr(after, name):
            yield name


def _check_mask(mask: FieldMask, adapter_name: str) -> None:
    violations = Violations()
    adapter = ADAPTERS.get(adapter_name)
    known = {field.name for field in adapter.description.fields} if adapter else set()
    if not mask.paths:
        violations.add("update_mask", "REQUIRED", "must name the fields to change")
    for path in mask.paths:
        whole, _, name = path.partition(".")
        if whole in (*_IMMUTABLE, *_OUTPUT_ONLY):
            violations.add("update_mask", "IMMUTABLE", f"{path} cannot be changed")
        elif (whole == "adapter_fields" and name in ("", *known)) or (whole == "secrets"):
            continue
        elif whole == "adapter_fields" or not FieldMask(paths=[path]).IsValidForDescriptor(Configuration.DESCRIPTOR):
            violations.add("update_mask", "UNKNOWN_FIELD", f"{path} is no field of the configuration")
    violations.check()


def _check_names(message: Configuration, violations: Violations) -> None:
    if not _ID.fullmatch(message.configuration_id):
        violations.add("configuration.configuration_id", "INVALID_ID", "must be 1 to 64 of A-Z a-z 0-9 . _ -")
    for field, max_characters in (("app_id", 256), ("network_id", 256), ("trigger", 128)):
        text = getattr(message, field)
        violations.check_text(f"configuration.{field}", text, max_characters=max_characters, required=True)


_RULES: tuple[tuple[str, Callable[[Configuration], bool], str, str], ...] = (
    (
        "status",
        lambda m: m.status in (Configuration.STATUS_LIVE, Configuration.STATUS_PAUSED),
        "NOT_ALLOWED",
        "must be LIVE or PAUSED; ArchiveConfiguration archives",
    ),
    (
        "delivery_method",
        lambda m: m.delivery_method in Configuration.DeliveryMethod.values(),
        "UNKNOWN",
        "must be a value of DeliveryMethod",
    ),
    (
        "delivery_delay",
        lambda m: m.delivery_delay.seconds in DELAYS_S and m.delivery_delay.nanos == 0,
        "NOT_ALLOWED",
        f"must be {', '.join(map(str, DELAYS_S[:-1]))} or {DELAYS_S[-1]} seconds",
    ),
    ("retry_attempts", lambda m: 0 <= m.retry_attempts <= 10, "OUT_OF_RANGE", "must be 0 to 10"),
    ("attempt_timeout", lambda m: _is_timeout(m.attempt_timeout), "OUT_OF_RANGE", "must be 1 to 30 seconds"),
)


def _is_timeout(timeout: Duration) -> bool:
    return 0 <= timeout.nanos < 1_000_000_000 <= timeout.ToNanoseconds() <= 30_000_000_000


def _check_secrets(message: Configuration, violations: Violations) -> None:
    if len(message.secrets) > MAX_SECRETS:
        violations.add("configuration.secrets", "TOO_MANY", f"must be at most {MAX_SECRETS}")
    for name, value in sorted(message.secrets.items()):
        if not _SECRET_NAME.fullmatch(name):
            violations.add("configuration.secrets", "INVALID_NAME", "names must be 1 to 64 of A-Z a-z 0-9 _ -")
        elif not 1 <= len(value.encode()) <= MAX_SECRET_BYTES:
            violations.add(f"configuration.secrets.{name}", "INVALID_VALUE", "must be 1 to 4,096 bytes")


# The value that a configuration has where its adapter takes no such option.
_OPTIONS: dict[Option, tuple[str, Callable[[Configuration], bool]]] = {
    Option.DELIVERY_DELAY: ("delivery_delay", lambda m: not m.delivery_delay.ToNanoseconds()),
    Option.DELIVERY_METHOD: ("delivery_method", lambda m: m.delivery_method == Configuration.DELIVERY_METHOD_ALL),
    Option.CLICKS_ONLY: ("clicks_only", lambda m: not m.clicks_only),
}


def _check_options(message: Configuration, description: Description, violations: Violations) -> None:
    for option, (field, is_default) in _OPTIONS.items():
        if option not in description.options and not is_default(message):
            why = (
                "every conversion is asked about on arrival" if description.is_claim_capable else "the adapter has none"
            )
            violations.add(f"configuration.{field}", "NOT_ALLOWED", f"must be left out: {why}")
    limit = description.max_deliveries_per_second
    if not 0 <= message.deliveries_per_second <= limit:
        violations.add("configuration.deliveries_per_second", "OUT_OF_RANGE", f"must be 0 to {limit:,}")


def _check_adapter(message: Configuration, adapter: type[Adapter], guard: Guard, violations: Violations) -> None:
    before = violations.count
    made = configured(message, violations)
    if violations.count == before:
        _check_address(made, guard, violations)
    if not adapter.description.is_claim_capable:  # else an account of the tracker may have them
        for name in sorted(made.secret_names - message.secrets.keys()):
            violations.add(f"configuration.secrets.{name}", "REQUIRED", "the adapter needs a secret of this name")
    if not adapter.description.takes_named_secrets:
        _refuse(message.secrets.keys() - adapter.description.secret_names, violations)


def _refuse(names: Iterable[str], violations: Violations) -> None:
    for name in sorted(names):
        violations.add(f"configuration.secrets.{name}", "UNKNOWN_FIELD", "the adapter has no such secret")


def _check_address(made: Adapter, guard: Guard, violations: Violations) -> None:
    field = f"configuration.adapter_fields.{made.address.field_name}"
    try:
        refusal = guard.refusal(URL(made.address.start, encoded=True))
    except ValueError:
        violations.add(field, "INVALID_URL", "must be a URL: http(s)://host or http(s)://host:port")
        return
    if refusal:
        violations.add(field, "ADDRESS_FORBIDDEN", refusal)
