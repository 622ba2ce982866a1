"""Deliveries as tables for people."""

from collections.abc import Iterable

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from rich.markup import escape

from libs.messages import short_name
from libs.time import describe_duration
from reengage.postback.v1 import adapter_pb2, configuration_pb2, delivery_pb2
from reengage.postback.v1.method_pb2 import Method
from services.cli import tables
from services.cli.tables import print_whole, table, time_text


def print_deliveries(app_id: str, deliveries: Iterable[delivery_pb2.Delivery]) -> None:
    """Prints deliveries, a line each."""
    rows = table(
        f"Deliveries of {escape(app_id)}, newest first",
        "delivery", "configuration", "conversion", "event", "state", "attempts", "made", "took",
        numbers=["attempts"], whole=["delivery", "configuration", "conversion", "made"],
    )  # fmt: skip
    for delivery in deliveries:
        rows.add_row(
            delivery.delivery_id,
            escape(delivery.configuration_id),
            escape(delivery.conversion_id),
            escape(delivery.event_name),
            _standing(delivery),
            str(delivery.attempt_count),
            time_text(delivery.create_time),
            _took(delivery),
        )
    if rows.row_count:
        print_whole(rows)
    else:
        tables.console.print(f"No deliveries of {escape(app_id)}")


def print_delivery(delivery: delivery_pb2.Delivery) -> None:
    """Prints one delivery with every attempt."""
    print_deliveries(delivery.app_id, [delivery])
    if delivery.omitted_attempt_count:
        tables.console.print(f"\n{delivery.omitted_attempt_count} earlier attempts are not shown.")
    for number, attempt in enumerate(delivery.attempts, start=delivery.omitted_attempt_count + 1):
        verdict = short_name(delivery_pb2.Attempt.Verdict.DESCRIPTOR, attempt.verdict)
        tables.console.print(
            f"\n[bold]attempt {number}[/]  {time_text(attempt.start_time)}  {describe_duration(attempt.duration)}  "
            f"status {attempt.status_code or 'none'}  [cyan]{verdict}[/]"
            f"{f'  version {attempt.decision_version}' if attempt.decision_version else ''}"
            f"{'  another try follows' if attempt.will_retry else ''}"
        )
        if attempt.detail:
            tables.console.print(f"  {escape(attempt.detail)}", soft_wrap=True)
        if not attempt.url:
            continue
        # No break that is not theirs: they are there to be copied.
        tables.console.print(f"  {short_name(Method.DESCRIPTOR, attempt.method)} {escape(attempt.url)}", soft_wrap=True)
        for part in (attempt.request_body, attempt.response_body):
            if part:
                tables.console.print(f"  [dim]{escape(part)}[/]", soft_wrap=True)


def state_name(state: delivery_pb2.Delivery.State.ValueType) -> str:
    """Returns the name of a state, as DELIVERED or PENDING."""
    return short_name(delivery_pb2.Delivery.State.DESCRIPTOR, state)


def _standing(delivery: delivery_pb2.Delivery) -> str:
    """Returns the state of a delivery, and why its network would not be told now, if so it is."""
    name = state_name(delivery.state)
    if not delivery.superseded:
        return name
    why = short_name(delivery_pb2.Delivery.Superseded.DESCRIPTOR, delivery.superseded)
    return f"{name}, {why} in version {delivery.decision_version}"


def _took(delivery: delivery_pb2.Delivery) -> str:
    if not delivery.HasField("end_time"):
        return ""
    took = Duration()
    took.FromNanoseconds(delivery.end_time.ToNanoseconds() - delivery.create_time.ToNanoseconds())
    return describe_duration(took)


def print_preview(preview: configuration_pb2.PreviewResponse) -> None:
    """Prints a request that would be made, whole, and the macros that had no value."""
    tables.console.print(f"{short_name(Method.DESCRIPTOR, preview.method)} {escape(preview.url)}", soft_wrap=True)
    for name, value in sorted(preview.headers.items()):
        tables.console.print(f"{escape(name)}: {escape(value)}", soft_wrap=True)
    if preview.body:
        tables.console.print(f"\n{escape(preview.body)}", soft_wrap=True)
    if preview.unmatched_macros:
        tables.console.print(f"\nwithout a value: {escape(', '.join(preview.unmatched_macros))}", soft_wrap=True)


def print_adapters(adapters: Iterable[adapter_pb2.Adapter]) -> None:
    """Prints a line an adapter."""
    rows = table("Adapters", "adapter", "for", "networks", "claims", whole=["adapter"])
    for adapter in adapters:
        networks = ", ".join(adapter.catalogue_networks) or "any link-based one"
        rows.add_row(adapter.name, escape(adapter.label), networks, "yes" if adapter.claim_capable else "")
    print_whole(rows)


def print_adapter(adapter: adapter_pb2.Adapter) -> None:
    """Prints the fields of an adapter, in the order in which people fill them in."""
    tables.console.print(f"[bold]{escape(adapter.name)}[/], {escape(adapter.label)}\n\n{escape(adapter.help)}\n")
    rows = table("", "field", "type", "default", "may be", "what it is", whole=["field"])
    for field in adapter.fields:
        default = field.default.string_value if field.HasField("default") and field.default.string_value else ""
        rows.add_row(
            f"{escape(field.name)}{' (required)' if field.required else ''}",
            short_name(adapter_pb2.AdapterField.Type.DESCRIPTOR, field.type).lower(),
            escape(default),
            escape(", ".join(str(json_format.MessageToDict(each.value)) for each in field.allowed_values)),
            escape(field.help or field.label),
        )
    tables.console.print(rows)
