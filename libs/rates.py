"""Rates: how much a second each of many may have. A token bucket for each, in this process alone."""

from collections.abc import Callable

from libs.errors import ResourceExhausted

RATE_LIMITED = "RATE_LIMITED"
"""The reason of what is over a rate."""


class Rates:
    """The buckets, by key; one is kept for every key, so take known ones. `now_s` is a clock that never falls back."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: str, rate: int, count: int = 1) -> None:
        """Takes tokens, or raises ResourceExhausted `RATE_LIMITED` with a time to retry after. Rate 0 is no limit.

        A bucket holds one second's worth. Whoever finds it above zero may overdraw it, so that a batch larger than the
        bucket passes too; the debt is waited for afterwards.
        """
        if rate <= 0:
            return
        now_s = self._now_s()
        tokens, since_s = self._buckets.get(key, (float(rate), now_s))
        tokens = min(float(rate), tokens + (now_s - since_s) * rate)
        if tokens < 1:
            self._buckets[key] = tokens, now_s
            raise ResourceExhausted(RATE_LIMITED, f"over {rate:,} records a second", retry_after_s=(1 - tokens) / rate)
        self._buckets[key] = tokens - count, now_s
