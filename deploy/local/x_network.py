"""A local X: answers conversion events as X's Ads API does, signatures, parameters, limits and errors included.

It shares no code with the adapter that talks to it, so that each holds the other to what X has published.
"""

import asyncio
import hmac
import re
import time
from base64 import b64encode
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias
from urllib.parse import quote, unquote

from aiohttp import web

Json: TypeAlias = dict[str, Any]

CONSUMER_KEY, CONSUMER_SECRET = "local-consumer", "local-consumer-secret"  # open nothing
TOKEN, TOKEN_SECRET = "local-token", "local-token-secret"
DEVICE_ID_KEY = "local-device-id-key"
SECRETS = {
    "consumer_key": CONSUMER_KEY,
    "consumer_secret": CONSUMER_SECRET,
    "token": TOKEN,
    "token_secret": TOKEN_SECRET,
    "device_id_key": DEVICE_ID_KEY,
}
"""The credentials of an account, or the secrets of a configuration, that is heard here."""
PATH = "/12/conversion_event"
PER_WINDOW = 60_000
WINDOW_S = 900
CLOCK_SKEW_S = 300
REMEMBERED = 100_000

_REQUIRED = ("app_id", "conversion_time", "conversion_type", "hashed_device_id", "os_type")
_FORMS = {
    "conversion_time": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"),
    "conversion_type": re.compile(
        "PURCHASE|SIGN_UP|INSTALL|RE_ENGAGE|UPDATE|TUTORIAL_COMPLETE|RESERVATION|ADD_TO_CART|ADD_TO_WISHLIST|LOGIN|"
        "CHECKOUT_INITIATED|SEARCH|LEVEL_ACHIEVED|ACHIEVEMENT_UNLOCKED|CONTENT_VIEW|SHARE|INVITE|ADDED_PAYMENT_INFO|"
        "SPENT_CREDITS|RATED"
    ),
    "os_type": re.compile("IOS|ANDROID"),
    "click_window": re.compile("1|7|14|30"),
    "view_through_window": re.compile("0|1|7|14|30"),
    "price_currency": re.compile("[A-Z]{3}"),
    "price_micro": re.compile(r"\d+"),
    "number_items": re.compile(r"\d+"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """The conduct of X towards a device's conversions. `silent`: it never answers; `delay_s`: it answers late."""

    twitter: Json | None = None
    """Its own claim; see `attribution`."""
    tpn: Json | None = None
    """That of its audience platform."""
    data: Json = field(default_factory=dict)
    """Further keys of `data`."""
    failures: Sequence[int] = ()
    """The statuses of the first answers."""
    delay_s: float = 0.0
    silent: bool = False


def attribution(engagement_time: datetime, engagement_type: str = "CLICK", **promoted: Any) -> Json:
    """Returns a claim as X words it; `promoted` are promoted_properties, as campaign_name."""
    return {
        "engagement_time": engagement_time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "engagement_type": engagement_type,
        "attribution_type": "SINGLE_TOUCH",
        "tweet_id": "1234567890123456789",
        "country_code": "DE",
        "promoted_properties": {
            "campaign_id": "8slvg",
            "line_item_id": "9cqi0",
            "account_id": "18ce54d4x5t",
            **promoted,
        },
    }


def hashed(device_id: str) -> str:
    """Returns a device id as the adapter hashes it by default: lower case, hexadecimal."""
    return hmac.digest(DEVICE_ID_KEY.encode(), device_id.lower().encode(), "sha256").hex()


class LocalX:
    """An X that answers requests; of devices that `conducts` does not name, by hashed id, it claims nothing."""

    def __init__(
        self, conducts: Mapping[str, Conduct] | None = None, *, now_s: Callable[[], float] = time.time
    ) -> None:
        self.conducts = dict(conducts or {})
        self.received: deque[dict[str, str]] = deque(maxlen=REMEMBERED)
        """The parameters of the last 100,000 well-signed requests, in the order they came."""
        self.calls_left = PER_WINDOW
        """In this window of 15 minutes; when none are left it answers 429."""
        self._now_s = now_s
        self._window = self._current_window()
        self._attempts: Counter[str] = Counter()
        self._nonces: dict[str, None] = {}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers one conversion event."""
        if not self._is_signed(request):
            return self._errors(401, {"code": "UNAUTHORIZED_ACCESS", "message": "This request is not properly signed"})
        parameters = dict(request.query)
        self.received.append(parameters)
        if self._window != self._current_window():
            self._window, self.calls_left = self._current_window(), PER_WINDOW
        if self.calls_left <= 0:
            return self._errors(429, {"code": "TOO_MANY_REQUESTS", "message": "Slow down"})
        self.calls_left -= 1
        if wrong := _wrong(parameters):
            return self._errors(400, *wrong)
        device = parameters["hashed_device_id"]
        conduct = self.conducts.get(device, Conduct())
        self._attempts[device] += 1
        _forget_oldest(self._attempts)
        if conduct.silent:
            await asyncio.Event().wait()
        await asyncio.sleep(conduct.delay_s)
        if self._attempts[device] <= len(conduct.failures):
            status = conduct.failures[self._attempts[device] - 1]
            return self._errors(status, {"code": "INTERNAL_ERROR", "message": "It did not work out"})
        data = {"twitter_attribution": conduct.twitter, **conduct.data}
        if conduct.tpn:
            data["tpn_attribution"] = conduct.tpn
        return web.json_response({"data": data, "request": {"params": parameters}}, headers=self._limits())

    def _errors(self, status: int, *errors: Json) -> web.Response:
        # As X does, each error has every key.
        whole = [{"parameter": "", "details": "", "value": "", **error} for error in errors]
        return web.json_response({"errors": whole, "request": {"params": {}}}, status=status, headers=self._limits())

    def _limits(self) -> dict[str, str]:
        reset = (self._window + 1) * WINDOW_S
        return {
            f"x-{scope}rate-limit-{name}": str(value)
            for scope in ("", "account-")
            for name, value in (("limit", PER_WINDOW), ("remaining", self.calls_left), ("reset", reset))
        }

    def _is_signed(self, request: web.Request) -> bool:
        """Returns whether a request is signed: RFC 5849, section 3.2; a nonce serves once."""
        scheme, _, rest = request.headers.get("Authorization", "").partition(" ")
        given = {
            unquote(name): unquote(value) for name, value in re.findall(r'\s*([^=,\s]+)="([^"]*)"\s*(?:,|$)', rest)
        }
        signature, nonce = given.pop("oauth_signature", ""), given.get("oauth_nonce", "")
        pairs = [*request.query.items(), *((name, value) for name, value in given.items() if name != "realm")]
        is_right = (
            scheme == "OAuth"
            and given.get("oauth_signature_method") == "HMAC-SHA1"
            and (given.get("oauth_consumer_key"), given.get("oauth_token")) == (CONSUMER_KEY, TOKEN)
            and abs(self._now_s() - int(given.get("oauth_timestamp", "0"))) < CLOCK_SKEW_S
            and nonce not in self._nonces
            and hmac.compare_digest(signature, sign(request.method, str(request.url.with_query(None)), pairs))
        )
        self._nonces[nonce] = None
        _forget_oldest(self._nonces)
        return is_right

    def _current_window(self) -> int:
        return int(self._now_s()) // WINDOW_S


def sign(
    method: str,
    url: str,
    pairs: Sequence[tuple[str, str]],
    *,
    consumer_secret: str = CONSUMER_SECRET,
    token_secret: str = TOKEN_SECRET,
) -> str:
    """Returns the signature of a request by HMAC-SHA1 (RFC 5849, 3.4): `url` is without its query, `pairs` with it."""
    normal = "&".join("=".join(pair) for pair in sorted((_escaped(name), _escaped(value)) for name, value in pairs))
    text = "&".join(map(_escaped, (method.upper(), url, normal)))
    key = f"{_escaped(consumer_secret)}&{_escaped(token_secret)}"
    return b64encode(hmac.digest(key.encode(), text.encode(), "sha1")).decode()


def _forget_oldest(remembered: dict[str, Any]) -> None:
    if len(remembered) > REMEMBERED:
        del remembered[next(iter(remembered))]


def _escaped(text: str) -> str:
    return quote(text, safe="-._~")


def _wrong(parameters: Mapping[str, str]) -> list[Json]:
    errors = [
        {"code": "MISSING_PARAMETER", "parameter": name, "message": f'"{name}" is a required parameter'}
        for name in _REQUIRED
        if not parameters.get(name)
    ]
    errors += [
        {
            "code": "INVALID_PARAMETER",
            "parameter": name,
            "value": value,
            "message": f'"{value}" is not a valid "{name}"',
        }
        for name, value in parameters.items()
        if value and name in _FORMS and not _FORMS[name].fullmatch(value)
    ]
    if not errors and int(parameters.get("click_window", "14")) < int(parameters.get("view_through_window", "1")):
        errors.append(
            {"code": "INVALID_PARAMETER", "parameter": "click_window", "message": "below view_through_window"}
        )
    return errors
