"""X, a self-attributing network: its conversion events, signed by OAuth 1.0a, and the claims it answers them with.

`POST {base_url}/12/conversion_event`, every parameter in the query. X answers a conversion with the engagement that it
says drove it, on X itself (`twitter_attribution`) or on its audience platform (`tpn_attribution`), or with neither.
"""

import hmac
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal, Self
from urllib.parse import quote

import orjson
from oauthlib.oauth1 import Client

from reengage.postback.v1 import claim_pb2, conversion_pb2
from services.postback.adapters.adapter import (
    Address,
    Allowed,
    Description,
    Field,
    FieldType,
    FieldValues,
    NotRenderableError,
    Report,
    Request,
    Stamp,
    best_claim,
    register,
)
from services.postback.macros import MACROS, MASK, Values
from services.postback.retry import Answer, Next, Verdict, Word, judge

BASE_URL = "https://ads-api.x.com"
PATH = "/12/conversion_event"
DEVICE_IDS = {"IOS": "idfa", "ANDROID": "adid"}
"""The one id of each platform that X knows a device by."""

DEFAULT_WINDOW_DAYS = (14, 0)
"""The windows of clicks and views where no tracker is there to say others (B4)."""

MAX_NAME_CHARACTERS = 1024
"""Of a campaign, in an answer."""

_DAY_S = 86_400
_CONVERSION_TYPES = (
    "PURCHASE", "SIGN_UP", "INSTALL", "RE_ENGAGE", "UPDATE", "TUTORIAL_COMPLETE", "RESERVATION", "ADD_TO_CART",
    "ADD_TO_WISHLIST", "LOGIN", "CHECKOUT_INITIATED", "SEARCH", "LEVEL_ACHIEVED", "ACHIEVEMENT_UNLOCKED",
    "CONTENT_VIEW", "SHARE", "INVITE", "ADDED_PAYMENT_INFO", "SPENT_CREDITS", "RATED",
)  # fmt: skip
_LETTER_CASES: dict[str, Callable[[str], str]] = {"LOWER": str.lower, "UPPER": str.upper, "AS_IS": str}
_ATTRIBUTIONS = ("twitter_attribution", "tpn_attribution")
_GRANULAR = "is_granular_data_sharing_allowed"
_BASE_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?")
_COUNT = re.compile(r"[1-9][0-9]{0,8}")


def _secret(name: str, label: str, help_: str) -> Field:
    return Field(
        name=name, type=FieldType.SECRET, label=label, help=f"{help_} Default: the one that the SAN account has."
    )


DESCRIPTION = Description(
    name="x",
    label="X",
    help=(
        "Sends each conversion to X when it arrives; the answer says whether X claims it. The windows are those of the "
        "tracker that a claim would go to (E3); without one 14 days after a click, and no views. Without an IDFA (iOS) "
        "or an advertising id (Android) that is not hashed nothing can be asked."
    ),
    catalogue_networks=("x",),
    is_claim_capable=True,
    options=frozenset(),
    # X takes 60,000 conversions in 15 minutes.
    max_deliveries_per_second=66,
    fields=(
        Field(
            name="app_id",
            type=FieldType.TEXT,
            label="App id",
            help="The id of the app in the App Store, or its package; a tracker's bundle_id goes before it.",
            required=True,
            max_characters=256,
        ),
        Field(
            name="conversion_type",
            type=FieldType.CHOICE,
            label="Conversion type",
            help="X's name of the event; a tracker's target_event goes before it.",
            required=True,
            allowed=tuple(Allowed(value=one, label=one.replace("_", " ").capitalize()) for one in _CONVERSION_TYPES),
        ),
        Field(
            name="san_account_id",
            type=FieldType.TEXT,
            label="SAN account",
            help="The account in tracker whose credentials are taken where none are given here. Default: the first "
            "account of the tracker that a claim would go to. To ask several accounts, make a configuration for each.",
            max_characters=64,
        ),
        Field(
            name="letter_case",
            type=FieldType.CHOICE,
            label="Letter case of device ids",
            help="The letter case that a device id is hashed in. X tells it to its partners.",
            default="LOWER",
            allowed=(
                Allowed(value="LOWER", label="abc"),
                Allowed(value="UPPER", label="ABC"),
                Allowed(value="AS_IS", label="As received"),
            ),
        ),
        Field(
            name="encoding",
            type=FieldType.CHOICE,
            label="Encoding of the hash",
            help="The encoding of a hashed device id. X tells it to its partners.",
            default="HEX",
            allowed=(
                Allowed(value="HEX", label="Hexadecimal, lower case"),
                Allowed(value="BASE64", label="Base64"),
            ),
        ),
        Field(
            name="base_url",
            type=FieldType.TEXT,
            label="Base URL",
            help="Where X answers: http or https, a host, and a path if need be.",
            default=BASE_URL,
            max_characters=1024,
        ),
        _secret("consumer_key", "Consumer key", "Of the partner's X app, for OAuth 1.0a."),
        _secret("consumer_secret", "Consumer secret", "Of the partner's X app, for OAuth 1.0a."),
        _secret("token", "Access token", "Of the X account that is asked, for OAuth 1.0a."),
        _secret("token_secret", "Access token secret", "Of the X account that is asked, for OAuth 1.0a."),
        _secret(
            "device_id_key", "Device id key", "The key that device ids are hashed with. X tells it to its partners."
        ),
    ),
)


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class X:
    """The adapter of X."""

    description: ClassVar[Description] = DESCRIPTION

    app_id: str
    conversion_type: str
    san_account_id: str
    letter_case: str
    encoding: str
    base_url: str

    @classmethod
    def configure(cls, values: FieldValues, report: Report) -> Self:
        """Returns the adapter with these values, and reports every one that is wrong."""
        if not values.text("app_id").isprintable():
            report("app_id", "INVALID_TEXT", "must be printable")
        if not _BASE_URL.fullmatch(values.text("base_url")):
            report("base_url", "INVALID_URL", "must be http(s)://host, and a path if need be")
        return cls(
            app_id=values.text("app_id"),
            conversion_type=values.text("conversion_type"),
            san_account_id=values.text("san_account_id"),
            letter_case=values.text("letter_case"),
            encoding=values.text("encoding"),
            base_url=values.text("base_url").rstrip("/"),
        )

    @property
    def method(self) -> Literal["POST"]:
        """Returns POST."""
        return "POST"

    @property
    def address(self) -> Address:
        """Returns the base URL."""
        return Address(field_name="base_url", start=self.base_url)

    @property
    def secret_names(self) -> frozenset[str]:
        """Returns the secrets that X gives its partners."""
        return DESCRIPTION.secret_names

    def requests(self, values: Values, secrets: Mapping[str, str], stamp: Stamp) -> tuple[Request, Request]:
        """Returns the signed request, and the same with its signature masked.

        Raises NotRenderableError without a raw id.
        """
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
        """Returns the verdict. Success is a 2xx status, and a body that says whether X claims the conversion."""
        verdict = judge(answer)
        if verdict.next is Next.DONE:
            try:
                _read(answer.body)
            except ValueError:
                return Verdict(word=Word.BODY_MISMATCH, next=Next.GIVE_UP)
        return verdict

    def claim(self, body: str) -> claim_pb2.Claim | None:
        """Returns X's claim; should it make two, the better one."""
        return best_claim(_read(body))

    def _parameters(self, values: Values, key: str) -> Iterator[tuple[str, str]]:
        os_type = MACROS["os"](values).upper()
        device_id = values.device_id(DEVICE_IDS.get(os_type, ""))
        if not device_id:
            raise NotRenderableError("no IDFA or advertising id, which X knows devices by")
        tracker = values.claim_tracker or conversion_pb2.ClaimTracker()
        conversion_type = tracker.target_event or self.conversion_type
        if conversion_type not in _CONVERSION_TYPES:
            raise NotRenderableError(f"target_event of tracker {tracker.tracker_id} is no conversion type of X")
        yield "app_id", tracker.bundle_id or self.app_id
        yield "conversion_time", MACROS["event_time"](values)
        yield "conversion_type", conversion_type
        yield "hashed_device_id", self._hashed(device_id, key)
        yield "os_type", os_type
        # Both always: X's own defaults are others.
        click_days, view_days = _window_days(values.claim_tracker)
        yield "click_window", str(click_days)
        yield "view_through_window", str(view_days)
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
        if key == MASK:
            return MASK
        digest = hmac.digest(key.encode(), cased.encode(), "sha256")
        return b64encode(digest).decode() if self.encoding == "BASE64" else digest.hex()


def authorization(method: Literal["GET", "POST"], url: str, secrets: Mapping[str, str], stamp: Stamp) -> str:
    """Returns the header that signs a request: OAuth 1.0a, HMAC-SHA1 (RFC 5849). All its parameters are in the URL."""
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


def _window_days(tracker: conversion_pb2.ClaimTracker | None) -> tuple[int, int]:
    """Returns the days after a click, and after a view, in which X may claim (B4)."""
    if tracker is None:
        return DEFAULT_WINDOW_DAYS
    return tracker.post_engagement_window.seconds // _DAY_S, tracker.post_view_window.seconds // _DAY_S


def _read(body: str) -> list[claim_pb2.Claim]:
    """Returns the claims of an answer. Raises ValueError when it is none of X's."""
    try:
        data = orjson.loads(body)["data"]
        return [_claim(data, data[name]) for name in _ATTRIBUTIONS if data.get(name) is not None]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        raise ValueError("not an answer of X's") from None


def _name(text: object) -> str:
    """Returns a name as it is looked for in: printable, and no longer than names are. Raises TypeError for no text."""
    if not isinstance(text, str):
        raise TypeError("no name")
    return "".join(filter(str.isprintable, text))[:MAX_NAME_CHARACTERS]


def _claim(data: Mapping[str, Any], attribution: Mapping[str, Any]) -> claim_pb2.Claim:
    promoted = attribution.get("promoted_properties") or {}
    if attribution["engagement_type"] not in ("CLICK", "VIEW"):
        raise ValueError("neither a click nor a view")
    claim = claim_pb2.Claim(
        is_view=attribution["engagement_type"] == "VIEW",
        campaign_name=_name(promoted.get("campaign_name") or ""),
        granular_data_forbidden=any(place.get(_GRANULAR) is False for place in (data, attribution, promoted)),
    )
    moment = datetime.fromisoformat(attribution["engagement_time"])
    moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    if not 1970 <= moment.year < 3000:
        raise ValueError("a time at which nobody engaged")
    claim.engagement_time.FromDatetime(moment)
    return claim
