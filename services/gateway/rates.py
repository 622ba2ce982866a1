"""Rates: the records a second that each app may send. A token bucket an app, in this process alone."""

import math
from collections.abc import Callable

from libs.errors import ResourceExhausted
from services.gateway.model import App


class Rates:
    """The buckets of all apps. `now_s` is a clock that never falls back."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, app: App, records: int = 1) -> None:
        """Takes tokens, or raises ResourceExhausted `RATE_LIMITED` with a time to retry after.

        A bucket holds one second's worth. Whoever finds it above zero may overdraw it, so that an array larger than the
        bucket passes too; the debt is waited for afterwards.
        """
        rate = app.records_per_second
        if rate <= 0:
            return
        now_s = self._now_s()
        tokens, since_s = self._buckets.get(app.app_id, (float(rate), now_s))
        tokens = min(float(rate), tokens + (now_s - since_s) * rate)
        if tokens < 1:
            self._buckets[app.app_id] = (tokens, now_s)
            raise ResourceExhausted(
                "RATE_LIMITED", f"over {rate} records a second", retry_after_s=math.ceil((1 - tokens) / rate)
            )
        self._buckets[app.app_id] = (tokens - records, now_s)
