"""Tables for people: ids that can be copied, and lengths of time that are the same in the table and in the prose."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from reengage.attribution.v1 import credit_total_pb2, decision_pb2, explanation_pb2, offer_pb2
from reengage.postback.v1 import delivery_pb2
from reengage.postback.v1.method_pb2 import METHOD_POST
from services.attribution.queries.sentences import sentences
from services.cli import decision_tables, delivery_tables, tables

DELIVERY_ID = "0a1b2c3d-0123-5abc-8def-0123456789ab"
CONVERSION_ID = "9f8e7d6c-0123-4abc-8def-ba9876543210"


@pytest.mark.parametrize("width", [40, 80, 120, 300])
def test_no_id_of_a_delivery_is_broken(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(highlight=False, width=width)
    monkeypatch.setattr(tables, "console", console)
    delivery = delivery_pb2.Delivery(
        delivery_id=DELIVERY_ID,
        configuration_id="acme-android-purchases-of-returning-users",
        conversion_id=CONVERSION_ID,
        event_name="Purchase",
        state=delivery_pb2.Delivery.STATE_DELIVERED,
        attempt_count=1,
        create_time=Timestamp(seconds=1_800_000_000),
    )
    with console.capture() as shown:
        delivery_tables.print_deliveries("shop-android", [delivery])
    words = shown.get().split()
    assert {DELIVERY_ID, CONVERSION_ID, delivery.configuration_id} <= set(words)
    assert "2027-01-15 08:00:00" in shown.get()


@pytest.mark.parametrize(
    ("state", "why", "shown_as"),
    [
        (delivery_pb2.Delivery.STATE_DELIVERED, 0, "DELIVERED"),
        (delivery_pb2.Delivery.STATE_DELIVERED, 1, "DELIVERED, OTHER_WINNER in version 2"),
        (delivery_pb2.Delivery.STATE_SUPERSEDED, 3, "SUPERSEDED, NO_CONVERSION in version 2"),
    ],
    ids=["told", "told and lost", "not told"],
)
def test_a_delivery_says_whether_its_network_has_lost(
    state: delivery_pb2.Delivery.State.ValueType,
    why: delivery_pb2.Delivery.Superseded.ValueType,
    shown_as: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    console = Console(highlight=False, width=300)
    monkeypatch.setattr(tables, "console", console)
    attempt = delivery_pb2.Attempt(verdict=delivery_pb2.Attempt.VERDICT_DELIVERED, decision_version=1)
    delivery = delivery_pb2.Delivery(
        delivery_id=DELIVERY_ID, state=state, superseded=why, decision_version=2, attempts=[attempt]
    )
    with console.capture() as shown:
        delivery_tables.print_delivery(delivery)
    assert f" {shown_as}  " in shown.get()
    assert "DELIVERED  version 1" in shown.get()


def test_what_was_sent_and_answered_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(highlight=False, width=40)
    monkeypatch.setattr(tables, "console", console)
    url, body, answer = "https://x.example/postback?" + "a=1&" * 30, "sent " * 20 + ".", "answered " * 20 + "."
    attempt = delivery_pb2.Attempt(method=METHOD_POST, url=url, request_body=body, response_body=answer)
    with console.capture() as shown:
        delivery_tables.print_delivery(delivery_pb2.Delivery(delivery_id=DELIVERY_ID, attempts=[attempt]))
    assert [line.strip() for line in shown.get().splitlines()[-3:]] == [f"POST {url}", body, answer]


@pytest.mark.parametrize(
    ("lookback_ms", "text"),
    [
        (0, "0 s"),
        (250, "0.25 s"),
        (6_880, "6 s"),
        (17_990, "17 s"),
        (301_000, "5 min 1 s"),
        (183_600_000, "2 days 3 h"),
    ],
)
def test_the_table_and_the_sentence_say_the_same_length(
    lookback_ms: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(highlight=False, width=200)
    monkeypatch.setattr(tables, "console", console)
    candidate = decision_pb2.Candidate(
        engagement_id="click",
        verdict=decision_pb2.VERDICT_WON,
        engagement_kind=decision_pb2.ENGAGEMENT_KIND_CLICK,
        tracker_id="t",
        level=1,
    )
    candidate.lookback.FromMilliseconds(lookback_ms)
    candidate.window.FromSeconds(30 * 86400)
    decision = decision_pb2.Decision(conversion_id="c", candidates=[candidate])
    (sentence,) = sentences(decision)
    with console.capture() as shown:
        decision_tables.print_explanation(explanation_pb2.ExplainDecisionResponse(decision=decision))
    assert f"won: {text} before" in sentence
    assert f" {text} " in shown.get()


def test_a_length_below_zero_is_said_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A click that came after the conversion."""
    console = Console(highlight=False, width=200)
    monkeypatch.setattr(tables, "console", console)
    candidate = decision_pb2.Candidate(engagement_id="click", verdict=decision_pb2.VERDICT_AFTER_CONVERSION)
    candidate.lookback.FromSeconds(-90)
    with console.capture() as shown:
        decision_tables.print_explanation(
            explanation_pb2.ExplainDecisionResponse(decision=decision_pb2.Decision(candidates=[candidate]))
        )
    assert "-1 min 30 s" in shown.get()


def test_a_session_that_went_on_says_what_arrived_late_and_pings_that_did_are_in_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    console = Console(highlight=False, width=200)
    monkeypatch.setattr(tables, "console", console)
    decision = decision_pb2.Decision(
        conversion_id="s2",
        version=2,
        outcome=decision_pb2.OUTCOME_CONTINUED,
        because=decision_pb2.BECAUSE_LATE_EVENT,
        late_record_id="s1",
    )
    late = decision_pb2.Candidate(engagement_id="p1", verdict=decision_pb2.VERDICT_REPORTED_LATE, tracker_id="re")
    with console.capture() as shown:
        decision_tables.print_explanation(explanation_pb2.ExplainDecisionResponse(decision=decision, late_pings=[late]))
        decision_tables.print_fact(decision_pb2.Fact(sign=1, decision=decision))
    words = [" ".join(line.split()) for line in shown.get().splitlines()]
    assert words[1] == "s2 CONTINUED"
    assert {"version 2", "because LATE_EVENT s1"} <= set(words)
    assert words[-2].startswith("p1 REPORTED_LATE re")
    assert words[-1].endswith("+ CONTINUED s2 version 2 because LATE_EVENT s1")


@pytest.mark.parametrize(
    ("engagement_id", "text"),
    [
        ("k1", "k1"),
        ("click-of-monday-1", "…monday-1"),
        ("claim:a-network-of-long-name", "claim:a-network-of-long-name"),
    ],
)
def test_an_id_is_shortened_only_where_it_is_long_and_nobodys_name(
    engagement_id: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(highlight=False, width=200)
    monkeypatch.setattr(tables, "console", console)
    candidate = decision_pb2.Candidate(engagement_id=engagement_id, verdict=decision_pb2.VERDICT_BLOCKLISTED)
    with console.capture() as shown:
        decision_tables.print_explanation(
            explanation_pb2.ExplainDecisionResponse(decision=decision_pb2.Decision(candidates=[candidate]))
        )
    assert shown.get().splitlines()[-1].split()[0] == text


@pytest.mark.parametrize(
    ("is_terminal", "lines"),
    [(True, ["  • Click k1 lost to", "    click k2, which", "    was more recent."]), (False, [])],
)
def test_a_sentence_hangs_from_its_bullet_on_a_terminal(
    is_terminal: bool, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(highlight=False, width=22, force_terminal=is_terminal, color_system=None)
    monkeypatch.setattr(tables, "console", console)
    sentence = "Click k1 lost to click k2, which was more recent."
    with console.capture() as shown:
        decision_tables.print_explanation(explanation_pb2.ExplainDecisionResponse(sentences=[sentence]))
    told = [line.rstrip() for line in shown.get().splitlines()]
    assert told[-len(lines or [sentence]) :] == (lines or [f"  • {sentence}"])


def test_what_is_offered_says_what_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(highlight=False, width=200)
    monkeypatch.setattr(tables, "console", console)
    offered = offer_pb2.OfferedPostback
    effects = (offered.EFFECT_WAS_SENT, offered.EFFECT_WOULD_BE_SENT, offered.EFFECT_WAS_SENT)
    with console.capture() as shown:
        decision_tables.print_offered("shop", "r6", [offered(conversion_id="e1", effect=effect) for effect in effects])
        decision_tables.print_offered("shop", "r6", [])
    assert shown.get().splitlines()[-3:] == [
        "1 would be sent; 2 were sent and cannot be taken back.",
        "To send: reengage reattribute shop --send r6",
        "r6 has no postback left to offer.",
    ]


def test_totals_of_parts_add_up_by_tracker_and_by_network(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(highlight=False, width=200)
    monkeypatch.setattr(tables, "console", console)
    counts = credit_total_pb2.CreditCounts
    totals = [
        credit_total_pb2.CreditTotal(
            network_id=network_id, tracker_id=tracker_id, before=counts(installs=1), after=counts(credited_events=after)
        )
        for network_id, tracker_id, after in (("acme", "a", 2), ("acme", "b", 3), ("acme", "a", 1), ("", "", 4))
    ]
    with console.capture() as shown:
        decision_tables.print_totals(totals)
    rows = [" ".join(line.split()) for line in shown.get().splitlines() if line.strip()]
    assert rows == [
        "credited to installs reengagements other events",
        "nobody 1 → 0 0 0 → 4",
        "acme 3 → 0 0 0 → 6",
        "a 2 → 0 0 0 → 3",
        "b 1 → 0 0 0 → 3",
    ]
