"""Pace: other work gets the time that live work leaves free, and a twentieth while that is busy."""

import asyncio

import pytest

from services.attribution.pace import SLICE_S, Pace


class Clock:
    """Seconds, as told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def live_work(pace: Pace, clock: Clock, *, share: float, seconds: float) -> None:
    """Does batches of 20 ms of live work that take this share of the time."""
    for _ in range(round(seconds * share / 0.02)):
        with pace.live():
            clock.now_s += 0.02
        clock.now_s += 0.02 / share - 0.02


@pytest.mark.parametrize(("share", "rest"), [(0.02, 0), (0.5, 19), (0.95, 19)])
def test_who_waits_rests_much_longer_beside_busy_live_work(share: float, rest: float) -> None:
    clock = Clock()
    pace = Pace(clock)
    with pace.guest():
        assert pace.pause_s(0.01) == 0
        live_work(pace, clock, share=share, seconds=3)
        assert pace.pause_s(0.01) == pytest.approx(0.01 * rest)


def test_it_runs_freely_again_when_live_work_has_ended() -> None:
    clock = Clock()
    pace = Pace(clock)
    with pace.guest():
        live_work(pace, clock, share=0.95, seconds=3)
        clock.now_s += 3
        assert pace.pause_s(0.01) == 0


def test_all_that_wait_share_the_twentieth() -> None:
    clock = Clock()
    pace = Pace(clock)
    with pace.live(), pace.guest():
        assert pace.pause_s(0.01) == pytest.approx(0.19)
        with pace.guest():
            assert pace.pause_s(0.01) == pytest.approx(0.39)


async def test_a_turn_comes_after_a_slice_of_work_and_waiting_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pauses = Clock(), []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    pace = Pace(clock)
    with pace.live(), pace.guest() as guest:
        await guest.turn()
        assert pauses == []
        clock.now_s += SLICE_S
        await guest.turn()
        clock.now_s += 60  # for a caller who reads slowly
        await guest.turn()
    assert pauses == [pytest.approx(SLICE_S * 19), pytest.approx(0.25 * 19)]
