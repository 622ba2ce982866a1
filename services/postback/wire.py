"""Messages and what stands for them inside: protos stop here."""

from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from libs.errors import Violations
from libs.time import SECOND_US, duration_us, to_timestamp
from libs.vault import Vault
from reengage.postback.v1 import configuration_pb2, delivery_pb2
from reengage.postback.v1.configuration_pb2 import Configuration as ConfigurationMessage
from services.postback.model import Configuration, State, Status
from services.postback.retry import Word
from services.postback.storage.configurations import StoredConfiguration
from services.postback.storage.deliveries import StoredAttempt, StoredDelivery
from services.postback.validation import configured

# Kept in columns of their own, or by the database.
_COLUMNS = ("configuration_id", "app_id", "status", "secrets", "secret_names", "create_time", "update_time")


def to_settings(message: ConfigurationMessage) -> dict[str, Any]:
    """Returns what of a completed configuration has no column of its own, as JSON."""
    rest = ConfigurationMessage()
    rest.CopyFrom(message)
    for name in _COLUMNS:
        rest.ClearField(name)  # type: ignore[arg-type]
    return MessageToDict(rest, preserving_proto_field_name=True)


def from_stored(stored: StoredConfiguration, vault: Vault) -> ConfigurationMessage:
    """Returns the whole configuration, secrets included. Never return it to callers as it is: see `public`."""
    # A newer release may have stored fields that this one does not know.
    message = ParseDict(stored.settings, ConfigurationMessage(), ignore_unknown_fields=True)
    message.configuration_id, message.app_id = stored.configuration_id, stored.app_id
    message.status = configuration_pb2.Configuration.Status.ValueType(stored.status)
    message.secrets.update(vault.open(stored.secrets))
    message.create_time.CopyFrom(to_timestamp(stored.create_us))
    message.update_time.CopyFrom(to_timestamp(stored.update_us))
    return message


def public(message: ConfigurationMessage) -> ConfigurationMessage:
    """Returns the configuration as callers see it: of its secrets the names."""
    shown = ConfigurationMessage()
    shown.CopyFrom(message)
    shown.secret_names[:] = sorted(message.secrets)
    shown.secrets.clear()
    return shown


def compiled(message: ConfigurationMessage) -> Configuration:
    """Returns what sending conversions needs of a configuration that was checked.

    Raises KeyError when this release has no such adapter.
    """
    return Configuration(
        configuration_id=message.configuration_id,
        app_id=message.app_id,
        network_id=message.network_id,
        trigger=message.trigger,
        status=Status(message.status),
        adapter=configured(message, Violations()),
        delay_us=duration_us(message.delivery_delay),
        retry_attempts=message.retry_attempts,
        network_only=message.delivery_method == ConfigurationMessage.DELIVERY_METHOD_NETWORK_ONLY,
        clicks_only=message.clicks_only,
        respect_data_controlled=message.respect_data_controlled,
        allowed_countries=frozenset(message.allowed_countries),
        blocked_countries=frozenset(message.blocked_countries),
        is_revenue=message.is_revenue,
        timeout_s=duration_us(message.attempt_timeout) / SECOND_US,
        deliveries_per_second=message.deliveries_per_second,
        secrets=dict(message.secrets),
    )


def delivery_message(stored: StoredDelivery) -> delivery_pb2.Delivery:
    """Returns a delivery as callers see it, without attempts."""
    return delivery_pb2.Delivery(
        delivery_id=str(stored.delivery_id),
        configuration_id=stored.configuration_id,
        app_id=stored.app_id,
        network_id=stored.network_id,
        conversion_id=stored.conversion_id,
        event_name=stored.event_name,
        state=delivery_pb2.Delivery.State.ValueType(stored.state),
        attempt_count=stored.attempt_count,
        redelivery_count=stored.redelivery_count,
        create_time=to_timestamp(stored.create_us),
        next_attempt_time=to_timestamp(stored.due_us)
        if stored.state is State.PENDING and stored.due_us is not None
        else None,
        end_time=None if stored.end_us is None else to_timestamp(stored.end_us),
        decision_version=stored.version,
        superseded=delivery_pb2.Delivery.Superseded.ValueType(stored.superseded or 0),
    )


def attempt_message(stored: StoredAttempt) -> delivery_pb2.Attempt:
    """Returns an attempt as callers see it; of an interrupted one little is known."""
    if stored.attempt:
        return delivery_pb2.Attempt.FromString(stored.attempt)
    return delivery_pb2.Attempt(
        start_time=to_timestamp(stored.start_us),
        verdict=delivery_pb2.Attempt.Verdict.ValueType(stored.verdict),
        will_retry=True,
        redelivery_count=stored.redelivery_count,
    )


def verdict_of(word: Word) -> delivery_pb2.Attempt.Verdict.ValueType:
    """Returns the message's value, which is also that of the column."""
    return _VERDICTS[word]


_VERDICTS = {word: delivery_pb2.Attempt.Verdict.Value(f"VERDICT_{word}") for word in Word}
