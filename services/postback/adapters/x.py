"""X, a self-attributing network: its conversion events, signed by OAuth 1.0a, and the claims it answers them with.

`POST {base_url}/12/conversion_event`, every parameter in the query. X answers a conversion with the engagement that it
says drove it, on X itself (`twitter_attribution`) or on its audience platform (`tpn_attribution`), or with neither.
"""

import hmac
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

from oauthlib.oauth1 import Client

from reengage.postback.v1 import claim_pb2, configuration_pb2
from services.postback.adapters.adapter import NotRenderableError, Report, Request, Stamp, best_claim
from services.postback.macros import MACROS, MASK, Values
from services.postback.retry import Answer, Next, Verdict, judge

BASE_URL = "https://ads-api.x.com"
PATH = "/12/conversion_event"
CONVERSION_TYPES = frozenset(
    {
        "PURCHASE", "SIGN_UP", "INSTALL", "RE_ENGAGE", "UPDATE", "TUTORIAL_COMPLETE", "RESERVATION", "ADD_TO_CART",
        "ADD_TO_WISHLIST", "LOGIN", "CHECKOUT_INITIATED", "SEARCH", "LEVEL_ACHIEVED", "ACHIEVEMENT_UNLOCKED",
        "CONTENT_VIEW", "SHARE", "INVITE", "ADDED_PAYMENT_INFO", "SPENT_CREDITS", "RATED",
    }
)  # fmt: skip
CLICK_WINDOWS_DAYS = (1, 7, 14, 30)
VIEW_WINDOWS_DAYS = (0, 1, 7, 14, 30)
SECRETS = frozenset({"consumer_key", "consumer_secret", "token", "token_secret", "device_id_key"})
DEVICE_IDS = {"IOS": "idfa", "ANDROID": "adid"}
"""The one id of each platform that X knows a device by."""

_DAY_S = 86_400
_LETTER_CASES: dict[configuration_pb2.X.LetterCase.ValueType, Callable[[str], str]] = {
    configuration_pb2.X.LETTER_CASE_LOWER: str.lower,
    configuration_pb2.X.LETTER_CASE_UPPER: str.upper,
    configuration_pb2.X.LETTER_CASE_AS_IS: str,
}
_ATTRIBUTIONS = ("twitter_attribution", "tpn_attribution")
_GRANULAR = "is_granular_data_sharing_allowed"
_BASE_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?")
_COUNT = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class X:
    """X's adapter."""

    app_id: str
    conversion_type: str
    click_window_days: int
    view_window_days: int
    letter_case: configuration_pb2.X.LetterCase.ValueType
    encoding: configuration_pb2.X.Encoding.ValueType
    base_url: str

    @property
    def method(self) -> Literal["POST"]:
        """POST."""
        return "POST"

    @property
    def address(self) -> tuple[str, str]:
        """The base URL."""
        return "x.base_url", self.base_url

    @property
    def secret_names(self) -> frozenset[str]:
        """What X gives its partners."""
        return SECRETS

    @property
    def is_claim_capable(self) -> bool:
        """Yes."""
        return True

    def requests(self, values: Values, secrets: Mapping[str, str], stamp: Stamp) -> tuple[Request, Request]:
        """The signed request, and the same with its signature masked. Raises NotRenderableError without a raw id."""
        pairs = self._parameters(values, secrets["device_id_key"])
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs)
        url = f"{self.base_url}{PATH}?{query}"
        headers = {"Authorization": authorization(self.method, url, secrets, stamp)}
        masked = {"Authorization": f"OAuth {MASK}"}
        return (
            Request(method=self.method, url=url, headers=headers, body=""),
            Request(method=self.method, url=url, headers=masked, body=""),
        )

    def judge(self, answer: Answer) -> Verdict:
        """Success: a 2xx status, and a body that says whether X claims the conversion."""
        verdict = judge(answer)
        if verdict.next is Next.DONE:
            try:
                _read(answer.body)
            except ValueError:
                return Verdict(word="BODY_MISMATCH", next=Next.GIVE_UP)
        return verdict

    def claim(self, body: str) -> claim_pb2.Claim | None:
        """X's claim; should it make two, the better one."""
        return best_claim(_read(body))

    def _parameters(self, values: Values, key: str) -> Iterator[tuple[str, str]]:
        os_type = MACROS["os"](values).upper()
        device_id = values.device_id(DEVICE_IDS.get(os_type, ""))
        if not device_id:
            raise NotRenderableError("no IDFA or advertising id, which X knows devices by")
        yield "app_id", self.app_id
        yield "conversion_time", MACROS["event_time"](values)
        yield "conversion_type", self.conversion_type
        yield "hashed_device_id", self._hashed(device_id, key)
        yield "os_type", os_type
        # Both always: X's own defaults are others.
        yield "click_window", str(self.click_window_days)
        yield "view_through_window", str(self.view_window_days)
        if values.record.ip_address:
            yield "device_ip_address", values.record.ip_address
        revenue = values.event.revenue
        if values.is_revenue and revenue.currency_code and revenue.amount_micros >= 0:  # of a refund X has no notion
            yield "price_currency", revenue.currency_code
            yield "price_micro", str(revenue.amount_micros)
        quantity = MACROS["quantity"](values)
        if _COUNT.fullmatch(quantity):
            yield "number_items", quantity

    def _hashed(self, device_id: str, key: str) -> str:
        cased = _LETTER_CASES[self.letter_case](device_id)
        digest = hmac.digest(key.encode(), cased.encode(), "sha256")
        return b64encode(digest).decode() if self.encoding == configuration_pb2.X.ENCODING_BASE64 else digest.hex()


def authorization(method: Literal["GET", "POST"], url: str, secrets: Mapping[str, str], stamp: Stamp) -> str:
    """The header that signs a request whose parameters are all in its URL: OAuth 1.0a, HMAC-SHA1 (RFC 5849)."""
    signer = Client(
        secrets["consumer_key"],
        client_secret=secrets["consumer_secret"],
        resource_owner_key=secrets["token"],
        resource_owner_secret=secrets["token_secret"],
        nonce=stamp.nonce,
        timestamp=str(stamp.time_s),
    )
    headers: dict[str, str] = signer.sign(url, method)[1]
    return headers["Authorization"]


def complete(message: configuration_pb2.X) -> None:
    """Fill in the defaults of what is left out."""
    if not message.HasField("click_window"):
        message.click_window.FromSeconds(14 * _DAY_S)
    message.view_through_window.SetInParent()
    message.letter_case = message.letter_case or configuration_pb2.X.LETTER_CASE_LOWER
    message.encoding = message.encoding or configuration_pb2.X.ENCODING_HEX
    message.base_url = message.base_url or BASE_URL


def parse(message: configuration_pb2.X, report: Report) -> X:
    """The adapter that a completed message asks for; `report`s every wrong field of it."""
    click_days, view_days = (
        window.ToNanoseconds() / 1e9 / _DAY_S for window in (message.click_window, message.view_through_window)
    )
    if not 1 <= len(message.app_id) <= 256 or not message.app_id.isprintable():
        report("x.app_id", "REQUIRED", "the App Store id or package: 1 to 256 printable characters")
    if message.conversion_type not in CONVERSION_TYPES:
        report("x.conversion_type", "UNKNOWN", f"one of {', '.join(sorted(CONVERSION_TYPES))}")
    if click_days not in CLICK_WINDOWS_DAYS:
        report("x.click_window", "NOT_ALLOWED", "1, 7, 14 or 30 days")
    if view_days not in VIEW_WINDOWS_DAYS:
        report("x.view_through_window", "NOT_ALLOWED", "0, 1, 7, 14 or 30 days")
    elif view_days > click_days:
        report("x.view_through_window", "NOT_ALLOWED", "at most click_window")
    if message.letter_case not in configuration_pb2.X.LetterCase.values():
        report("x.letter_case", "UNKNOWN", "must be a value of LetterCase")
    if message.encoding not in configuration_pb2.X.Encoding.values():
        report("x.encoding", "UNKNOWN", "must be a value of Encoding")
    if len(message.base_url) > 1024 or not _BASE_URL.fullmatch(message.base_url):
        report("x.base_url", "INVALID_URL", "http(s)://host, and a path if need be: at most 1,024 characters")
    return X(
        app_id=message.app_id,
        conversion_type=message.conversion_type,
        click_window_days=int(click_days),
        view_window_days=int(view_days),
        letter_case=message.letter_case,
        encoding=message.encoding,
        base_url=message.base_url.rstrip("/"),
    )


def _read(body: str) -> list[claim_pb2.Claim]:
    """The claims of an answer. Raises ValueError when it is none of X's."""
    try:
        data = json.loads(body)["data"]
        return [_claim(data, data[name]) for name in _ATTRIBUTIONS if data.get(name) is not None]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        raise ValueError("not an answer of X's") from None


def _claim(data: Mapping[str, Any], attribution: Mapping[str, Any]) -> claim_pb2.Claim:
    promoted = attribution.get("promoted_properties") or {}
    if attribution["engagement_type"] not in ("CLICK", "VIEW"):
        raise ValueError("neither a click nor a view")
    claim = claim_pb2.Claim(
        is_view=attribution["engagement_type"] == "VIEW",
        campaign_name=promoted.get("campaign_name") or "",
        granular_data_forbidden=any(place.get(_GRANULAR) is False for place in (data, attribution, promoted)),
    )
    moment = datetime.fromisoformat(attribution["engagement_time"])
    claim.engagement_time.FromDatetime(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    return claim
