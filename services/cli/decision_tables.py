"""Decisions as tables for people."""

from collections import Counter
from collections.abc import Iterable, Mapping

from rich.markup import escape
from rich.table import Table

from libs.messages import short_name
from libs.time import describe_duration
from reengage.attribution.v1 import (
    credit_total_pb2,
    decision_pb2,
    explanation_pb2,
    offer_pb2,
    shared_id_pb2,
    what_if_pb2,
)
from services.cli import tables
from services.cli.tables import print_whole, table, time_text

_SHORT = 16
_MAX_COUNTED = 100


def print_explanation(answer: explanation_pb2.ExplainDecisionResponse) -> None:
    """Prints what became of a record: of a decided one with the verdict on every candidate."""
    if answer.HasField("decision"):
        _print_decision(answer)
    else:
        state = short_name(explanation_pb2.ExplainDecisionResponse.State.DESCRIPTOR, answer.state).replace("_", " ")
        tables.console.print(f"\n[cyan]{state}[/]")
        tables.console.print(escape(answer.summary))
    for sentence in answer.sentences:
        _print_point(sentence)
    if answer.won_conversion_ids:
        tables.console.print(f"  [dim]{'won':<18}[/]{escape(', '.join(answer.won_conversion_ids))}", soft_wrap=True)


def print_shared_ids(app_id: str, found: Iterable[shared_id_pb2.SharedId]) -> None:
    """Prints a line for each id that is nobody's (A8)."""
    rows = table(
        f"Shared ids of {escape(app_id)}", "kind", "id", "advertising ids", "since", numbers=["advertising ids"],
        whole=["id"],
    )  # fmt: skip
    for each in found:
        count = each.advertising_id_count
        many = f"{count} or more" if count == _MAX_COUNTED else str(count)
        rows.add_row(each.kind, escape(each.value), many, time_text(each.share_time))
    if rows.row_count:
        print_whole(rows)
    else:
        tables.console.print(f"Shared ids of {escape(app_id)}: none")


def _print_point(sentence: str) -> None:
    """Prints a bullet, and the sentence beside it; a file or a pipe gets it as one line."""
    if not tables.console.is_terminal:
        tables.console.print(f"  • {escape(sentence)}", soft_wrap=True)
        return
    beside = Table.grid()
    beside.add_column(width=len("  • "))
    beside.add_column(overflow="fold")
    beside.add_row("  •", escape(sentence))
    tables.console.print(beside)


def _print_decision(answer: explanation_pb2.ExplainDecisionResponse) -> None:
    decision = answer.decision
    tables.console.print(
        f"\n[bold]{escape(decision.conversion_id)}[/]  {escape(decision.event_name)}  "
        f"[cyan]{_outcome(decision.outcome)}[/]"
    )
    tables.console.print(escape(answer.summary))
    facts: Mapping[str, str] = {
        "when": time_text(decision.conversion_time),
        "received": time_text(decision.receive_time),
        "tracker": decision.tracker_id or "none",
        "network": decision.network_id,
        "engagement": decision.engagement_id,
        "matched by": _match(decision.matched_by),
        "reason": short_name(decision_pb2.Reason.DESCRIPTOR, decision.reason),
        "custom dimensions": ", ".join(f"{name}={value}" for name, value in decision.custom_dimensions.items()),
        "version": str(decision.version) if decision.version > 1 else "",
        "because": _because(decision),
        "re-attribution": answer.reattribution_id,
        "settings revision": str(decision.settings_revision),
    }
    for name, value in facts.items():
        if value:
            tables.console.print(f"  [dim]{name:<18}[/]{escape(value)}")
    candidates = (*decision.candidates, *answer.late_pings)
    if not candidates:
        return
    rows = table(
        "", "candidate", "verdict", "tracker", "matched by", "level", "before it", "window", "from",
        numbers=["level"], whole=["candidate", "verdict", "tracker"],
    )  # fmt: skip
    for candidate in candidates:
        verdict = short_name(decision_pb2.Verdict.DESCRIPTOR, candidate.verdict)
        colour = "green" if verdict == "WON" else "yellow" if verdict.startswith("LOST_TO_") else "red"
        rows.add_row(
            escape(_short(candidate.engagement_id)),
            f"[{colour}]{verdict}[/]",
            escape(candidate.tracker_id),
            _match(candidate.matched_by),
            str(candidate.level or ""),
            describe_duration(candidate.lookback),
            describe_duration(candidate.window) if candidate.HasField("window") else "",
            short_name(decision_pb2.Layer.DESCRIPTOR, candidate.window_layer),
        )
    print_whole(rows)


def print_fact(fact: decision_pb2.Fact) -> None:
    """Prints a decision as it is made, or taken back, in a line."""
    decision = fact.decision
    time = time_text(decision.decide_time)
    # One is taken back when the next line is made, not at its own time.
    begin = f"{time} [green]+[/]" if fact.sign > 0 else f"{'':{len(time)}} [red]-[/]"
    parts = [
        f"{begin} [bold]{_outcome(decision.outcome)}[/]",
        f"{escape(decision.app_id)} {escape(decision.event_name)} {escape(decision.conversion_id)}",
    ]
    if decision.version > 1:
        parts.append(f"version {decision.version}")
    if decision.because:
        parts.append(f"because {escape(_because(decision))}")
    if decision.tracker_id:
        parts.append(f"to {escape(decision.tracker_id)} of {escape(decision.network_id)}")
    if decision.engagement_id:
        parts.append(f"by {escape(decision.engagement_id)} {describe_duration(decision.lookback)} before")
    if decision.reason:
        parts.append(f"[dim]{short_name(decision_pb2.Reason.DESCRIPTOR, decision.reason)}[/]")
    tables.console.print("  ".join(parts), soft_wrap=True)


def print_totals(totals: Iterable[credit_total_pb2.CreditTotal]) -> None:
    """Prints the credits of networks and their trackers, before and after; totals of one tracker are added up."""
    columns = ("installs", "reengagements", "credited_events")
    counts: dict[tuple[str, str], list[int]] = {}
    for total in totals:
        numbers = [getattr(side, column) for column in columns for side in (total.before, total.after)]
        for key in {(total.network_id, ""), (total.network_id, total.tracker_id)}:
            counts[key] = list(map(sum, zip(counts.get(key, [0] * 6), numbers, strict=True)))
    headings = ("installs", "reengagements", "other events")  # some of which are credited to nobody
    rows = table("", "credited to", *headings, numbers=headings, whole=["credited to"])
    for (network_id, tracker_id), numbers in sorted(counts.items()):
        name = f"  {escape(tracker_id)}" if tracker_id else f"[bold]{escape(network_id) or 'nobody'}[/]"
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        rows.add_row(name, *(f"{was:,}" if was == now else f"{was:,} → [bold]{now:,}[/]" for was, now in pairs))
    if counts:
        print_whole(rows)


def print_changed(changed: Iterable[what_if_pb2.ChangedDecision]) -> None:
    """Prints decisions as they are and as they would be, a line each."""
    ids = ("conversion", "event", "is", "would be")
    rows = table("", *ids, "at", whole=["conversion", "event"])
    for each in changed:
        before, after = each.before, each.after
        rows.add_row(
            escape(after.conversion_id),
            escape(after.event_name),
            _credit(before),
            _credit(after),
            time_text(after.conversion_time),
        )
    if rows.row_count:
        print_whole(rows)


def print_offered(app_id: str, name: str, offered: Iterable[offer_pb2.OfferedPostback]) -> None:
    """Prints the postbacks that a re-attribution would change, a line each, and what can be done about them."""
    counts = Counter[offer_pb2.OfferedPostback.Effect.ValueType]()
    headings = ("configuration", "network", "conversion", "effect")
    rows = table(f"Postbacks of {escape(name)}", *headings, whole=headings)
    for each in offered:
        effect = short_name(offer_pb2.OfferedPostback.Effect.DESCRIPTOR, each.effect)
        rows.add_row(escape(each.configuration_id), escape(each.network_id), escape(each.conversion_id), effect)
        counts[each.effect] += 1
    if not counts:
        tables.console.print(f"{escape(name)} has no postback left to offer.")
        return
    print_whole(rows)
    to_send = counts[offer_pb2.OfferedPostback.EFFECT_WOULD_BE_SENT]
    sent = counts[offer_pb2.OfferedPostback.EFFECT_WAS_SENT]
    tables.console.print(f"{to_send:,} would be sent; {sent:,} were sent and cannot be taken back.")
    if to_send:
        tables.console.print(f"To send: reengage reattribute {escape(app_id)} --send {escape(name)}", soft_wrap=True)


def _outcome(outcome: decision_pb2.Outcome.ValueType) -> str:
    return short_name(decision_pb2.Outcome.DESCRIPTOR, outcome)


def _because(decision: decision_pb2.Decision) -> str:
    """Returns what arrived late, so that a version was made (D12): LATE_EVENT order-4711."""
    return " ".join(
        filter(None, (short_name(decision_pb2.Because.DESCRIPTOR, decision.because), decision.late_record_id))
    )


def _credit(decision: decision_pb2.Decision) -> str:
    """Returns the outcome, and who is credited or why nobody won: REENGAGED spring by c-12."""
    parts = [_outcome(decision.outcome), escape(decision.tracker_id)]
    if decision.engagement_id:
        parts.append(f"by {escape(decision.engagement_id)}")
    if decision.reason:
        parts.append(f"[dim]{short_name(decision_pb2.Reason.DESCRIPTOR, decision.reason)}[/]")
    return " ".join(part for part in parts if part)


def _short(engagement_id: str) -> str:
    """Returns the end of an id, which tells it from others beside it; all of one that is short or of a claim."""
    is_whole = len(engagement_id) <= _SHORT or engagement_id.startswith("claim:")
    return engagement_id if is_whole else f"…{engagement_id[-8:]}"


def _match(kind: decision_pb2.MatchKind.ValueType) -> str:
    return short_name(decision_pb2.MatchKind.DESCRIPTOR, kind)
