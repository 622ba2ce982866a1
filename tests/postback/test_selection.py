"""The configurations that want a conversion."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from reengage.postback.v1 import conversion_pb2
from services.postback.adapters import x
from services.postback.adapters.template import Template
from services.postback.model import Configuration, Status
from services.postback.selection import once_a_day, wants, wants_claim
from tests.postback.conftest import purchase

ALL = Configuration(
    configuration_id="k",
    app_id="app",
    network_id="network",
    trigger="Purchase",
    status=Status.LIVE,
    adapter=Template(method="GET", url=(), headers=(), body=(), default_value="", success_substring=""),
    delay_us=0,
    retry_attempts=3,
    network_only=False,
    clicks_only=False,
    respect_data_controlled=False,
    allowed_countries=frozenset(),
    blocked_countries=frozenset(),
    is_revenue=False,
    timeout_s=5.0,
    deliveries_per_second=0,
    secrets={},
)
NETWORK_ONLY = replace(ALL, network_only=True)
CLICKS_ONLY = replace(ALL, clicks_only=True)
NONE = {"attribution_type": decision_pb2.ATTRIBUTION_TYPE_NONE, "network_id": "", "tracker_id": ""}


@pytest.mark.parametrize("outcome", decision_pb2.Outcome.keys())
def test_outcomes(outcome: str) -> None:
    untold = {f"OUTCOME_{name}" for name in ("UNSPECIFIED", "DUPLICATE", "LINKED", "REFUSED", "CONTINUED")}
    assert wants(ALL, purchase(outcome=decision_pb2.Outcome.Value(outcome))) == (outcome not in untold)


@pytest.mark.parametrize("amount_micros", [-1, -49_000_000])
def test_d11_nobody_is_told_of_a_refund_or_asked_about_it(amount_micros: int) -> None:
    refund = purchase()
    refund.record.event.revenue.amount_micros = amount_micros
    assert not wants(ALL, refund)
    claiming: Any = SimpleNamespace(description=x.DESCRIPTION)
    assert not wants_claim(replace(ALL, adapter=claiming), refund)
    assert wants_claim(replace(ALL, adapter=claiming), purchase())


@pytest.mark.parametrize(
    ("allowed", "blocked", "wanted"),
    [("", "", {"DE", "FR", ""}), ("DE", "", {"DE"}), ("", "DE", {"FR", ""})],
    ids=["all", "an allow list", "a block list"],
)
def test_a_network_hears_of_the_countries_that_it_is_for(allowed: str, blocked: str, wanted: set[str]) -> None:
    """A country that is not known is none of those allowed, and none of those blocked. Claims are asked for alike."""
    narrowed = replace(
        ALL, allowed_countries=frozenset(filter(None, [allowed])), blocked_countries=frozenset(filter(None, [blocked]))
    )
    claiming: Any = SimpleNamespace(description=x.DESCRIPTION)
    told, asked = set(), set()
    for country in ("DE", "FR", ""):
        conversion = purchase()
        conversion.record.country = country
        told |= {country} if wants(narrowed, conversion) else set()
        asked |= {country} if wants_claim(replace(narrowed, adapter=claiming), conversion) else set()
    assert (told, asked) == (wanted, wanted)


@pytest.mark.parametrize("status", Status)
def test_only_live_configurations_want_anything(status: Status) -> None:
    assert wants(replace(ALL, status=status), purchase()) == (status is Status.LIVE)


@pytest.mark.parametrize(
    ("decision", "wanted"),
    [
        pytest.param({}, True, id="won"),
        pytest.param({"outcome": decision_pb2.OUTCOME_CREDITED}, True, id="credited to a reengagement"),
        pytest.param(
            {
                "outcome": decision_pb2.OUTCOME_CREDITED,
                "attribution_type": decision_pb2.ATTRIBUTION_TYPE_INSTALL,
            },
            True,
            id="credited to an install",
        ),
        pytest.param({"network_id": "other"}, False, id="another's"),
        pytest.param({"outcome": decision_pb2.OUTCOME_UNATTRIBUTED, **NONE}, False, id="nobody's"),
    ],
)
def test_network_only(decision: dict[str, Any], wanted: bool) -> None:
    assert wants(NETWORK_ONLY, purchase(**decision)) == wanted
    assert wants(ALL, purchase(**decision))


@pytest.mark.parametrize(
    ("candidate", "engagement", "wanted"),
    [
        pytest.param(decision_pb2.ENGAGEMENT_KIND_CLICK, None, True, id="a click won"),
        pytest.param(decision_pb2.ENGAGEMENT_KIND_IMPRESSION, None, False, id="an impression won"),
        pytest.param(
            decision_pb2.ENGAGEMENT_KIND_CLICK,
            record_pb2.Record(impression=record_pb2.Impression()),
            True,
            id="a click won now, an impression before",
        ),
        pytest.param(None, record_pb2.Record(click=record_pb2.Click()), True, id="credited to a click"),
        pytest.param(
            None, record_pb2.Record(deep_link_open=record_pb2.DeepLinkOpen()), True, id="credited to a deep link"
        ),
        pytest.param(
            None, record_pb2.Record(impression=record_pb2.Impression()), False, id="credited to an impression"
        ),
        pytest.param(None, None, False, id="credited to nothing known"),
    ],
)
def test_clicks_only(
    candidate: decision_pb2.EngagementKind.ValueType | None, engagement: record_pb2.Record | None, wanted: bool
) -> None:
    conversion = purchase()
    conversion.ClearField("engagement")
    if engagement:
        conversion.engagement.CopyFrom(engagement)
    if candidate:
        conversion.decision.candidates.add(
            verdict=decision_pb2.VERDICT_LOST_TO_MORE_RECENT, engagement_kind=decision_pb2.ENGAGEMENT_KIND_IMPRESSION
        )
        conversion.decision.candidates.add(verdict=decision_pb2.VERDICT_WON, engagement_kind=candidate)
    assert wants(CLICKS_ONLY, conversion) == wanted


@pytest.mark.parametrize("controlled", [True, False], ids=["controlled", "not controlled"])
@pytest.mark.parametrize("respected", [True, False], ids=["respected", "not respected"])
def test_data_controlled(controlled: bool, respected: bool) -> None:
    conversion: conversion_pb2.Conversion = purchase()
    conversion.record.data_controlled = controlled
    assert wants(replace(ALL, respect_data_controlled=respected), conversion) == (not (controlled and respected))


@pytest.mark.parametrize(
    ("configuration", "held"),
    [
        pytest.param(replace(NETWORK_ONLY, trigger="SessionBegin"), True, id="sessions of its own"),
        pytest.param(replace(ALL, trigger="SessionBegin"), False, id="all sessions"),
        pytest.param(NETWORK_ONLY, False, id="purchases"),
    ],
)
def test_which_are_held_to_one_a_day(configuration: Configuration, held: bool) -> None:
    assert once_a_day(configuration) == held
