"""Rates: how much a second each of many may have."""

import pytest

from libs.errors import ResourceExhausted
from libs.rates import Rates

RATE = 8


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def emptied(rates: Rates) -> Rates:
    """Takes a second's worth."""
    for _ in range(RATE):
        rates.take("shop", RATE)
    return rates


def test_over_the_rate_there_is_a_time_to_retry_after() -> None:
    clock = Clock()
    rates = emptied(Rates(clock))
    for _ in range(2):  # who asks in vain pays nothing
        with pytest.raises(ResourceExhausted) as caught:
            rates.take("shop", RATE)
        assert (caught.value.reason, caught.value.retry_after_s) == ("RATE_LIMITED", 0.125)
    clock.now_s += 0.125
    rates.take("shop", RATE)


def test_a_batch_may_overdraw_and_its_debt_is_waited_for() -> None:
    clock = Clock()
    rates = emptied(Rates(clock))
    clock.now_s += 0.125
    rates.take("shop", RATE, 30)
    clock.now_s += 3.625
    with pytest.raises(ResourceExhausted):
        rates.take("shop", RATE)
    clock.now_s += 0.125
    rates.take("shop", RATE)


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_in_the_long_run_the_rate_is_what_is_taken(batch: int) -> None:
    clock, taken = Clock(), 0
    rates = Rates(clock)
    for _ in range(10_000):
        clock.now_s += 0.0625
        try:
            rates.take("shop", RATE, batch)
            taken += batch
        except ResourceExhausted:
            pass
    assert 0 <= taken - 625 * RATE <= RATE + batch


def test_an_idle_bucket_holds_one_second() -> None:
    clock = Clock()
    rates = emptied(Rates(clock))
    clock.now_s += 3_600
    emptied(rates)
    with pytest.raises(ResourceExhausted):
        rates.take("shop", RATE)


def test_one_costs_no_other() -> None:
    emptied(Rates(Clock())).take("other", RATE)


def test_a_rate_of_zero_is_none() -> None:
    rates = Rates(Clock())
    for _ in range(1_000):
        rates.take("shop", 0)
