"""X's adapter: what it sends and how it is signed, and what it reads in an answer."""

import json
import re
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.x_network import SECRETS, sign
from libs.errors import Violations
from reengage.ingest.v1 import record_pb2
from reengage.postback.v1 import claim_pb2, conversion_pb2
from reengage.tracker.v1 import app_pb2
from services.postback.adapters import x
from services.postback.adapters.adapter import NotRenderableError, Request, Stamp
from services.postback.macros import MASK, Values
from services.postback.retry import Answer, Failure, Next
from services.postback.validation import configured
from tests.postback.conftest import completed, configuration, purchase

# The example of X's documentation, "Creating a signature".
DOCUMENTED_SECRETS = {
    "consumer_key": "xvz1evFS4wEEPTGEFPHBog",
    "consumer_secret": "kAcSOqF21Fu85e7zjz7ZN2U4ZRhfV3WpwPAoE3Z7kBw",
    "token": "370773112-GmHxMAgYyLbNEtIKZeRNFsMKPR9EyMZeS9weJAEb",
    "token_secret": "LswwdoUaIvS8ltyTt5jkRh4J50vUPVVHtR2YPi5kE",
}
DOCUMENTED_STAMP = Stamp(nonce="kYjzVBB8Y0ZFabxSWbWovY3uYSQ2pTgmZeNu2VS4cg", time_s=1318622958)
DOCUMENTED_URL = "https://api.x.com/1.1/statuses/update.json"
DOCUMENTED_QUERY = "include_entities=true&status=Hello%20Ladies%20%2B%20Gentlemen%2C%20a%20signed%20OAuth%20request%21"
IDFA = "6D92078A-8246-4BA4-AE5B-76104861e7dc"


def adapter(**fields: Any) -> x.X:
    written = {"app_id": "333903271", "conversion_type": "PURCHASE", **fields}
    violations = Violations()
    made = configured(completed(configuration(x=written)), violations)
    assert violations.found == []
    assert isinstance(made, x.X)
    return made


def conversion(*, platform: str = "IOS", **record: Any) -> conversion_pb2.Conversion:
    made = purchase()
    made.decision.conversion_time.CopyFrom(Timestamp(seconds=1_366_095_600, nanos=123_456_789))
    made.record.MergeFrom(record_pb2.Record(**{"device_ids": {"idfa": IDFA}, **record}))
    made.names.platform = app_pb2.Platform.Value(f"PLATFORM_{platform}")
    return made


def rendered(
    one: x.X,
    given: conversion_pb2.Conversion,
    *,
    is_revenue: bool = False,
    claim_tracker: conversion_pb2.ClaimTracker | None = None,
) -> tuple[Request, Request]:
    values = Values(given, delivery_id="d", is_revenue=is_revenue, claim_tracker=claim_tracker)
    return one.requests(values, {**SECRETS, "device_id_key": "key"}, Stamp(nonce="nonce", time_s=1_767_270_896))


def oauth(header: str) -> dict[str, str]:
    return {name: unquote(value) for name, value in re.findall(r'(\w+)="([^"]*)"', header)}


def test_the_local_x_has_the_secrets_that_the_adapter_needs() -> None:
    assert x.DESCRIPTION.secret_names == SECRETS.keys()


def test_the_documented_request_has_the_documented_signature() -> None:
    header = x.authorization("POST", f"{DOCUMENTED_URL}?{DOCUMENTED_QUERY}", DOCUMENTED_SECRETS, DOCUMENTED_STAMP)
    assert header.startswith("OAuth ")
    assert oauth(header) == {
        "oauth_consumer_key": DOCUMENTED_SECRETS["consumer_key"],
        "oauth_nonce": DOCUMENTED_STAMP.nonce,
        "oauth_signature": "Ls93hJiZbQ3akF3HF3x1Bz8/zU4=",
        "oauth_signature_method": "HMAC-SHA1",
        "oauth_timestamp": "1318622958",
        "oauth_token": DOCUMENTED_SECRETS["token"],
        "oauth_version": "1.0",
    }


def test_the_local_x_agrees_with_both_published_examples() -> None:
    """What the adapter is held to in the other tests: X's own example, and that of RFC 5849, section 1.2."""
    parameters = oauth(x.authorization("POST", DOCUMENTED_URL, DOCUMENTED_SECRETS, DOCUMENTED_STAMP))
    del parameters["oauth_signature"]
    assert (
        sign(
            "POST",
            DOCUMENTED_URL,
            [*parse_qsl(DOCUMENTED_QUERY), *parameters.items()],
            consumer_secret=DOCUMENTED_SECRETS["consumer_secret"],
            token_secret=DOCUMENTED_SECRETS["token_secret"],
        )
        == "Ls93hJiZbQ3akF3HF3x1Bz8/zU4="
    )
    photos = [
        ("file", "vacation.jpg"),
        ("size", "original"),
        ("oauth_consumer_key", "dpf43f3p2l4k3l03"),
        ("oauth_token", "nnch734d00sl2jdk"),
        ("oauth_signature_method", "HMAC-SHA1"),
        ("oauth_timestamp", "137131202"),
        ("oauth_nonce", "chapoH"),
    ]
    url, secrets = "http://photos.example.net/photos", ("kd94hf93k423kf44", "pfkkdhi9sl3r4s00")
    signature = sign("GET", url, photos, consumer_secret=secrets[0], token_secret=secrets[1])
    assert signature == "MdpQcU8iPSUjWoN/UDMsK2sui9I="


def test_everything_is_in_the_query() -> None:
    request, _ = rendered(
        adapter(base_url="https://ads-api.example/prefix/"),
        conversion(ip_address="192.133.78.1", event={"event_data": {"quantity": "2"}}),
        is_revenue=True,
    )
    url = urlsplit(request.url)
    assert (request.method, request.body) == ("POST", "")
    assert f"{url.scheme}://{url.netloc}{url.path}" == "https://ads-api.example/prefix/12/conversion_event"
    assert parse_qsl(url.query) == [
        ("app_id", "333903271"),
        ("conversion_time", "2013-04-16T07:00:00.123Z"),
        ("conversion_type", "PURCHASE"),
        ("hashed_device_id", "71ad10f500daf81544258ad5f424053d3026e277f77fed1961a688ed41bac2d0"),
        ("os_type", "IOS"),
        ("click_window", "14"),
        ("view_through_window", "0"),
        ("device_ip_address", "192.133.78.1"),
        ("price_currency", "EUR"),
        ("price_micro", "12500000"),
        ("number_items", "2"),
    ]


def test_the_windows_are_those_of_the_tracker_that_a_claim_would_go_to() -> None:
    """B4: what X is asked with is what its claim is judged by."""
    tracker = conversion_pb2.ClaimTracker(network_id="x-ios", tracker_id="t")
    tracker.post_engagement_window.FromSeconds(30 * 86400)
    tracker.post_view_window.FromSeconds(86400)
    request, _ = rendered(adapter(), conversion(), claim_tracker=tracker)
    query = dict(parse_qsl(urlsplit(request.url).query))
    assert (query["click_window"], query["view_through_window"]) == ("30", "1")


def test_what_the_tracker_calls_event_and_app_goes_before_what_the_postback_says() -> None:
    tracker = conversion_pb2.ClaimTracker(
        network_id="x-ios", tracker_id="t", target_event="SIGN_UP", bundle_id="com.example"
    )
    request, _ = rendered(adapter(), conversion(), claim_tracker=tracker)
    query = dict(parse_qsl(urlsplit(request.url).query))
    assert (query["conversion_type"], query["app_id"]) == ("SIGN_UP", "com.example")


def test_an_event_that_x_has_no_name_for_is_not_sent() -> None:
    tracker = conversion_pb2.ClaimTracker(network_id="x-ios", tracker_id="t", target_event="Purchased")
    with pytest.raises(NotRenderableError, match="target_event of tracker t is no conversion type of X"):
        rendered(adapter(), conversion(), claim_tracker=tracker)


def test_of_a_refund_x_has_no_notion() -> None:
    refund = conversion()
    refund.record.event.revenue.amount_micros = -1
    assert "price" not in rendered(adapter(), refund, is_revenue=True)[0].url


@pytest.mark.parametrize("quantity", ["", "0", "-1", "1.5", "two", "²", "9" * 10])
def test_what_is_not_there_is_left_out(quantity: str) -> None:
    request, _ = rendered(adapter(), conversion(event={"event_data": {"quantity": quantity}}))
    assert [name for name, _ in parse_qsl(urlsplit(request.url).query)] == [
        "app_id",
        "conversion_time",
        "conversion_type",
        "hashed_device_id",
        "os_type",
        "click_window",
        "view_through_window",
    ]


@pytest.mark.parametrize(
    ("letter_case", "encoding", "hashed"),
    [
        ("LOWER", "HEX", "71ad10f500daf81544258ad5f424053d3026e277f77fed1961a688ed41bac2d0"),
        ("UPPER", "HEX", "e2a0b1690592c1638af49e5e2ed477f2f6abb41a24cef1b3db0900a4279cf1f7"),
        ("AS_IS", "HEX", "01daa1309382b6c6f5360699dabce6a9f166f2c044cf7a3751e1b92b01f24801"),
        ("LOWER", "BASE64", "ca0Q9QDa+BVEJYrV9CQFPTAm4nf3f+0ZYaaI7UG6wtA="),
    ],
)
def test_device_ids_are_hashed_as_x_wants_them(letter_case: str, encoding: str, hashed: str) -> None:
    one = adapter(
        letter_case=letter_case,
        encoding=encoding,
    )
    request, _ = rendered(one, conversion())
    assert dict(parse_qsl(urlsplit(request.url).query))["hashed_device_id"] == hashed


@pytest.mark.parametrize(
    ("platform", "device_ids"),
    [
        pytest.param("IOS", {"idfv": IDFA, "adid": IDFA}, id="no IDFA"),
        pytest.param("ANDROID", {"idfa": IDFA, "oaid": IDFA, "android_id": "9774d56d682e549c"}, id="no adid"),
        pytest.param("IOS", {"idfa_sha1": "0" * 39 + "1"}, id="hashed"),
        pytest.param("IOS", {"idfa": "00000000-0000-0000-0000-000000000000"}, id="zeros"),
        pytest.param("UNSPECIFIED", {"idfa": IDFA}, id="no platform"),
    ],
)
def test_without_the_id_that_x_knows_nothing_can_be_asked(platform: str, device_ids: dict[str, str]) -> None:
    given = conversion(platform=platform)
    given.record.device_ids.clear()
    given.record.device_ids.update(device_ids)
    with pytest.raises(NotRenderableError):
        rendered(adapter(), given)


def test_the_id_is_that_of_the_platform() -> None:
    given = conversion(platform="ANDROID", device_ids={"idfa": "other", "adid": IDFA})
    query = dict(parse_qsl(urlsplit(rendered(adapter(), given)[0].url).query))
    assert (query["os_type"], query["hashed_device_id"][:6]) == ("ANDROID", "71ad10")


def test_what_is_kept_of_a_request_holds_no_signature() -> None:
    request, shown = rendered(adapter(), conversion())
    assert request.headers["Authorization"].startswith("OAuth oauth_")
    assert (shown.url, shown.headers) == (request.url, {"Authorization": f"OAuth {MASK}"})
    for secret in [*SECRETS.values(), oauth(request.headers["Authorization"])["oauth_signature"]]:
        assert secret not in str(shown)


odd_text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@given(app_id=odd_text, address=odd_text, quantity=st.integers(1, 99), currency=odd_text)
def test_whatever_is_sent_is_signed(app_id: str, address: str, quantity: int, currency: str) -> None:
    """Held against the local X's own reading of RFC 5849."""
    given = conversion(ip_address=address, event={"event_data": {"quantity": str(quantity)}})
    given.record.event.revenue.currency_code = currency
    request, _ = rendered(replace(adapter(), app_id=app_id), given, is_revenue=True)
    url, _, query = request.url.partition("?")
    parameters = oauth(request.headers["Authorization"])
    signature = parameters.pop("oauth_signature")
    pairs = parse_qsl(query, keep_blank_values=True)
    assert dict(pairs)["app_id"] == app_id
    assert signature == sign("POST", url, [*pairs, *parameters.items()])


NOON_MS = 1_767_268_800_000


def answer(twitter: Any, **data: Any) -> str:
    return json.dumps({"data": {"twitter_attribution": twitter, **data}, "request": {"params": {}}})


def attribution(kind: str = "CLICK", time: str = "2026-01-01T12:00:00.500Z", **fields: Any) -> dict[str, Any]:
    promoted = {"campaign_id": "8slvg", "campaign_name": "Summer", "line_item_id": "9cqi0", "account_id": "18ce54d4x5t"}
    return {
        "engagement_time": time,
        "engagement_type": kind,
        "attribution_type": "SINGLE_TOUCH",
        "tweet_id": "1",
        "country_code": "DE",
        "promoted_properties": promoted,
        **fields,
    }


def claim(
    is_view: bool = False, millis: int = 1_767_268_800_500, campaign: str = "Summer", forbidden: bool = False
) -> Any:
    made = claim_pb2.Claim(is_view=is_view, campaign_name=campaign, granular_data_forbidden=forbidden)
    made.engagement_time.FromMilliseconds(millis)
    return made


NO: dict[str, Any] = {"is_granular_data_sharing_allowed": False}
YES: dict[str, Any] = {"is_granular_data_sharing_allowed": True}
EARLIER, EARLIER_MS = "2025-12-31T12:00:00.500Z", NOON_MS + 500 - 86_400_000


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(answer(None), None, id="no claim"),
        pytest.param(json.dumps({"data": {}}), None, id="nor a word of it"),
        pytest.param(answer(attribution()), claim(), id="click"),
        pytest.param(answer(attribution("VIEW")), claim(is_view=True), id="view"),
        pytest.param(answer(attribution(time="2026-01-01T12:00:00")), claim(millis=NOON_MS), id="without zone"),
        pytest.param(answer(attribution(time="2026-01-01T14:00:00+02:00")), claim(millis=NOON_MS), id="zone"),
        pytest.param(answer(attribution(promoted_properties=None)), claim(campaign=""), id="nothing promoted"),
        pytest.param(
            answer(attribution(promoted_properties={"campaign_name": None})), claim(campaign=""), id="no name"
        ),
        pytest.param(answer(None, tpn_attribution=attribution()), claim(), id="audience platform"),
        pytest.param(answer(attribution(time=EARLIER), tpn_attribution=attribution()), claim(), id="two: the newer"),
        pytest.param(
            answer(attribution("VIEW"), tpn_attribution=attribution(time=EARLIER)),
            claim(millis=EARLIER_MS),
            id="two: the click",
        ),
        pytest.param(answer(attribution(), **NO), claim(forbidden=True), id="forbidden in data"),
        pytest.param(answer(attribution(**NO)), claim(forbidden=True), id="forbidden in the claim"),
        pytest.param(
            answer(attribution(promoted_properties=NO)), claim(campaign="", forbidden=True), id="forbidden in promoted"
        ),
        pytest.param(answer(attribution(**YES), **YES), claim(), id="allowed"),
    ],
)
def test_claims(body: str, expected: claim_pb2.Claim | None) -> None:
    one = adapter()
    verdict = one.judge(Answer(status_code=200, body=body))
    assert (verdict.word, verdict.next) == ("DELIVERED", Next.DONE)
    assert one.claim(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        "",
        "fine",
        "[]",
        "null",
        '{"data": []}',
        '{"data": null}',
        '{"errors": [{"code": "INTERNAL_ERROR"}]}',
        "[" * 60_000,
        answer("CLICK"),
        answer([]),
        answer(attribution("TAP")),
        answer(attribution(time="yesterday")),
        answer(attribution(time="0001-01-01T00:00:00+14:00")),
        answer(attribution(engagement_time=NOON_MS)),
        answer({"engagement_type": "CLICK"}),
        answer(attribution(promoted_properties={"campaign_name": 1})),
        answer(attribution(promoted_properties={"campaign_name": "\ud800"})),
        answer(attribution())[:-20],
    ],
)
def test_what_is_no_answer_is_no_success(body: str) -> None:
    verdict = adapter().judge(Answer(status_code=200, body=body))
    assert (verdict.word, verdict.next) == ("BODY_MISMATCH", Next.GIVE_UP)


@pytest.mark.parametrize(
    ("given_answer", "word", "following"),
    [
        *((Answer(status_code=status), "HTTP_STATUS", Next.RETRY) for status in (408, 423, 429, 500, 503)),
        *((Answer(status_code=status), "HTTP_STATUS", Next.GIVE_UP) for status in (400, 401, 403, 404)),
        (Answer(status_code=200, body=answer(None), failure=Failure.TIMEOUT), "TIMEOUT", Next.RETRY),
    ],
)
def test_other_answers_are_judged_as_everybody_s(given_answer: Answer, word: str, following: Next) -> None:
    verdict = adapter().judge(given_answer)
    assert (verdict.word, verdict.next) == (word, following)
