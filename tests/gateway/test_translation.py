"""Server-to-server JSON as senders really write it."""

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import InvalidArgument, Violation
from reengage.ingest.v1 import record_pb2
from services.gateway.model import App, Platform
from services.gateway.translation.record import translate as translate_for
from services.gateway.translation.violations import in_senders_words, nul_fields

IOS_17 = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X)"
IOS_13 = "Mozilla/5.0 (iPhone; CPU iPhone OS 13_3 like Mac OS X)"


SHOP = App(app_id="shop", platform=Platform.ANDROID)


def body(action: str = "event", root: dict[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    given = {"event_name": "Buy"} if action == "event" else {}
    return {
        "action": action,
        "kochava_app_id": "shop",
        "kochava_device_id": "KD1",
        "data": {"origination_ip": "203.0.113.7", **given, **data},
        **(root or {}),
    }


def translate(value: dict[str, Any]) -> record_pb2.Record:
    return translate_for(value, {"shop": SHOP}.get)


def wrong(value: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        translate(value)
    return {violation.field: violation.reason for violation in caught.value.violations}


def test_a_whole_event() -> None:
    record = translate(
        body(
            root={"record_id": "r1"},
            app_ver="1.2",
            usertime="1764000000",
            device_ids={"adid": "A", "idfv": ""},
            device_ua="Phone%20One",
            device_limit_tracking="1",
            data_controlled=True,
            gdpr_privacy_consent={"gdpr_applies": "true", "tc_string": "TC", "ad_user_data": False},
            event_data={"sum": "9.99", "currency": "eur", "n": 3, "yes": True, "none": None},
        )
    )
    assert json_format.MessageToDict(record, preserving_proto_field_name=True) == {
        "record_id": "r1",
        "app_id": "shop",
        "event_time": "2025-11-24T16:00:00Z",
        "device_ids": {"kochava_device_id": "KD1", "adid": "A"},
        "ip_address": "203.0.113.7",
        "user_agent": "Phone One",
        "limit_ad_tracking": True,
        "app_version": "1.2",
        "privacy_consent": {"gdpr_applies": True, "tc_string": "TC", "ad_user_data": False},
        "data_controlled": True,
        "event": {
            "event_name": "Buy",
            "event_data": {"sum": "9.99", "currency": "eur", "n": "3", "yes": "true"},
            "revenue": {"amount_micros": "9990000", "currency_code": "EUR"},
        },
    }


def test_every_key_of_data_may_stand_at_the_root() -> None:
    inside = body(usertime=1_764_000_000, device_ids={"adid": "A"}, event_data={"price": 1})
    flat = {**inside, **inside["data"]}
    del flat["data"]
    assert translate(flat) == translate(inside)


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ({}, {}),
        ([], {}),
        ("", {}),
        (None, {}),
        ([{"adid": "A"}, {"idfa_md5": "B"}], {"adid": "A", "idfa_md5": "B"}),
        ({"ADID": "A", "custom": 7, "imei": None, "fb_id": "x"}, {"adid": "A", "custom": "7"}),
    ],
    ids=["object", "array", "text", "null", "list of objects", "other cases and unknown names"],
)
def test_device_ids(ids: Any, wanted: dict[str, str]) -> None:
    assert dict(translate(body(device_ids=ids)).device_ids) == {"kochava_device_id": "KD1", **wanted}


@pytest.mark.parametrize("absent", ["", None])
def test_an_absent_device_id_is_no_id(absent: Any) -> None:
    assert dict(translate(body(root={"kochava_device_id": absent}, device_ids={"idfv": "V"})).device_ids) == {
        "idfv": "V"
    }


@pytest.mark.parametrize(
    ("usertime", "seconds", "nanos"),
    [
        (1_764_000_000, 1_764_000_000, 0),
        ("1764000000", 1_764_000_000, 0),
        (1_764_000_000_123, 1_764_000_000, 123_000_000),
        ("1764000000123", 1_764_000_000, 123_000_000),
        (1_764_000_000.5, 1_764_000_000, 500_000_000),
    ],
    ids=["seconds", "text", "milliseconds", "milliseconds as text", "a fraction"],
)
def test_usertime(usertime: Any, seconds: int, nanos: int) -> None:
    time = translate(body(usertime=usertime)).event_time
    assert (time.seconds, time.nanos) == (seconds, nanos)


@pytest.mark.parametrize("absent", ["", None])
def test_no_usertime(absent: Any) -> None:
    assert not translate(body(usertime=absent)).HasField("event_time")


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({"device_ua": "Mozilla/5.0 (iPhone; x) 100% real"}, "Mozilla/5.0 (iPhone; x) 100% real"),
        ({"device_ua": "Mozilla%2F5.0%20(iPhone)"}, "Mozilla/5.0 (iPhone)"),
        (
            {"device_ua": "", "device_ver": "iPhone13,2-iOS-17.2"},
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X)",
        ),
        ({"device_ver": "iPad8,1-iPadOS-16.1"}, "Mozilla/5.0 (iPad; CPU OS 16_1 like Mac OS X)"),
        ({"device_ver": "SM-G991B-Android-13"}, "Mozilla/5.0 (Linux; Android 13; SM-G991B)"),
        ({"device_ver": ""}, ""),
    ],
    ids=["raw", "percent-encoded", "iPhone from its version", "iPad", "Android", "empty"],
)
def test_user_agent(data: dict[str, Any], wanted: str) -> None:
    assert translate(body(**data)).user_agent == wanted


@pytest.mark.parametrize(
    ("data", "micros", "currency"),
    [
        ({"event_data": {"sum": 1.1}}, 1_100_000, "USD"),
        ({"event_data": {"price": "2"}, "currency": "GBP"}, 2_000_000, "GBP"),
        ({"event_data": {"revenue": -3, "currency": "EUR"}}, -3_000_000, "EUR"),
        ({"event_data": {"revenue": 5, "price": 4, "sum": 3}}, 3_000_000, "USD"),
        ({"event_data": {"sum": "", "revenue": 0.0000015}}, 2, "USD"),
    ],
    ids=["sum", "price, currency beside", "refund, currency inside", "sum goes first", "empty sum, rounded"],
)
def test_revenue(data: dict[str, Any], micros: int, currency: str) -> None:
    revenue = translate(body(**data)).event.revenue
    assert (revenue.amount_micros, revenue.currency_code) == (micros, currency)


def test_an_amount_without_a_currency_is_in_that_of_its_app() -> None:
    euro = replace(SHOP, currency_code="EUR")
    made = [
        translate_for(body(event_data=data), {"shop": euro}.get).event.revenue.currency_code
        for data in ({"sum": 1}, {"sum": 1, "currency": "GBP"})
    ]
    assert made == ["EUR", "GBP"]


@pytest.mark.parametrize("empty", [[], {}, "", None])
def test_no_event_data(empty: Any) -> None:
    event = translate(body(event_data=empty)).event
    assert not event.event_data
    assert not event.HasField("revenue")


@pytest.mark.parametrize(
    ("agent", "transparency", "kept"),
    [
        (IOS_17, None, False),
        (IOS_17, {"att": True, "att_detail": "authorized"}, True),
        (IOS_17, {"att": False, "att_detail": "denied"}, False),
        (IOS_17, {}, False),
        (IOS_13, None, True),
        ("Shop/1 CFNetwork/1410 Darwin/22.6.0", None, False),
        ("Shop/1 CFNetwork/1128 Darwin/19.6.0", None, True),
        ("", None, True),
    ],
    ids=[
        "not said",
        "authorized",
        "denied",
        "empty",
        "iOS 13",
        "an app on iOS 16",
        "an app on iOS 13",
        "no user agent",
    ],
)
def test_idfa_needs_tracking_transparency_from_ios_14_on(agent: str, transparency: Any, *, kept: bool) -> None:
    ids = {"idfa": "A", "idfa_md5": "B", "idfv": "V"}
    record = translate(body(device_ua=agent, device_ids=ids, app_tracking_transparency=transparency))
    assert ("idfa" in record.device_ids, "idfa_md5" in record.device_ids) == (kept, kept)
    assert record.device_ids["idfv"] == "V"


@pytest.mark.parametrize("detail", ["notDetermined", "not_determined"])
def test_tracking_transparency(detail: str) -> None:
    given = {"att": "0", "att_detail": detail, "att_time": "1764000000"}
    found = translate(body(app_tracking_transparency=given)).tracking_transparency
    assert (found.authorized, found.detail, found.answer_time.seconds) == (
        False,
        record_pb2.TrackingTransparency.DETAIL_NOT_DETERMINED,
        1_764_000_000,
    )


@pytest.mark.parametrize(
    ("referrer", "click_id"),
    [
        ({"referrer": "ko_click_id=C1&utm_source=x", "referrer_click_time": 1}, "C1"),
        ({"referrer": "utm_source%3Dx%26ko_click_id%3DC1"}, "C1"),
        ("utm_source=x&ko_click_id=C1", "C1"),
        ({"referrer": "utm_source=google-play"}, ""),
        ({"referrer": ""}, ""),
        ([], ""),
    ],
    ids=["object", "encoded twice", "text", "without a click", "empty", "array"],
)
def test_install_referrer(referrer: Any, click_id: str) -> None:
    record = translate(body("install", install_referrer=referrer))
    assert record.WhichOneof("kind") == "install"
    assert record.install.click_record_id == click_id


@pytest.mark.parametrize(
    ("uri", "click_id", "tracker_id"),
    [
        ("shop://p/1?ko_click_id=C1", "C1", ""),
        ("https://go.example/v1/cpi/click?campaign_id=tr", "", "tr"),
        ("https://go.example/c/tr?x=y", "", "tr"),
        ("shop://home", "", ""),
        ("http://[broken", "", ""),
    ],
    ids=["click id", "older link", "short link", "neither", "no URL"],
)
def test_deep_link_open(uri: str, click_id: str, tracker_id: str) -> None:
    opened = translate(body(event_name="_Deeplink", event_data={"uri": uri})).deep_link_open
    assert (opened.uri, opened.click_record_id, opened.tracker_id) == (uri, click_id, tracker_id)


def test_an_event_may_bring_a_click_id_back() -> None:
    assert translate(body(event_data={"ko_click_id": "C1"})).event.click_record_id == "C1"


@pytest.mark.parametrize(("state", "wanted"), [("start", 1), ("STOP", 2)])
def test_session(state: str, wanted: int) -> None:
    assert translate(body("session", state=state)).session.state == wanted


def test_update_is_an_event_with_new_ids() -> None:
    record = translate(body("update", device_ids={"idfa": "A"}))
    assert (record.event.event_name, record.device_ids["idfa"]) == ("_Update", "A")


def test_identity_link() -> None:
    record = translate(
        {
            "action": "identityLink",
            "kochava_app_id": "shop",
            "device_id": {"idfa": "0cc175b9c0f1b6a831c399e269772661", "idfv": "V"},
            "device_hash_method": {"idfa": "md5"},
            "data": {"email": "a@b.example", "customer": 7, "none": None},
        }
    )
    assert dict(record.device_ids) == {"idfa_md5": "0cc175b9c0f1b6a831c399e269772661", "idfv": "V"}
    assert dict(record.identity_link.identities) == {"email": "a@b.example", "customer": "7"}


@pytest.mark.parametrize(
    ("method", "kind"), [("MD5", "idfa_md5"), ("SHA-256", "idfa_sha256"), ("sha1", "idfa_sha1"), ("crc", "idfa")]
)
def test_the_method_of_a_hash_is_read_as_it_is_written(method: str, kind: str) -> None:
    linked = {"action": "identityLink", "kochava_app_id": "shop", "device_id": {"idfa": "a" * 40}, "data": {"e": "x"}}
    methods = {"device_hash_method": {"idfa": method}}
    for body_ in (linked | methods, linked | {"data": {"e": "x"} | methods}):
        record = translate(body_)
        assert (list(record.device_ids), dict(record.identity_link.identities)) == ([kind], {"e": "x"})


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (body("dance"), {"action": "UNKNOWN_ACTION"}),
        (
            {},
            {
                "action": "REQUIRED",
                "kochava_app_id": "REQUIRED",
                "device_ids": "REQUIRED",
                "origination_ip": "REQUIRED",
            },
        ),
        (body(usertime="soon"), {"data.usertime": "INVALID_TIME"}),
        (body(root={"usertime": -1}), {"usertime": "INVALID_TIME"}),
        (body(device_limit_tracking="maybe"), {"data.device_limit_tracking": "INVALID_BOOLEAN"}),
        (body(device_limit_tracking=[]), {"data.device_limit_tracking": "INVALID_BOOLEAN"}),
        (body(event_name={"a": 1}), {"data.event_name": "INVALID_TYPE"}),
        (body(event_data="x"), {"data.event_data": "INVALID_TYPE"}),
        (body(event_data={"a": {}, "b": []}), {"data.event_data.a": "NOT_FLAT", "data.event_data.b": "NOT_FLAT"}),
        (body(event_data={"sum": "1e99"}), {"data.event_data.sum": "INVALID_AMOUNT"}),
        (body(event_data={"sum": "nan"}), {"data.event_data.sum": "INVALID_AMOUNT"}),
        (body(event_data={"sum": True}), {"data.event_data.sum": "INVALID_AMOUNT"}),
        (
            body(event_data={"sum": "many"}, currency="euro"),
            {"data.event_data.sum": "INVALID_AMOUNT", "data.currency": "INVALID_CURRENCY"},
        ),
        (
            body(root={"kochava_app_id": "gone", "kochava_device_id": "0000-0000"}, usertime="x"),
            {"data.usertime": "INVALID_TIME", "kochava_app_id": "UNKNOWN_APP", "data.device_ids": "REQUIRED"},
        ),
        (
            {"action": "dance", "data": {"kochava_app_id": "gone", "device_ids": {"adid": "{adid}"}}},
            {
                "action": "UNKNOWN_ACTION",
                "data.kochava_app_id": "UNKNOWN_APP",
                "data.device_ids": "REQUIRED",
                "data.origination_ip": "REQUIRED",
            },
        ),
        (
            body(root={"data": {"event_name": "_Deeplink", "event_data": {"uri": 1}, "usertime": []}}),
            {"data.event_data.uri": "INVALID_TYPE", "data.usertime": "INVALID_TIME"},
        ),
        (body(event_data={"sum": 1}, currency="euro"), {"data.currency": "INVALID_CURRENCY"}),
        (body(event_data={"sum": 1, "currency": 1}), {"data.event_data.currency": "INVALID_CURRENCY"}),
        (body(device_ids={"adid": ["A"]}), {"data.device_ids.adid": "INVALID_TYPE"}),
        (body(device_ids=["A"]), {"data.device_ids": "INVALID_TYPE"}),
        (body(app_tracking_transparency=1), {"data.app_tracking_transparency": "INVALID_TYPE"}),
        (
            body(app_tracking_transparency={"att": 2, "att_detail": "perhaps", "att_time": "x"}),
            {
                "data.app_tracking_transparency.att": "INVALID_BOOLEAN",
                "data.app_tracking_transparency.att_detail": "INVALID_VALUE",
                "data.app_tracking_transparency.att_time": "INVALID_TIME",
            },
        ),
        (body("install", install_referrer=7), {"data.install_referrer": "INVALID_TYPE"}),
        (
            body(root={"data": {"usertime": "x", "origination_ip": "here", "event_data": {"network": "n", "a": {}}}}),
            {
                "data.usertime": "INVALID_TIME",
                "data.event_data.a": "NOT_FLAT",
                "data.event_name": "REQUIRED",
                "data.origination_ip": "INVALID_IP_ADDRESS",
                "data.event_data.network": "RESERVED_NAME",
            },
        ),
        (
            body(root={"data": 7}),
            {"data": "INVALID_TYPE", "data.event_name": "REQUIRED", "data.origination_ip": "REQUIRED"},
        ),
    ],
    ids=[
        "unknown action",
        "nothing",
        "no time",
        "no time at the root",
        "no flag",
        "array for a flag",
        "object for a name",
        "text for event data",
        "nested data",
        "large amount",
        "nan",
        "true for an amount",
        "amount and currency",
        "gateway and ingest",
        "unknown action and app",
        "deep link without a link",
        "currency",
        "number for a currency",
        "array for an id",
        "array of ids",
        "number for transparency",
        "all of transparency",
        "number for a referrer",
        "all in data",
        "number for data",
    ],
)
def test_what_is_wrong_is_named_at_once(value: dict[str, Any], wanted: dict[str, str]) -> None:
    assert wrong(value) == wanted


@pytest.mark.parametrize(
    ("value", "field", "wanted"),
    [
        (body(), "ip_address", "data.origination_ip"),
        (body(root={"origination_ip": "x", "data": {}}), "ip_address", "origination_ip"),
        (body(usertime=1), "event_time", "data.usertime"),
        (body(device_ids={"adid": "x"}), "device_ids.adid", "data.device_ids.adid"),
        (body(), "device_ids.kochava_device_id", "kochava_device_id"),
        (body(), "event.event_name", "data.event_name"),
        (body(event_data={"a": 1}), "event.event_data.a", "data.event_data.a"),
        (body(event_data={"a": 1}), "event.revenue.currency_code", "data.event_data"),
        (body(app_ver="1"), "app_version", "data.app_ver"),
        (body("session"), "session.state", "data.state"),
        (body(root={"kochava_app_id": ""}), "app_id", "kochava_app_id"),
        ({"data": {"kochava_app_id": "gone"}}, "app_id", "data.kochava_app_id"),
        (body("identityLink"), "identity_link.identities.email", "data.email"),
        (body("identityLink"), "identity_link.identities", "data"),
        (body(event_name="_Deeplink", event_data={}), "deep_link_open.uri", "data.event_data.uri"),
        (body(), "something.new", "something.new"),
    ],
    ids=[
        "address",
        "address at the root",
        "time",
        "an id",
        "device id",
        "event name",
        "a key of event data",
        "currency",
        "app version",
        "session state",
        "app",
        "app in data",
        "an identity",
        "identities",
        "link",
        "unknown field",
    ],
)
def test_what_ingest_finds_is_said_in_the_senders_words(value: dict[str, Any], field: str, wanted: str) -> None:
    found = in_senders_words(value, [Violation(field=field, reason="R", description="d")])
    assert [violation.field for violation in found] == [wanted]


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ({"idfa": "A"}, "an idfa counts from iOS 14 on only with app_tracking_transparency.att"),
        ({"idfa_sha1": "A"}, "an idfa counts from iOS 14 on only with app_tracking_transparency.att"),
        ({"idfa": "00000000-0000-0000-0000-000000000000"}, "must hold at least one usable device id"),
        ({}, "must hold at least one usable device id"),
    ],
)
@pytest.mark.parametrize("usertime", ["", "x"])
def test_an_idfa_that_does_not_count_is_why_there_is_no_id(ids: dict[str, str], wanted: str, usertime: str) -> None:
    """It is the same whoever refuses: ingest, or the gateway for something else that is wrong."""
    value = body(root={"kochava_device_id": ""}, device_ua=IOS_17, device_ids=ids, usertime=usertime)
    if usertime:
        with pytest.raises(InvalidArgument) as caught:
            translate(value)
        found = list(caught.value.violations)
    else:
        assert not translate(value).device_ids
        said = Violation(field="device_ids", reason="REQUIRED", description="must hold at least one usable device id")
        found = in_senders_words(value, [said])
    assert [(v.reason, v.description) for v in found if v.field == "data.device_ids"] == [("REQUIRED", wanted)]


def test_what_is_found_already_is_named_with_the_rest() -> None:
    found = [Violation(field="data.origination_ip", reason="INVALID_TEXT", description="d")]
    with pytest.raises(InvalidArgument) as caught:
        translate_for(body(origination_ip="1\0", event_name=""), lambda _: None, found)
    assert [(violation.field, violation.reason) for violation in caught.value.violations] == [
        ("data.origination_ip", "INVALID_TEXT"),
        ("data.event_name", "REQUIRED"),
        ("kochava_app_id", "UNKNOWN_APP"),
    ]


def test_nul_fields() -> None:
    assert list(nul_fields({"a": "x\0", "b": [{"c": "\0"}], "d\0": 1, "e": 1})) == ["a", "b[0].c", "d"]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
_KEYS = st.sampled_from(
    [
        "action", "kochava_app_id", "kochava_device_id", "app_version", "device_ids", "device_id", "origination_ip",
        "device_ua", "device_ver", "usertime", "event_name", "event_data", "device_limit_tracking", "state",
        "record_id", "app_tracking_transparency", "gdpr_privacy_consent", "install_referrer", "data_controlled",
        "currency", "device_hash_method", "identity_link",
    ]
)  # fmt: skip
_INNER = st.sampled_from(
    ["adid", "idfa", "sum", "price", "currency", "uri", "referrer", "att", "att_time", "att_detail", "tc_string",
     "gdpr_applies", "ad_user_data", "ko_click_id", "network"]
)  # fmt: skip
_ACTIONS = st.sampled_from(["install", "event", "session", "update", "identityLink"])
_VALUES = _JSON | st.dictionaries(_INNER, _JSON, max_size=5) | st.just("_Deeplink")
_BODIES = st.builds(
    lambda root, data, action: {**root, **data, **({} if action is None else {"action": action})},
    st.dictionaries(_KEYS, _VALUES, max_size=8),
    st.fixed_dictionaries({}, optional={"data": _JSON | st.dictionaries(_KEYS, _VALUES, max_size=8)}),
    st.none() | _ACTIONS,
)


@given(_BODIES)
@pytest.mark.slow
def test_law_any_body_is_a_record_or_refused_by_name(value: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidArgument):
        record = translate(value)
        assert record_pb2.Record.FromString(record.SerializeToString()) == record


@given(_BODIES, st.text())
@pytest.mark.slow
def test_law_any_violation_can_be_told(value: dict[str, Any], field: str) -> None:
    for path in (field, f"event.{field}", f"device_ids.{field}", f"identity_link.{field}"):
        [found] = in_senders_words(value, [Violation(field=path, reason="R", description="d")])
        assert found.reason == "R"
