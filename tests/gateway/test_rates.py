"""Rates: the records a second that each app may send."""

import pytest

from libs.errors import ResourceExhausted
from services.gateway.model import App, Platform
from services.gateway.rates import Rates

LIMITED = App(app_id="shop", platform=Platform.IOS, records_per_second=8)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def full(rates: Rates) -> Rates:
    """Takes a second's worth."""
    for _ in range(8):
        rates.take(LIMITED)
    return rates


def test_over_the_rate_there_is_a_time_to_retry_after() -> None:
    rates = full(Rates(Clock()))
    with pytest.raises(ResourceExhausted) as caught:
        rates.take(LIMITED)
    assert (caught.value.reason, caught.value.retry_after_s) == ("RATE_LIMITED", 1)


def test_an_array_may_overdraw_and_its_debt_is_waited_for() -> None:
    clock = Clock()
    rates = full(Rates(clock))
    clock.now_s += 0.125
    rates.take(LIMITED, 30)
    clock.now_s += 3.625
    with pytest.raises(ResourceExhausted):
        rates.take(LIMITED)
    clock.now_s += 0.125
    rates.take(LIMITED)


def test_one_app_costs_no_other() -> None:
    full(Rates(Clock())).take(App(app_id="other", platform=Platform.IOS, records_per_second=8))


def test_an_app_without_a_rate_is_free() -> None:
    rates = Rates(Clock())
    for _ in range(1_000):
        rates.take(App(app_id="free", platform=Platform.IOS))
