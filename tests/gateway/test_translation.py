"""Server-to-server JSON as senders really write it."""

import json
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import Violation, Violations
from reengage.ingest.v1 import record_pb2
from services.gateway.bodies import NOT_A_NUMBER, Number, parse_json
from services.gateway.model import App, Platform
from services.gateway.translation.body import readable_json
from services.gateway.translation.record import translate as translate_for
from services.gateway.translation.violations import in_senders_words
from services.ingest.entry import admit
from services.ingest.model import Entry
from tests.ingest.test_validation import NOW_US, SETTINGS

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
    return translate_for(value, {"shop": SHOP}.get).record


def wrong(value: dict[str, Any]) -> dict[str, str]:
    return {warning.field: warning.code for warning in translate(value).warnings}


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
        ({"event_data": {"sum": "", "revenue": Number("0.0000015")}}, 2, "USD"),
        ({"event_data": {"price": 4, "revenue": 5, "value": 6, "amount": 7}}, 5_000_000, "USD"),
        ({"event_data": {"price": 4, "amount": 7, "value": 6}}, 6_000_000, "USD"),
        ({"event_data": {"price": 4, "amount": 7, "value": "gold"}}, 7_000_000, "USD"),
        ({"event_data": {"price": "1.10", "quantity": 3}}, 3_300_000, "USD"),
        ({"event_data": {"sum": 0, "price": 2}}, 2_000_000, "USD"),
        ({"event_data": {"sum": 0}}, 0, "USD"),
        ({"event_data": {"sum": "13,95"}}, 13_950_000, "USD"),
        ({"event_data": {"sum": "1,299.00"}}, 1_299_000_000, "USD"),
        ({"event_data": {"sum": "1.299,00 €"}}, 1_299_000_000, "EUR"),
        ({"event_data": {"sum": "$12.99"}}, 12_990_000, "USD"),
        ({"event_data": {"sum": "-$12.99", "currency": "CAD"}}, -12_990_000, "CAD"),
        ({"event_data": {"sum": "12.99", "currency": "US$"}}, 12_990_000, "USD"),
        ({"event_data": {"sum": "12.99"}, "currency": " eur "}, 12_990_000, "EUR"),
        ({"event_data": '{"sum": 5}'}, 5_000_000, "USD"),
    ],
    ids=[
        "sum",
        "price, currency beside",
        "refund, currency inside",
        "sum goes first",
        "empty sum, rounded",
        "then revenue",
        "then value",
        "then amount",
        "price times quantity",
        "not zero",
        "but for zero",
        "comma",
        "groups",
        "groups and comma",
        "with its currency",
        "refund with another",
        "US$",
        "currency in blanks",
        "an object in a text",
    ],
)
def test_revenue(data: dict[str, Any], micros: int, currency: str) -> None:
    revenue = translate(body(**data)).event.revenue
    assert (revenue.amount_micros, revenue.currency_code) == (micros, currency)


def test_an_amount_without_a_currency_is_in_that_of_its_app() -> None:
    euro = replace(SHOP, currency_code="EUR")
    made = [
        translate_for(body(event_data=data), {"shop": euro}.get).record.event.revenue.currency_code
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


WRONG: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "unknown action": (body("dance"), {"action": "UNKNOWN_ACTION"}),
    "nothing": ({}, {"action": "REQUIRED"}),
    "no time": (body(usertime="soon"), {"data.usertime": "INVALID_TIME"}),
    "no time at the root": (body(root={"usertime": []}), {"usertime": "INVALID_TIME"}),
    "no flag": (body(device_limit_tracking="maybe"), {"data.device_limit_tracking": "INVALID_BOOLEAN"}),
    "array for a flag": (body(device_limit_tracking=[]), {"data.device_limit_tracking": "INVALID_BOOLEAN"}),
    "object for a name": (body(event_name={"a": 1}), {"data.event_name": "INVALID_TYPE"}),
    "text for event data": (body(event_data="x"), {"data.event_data": "INVALID_TYPE"}),
    "an object in a text": (body(event_data='{"a": 1}'), {"data.event_data": "INVALID_TYPE"}),
    "nested data": (
        body(event_data={"a": {}, "b": [1]}),
        {"data.event_data.a": "NOT_FLAT", "data.event_data.b": "NOT_FLAT"},
    ),
    "large amount": (body(event_data={"sum": "1e99"}), {"data.event_data.sum": "INVALID_AMOUNT"}),
    "nan": (body(event_data={"sum": "nan"}), {"data.event_data.sum": "INVALID_AMOUNT"}),
    "true for an amount": (body(event_data={"sum": True}), {"data.event_data.sum": "INVALID_AMOUNT"}),
    "an amount elsewhere": (body(event_data={"value": "5 pieces"}), {"data.event_data.value": "INVALID_AMOUNT"}),
    "no amount elsewhere": (body(event_data={"value": "gold", "amount": True}), {}),
    "no quantity": (
        body(event_data={"price": 1, "quantity": "few"}),
        {"data.event_data.quantity": "INVALID_AMOUNT"},
    ),
    "amount before currency": (
        body(event_data={"sum": "many"}, currency="euro"),
        {"data.event_data.sum": "INVALID_AMOUNT"},
    ),
    "currency": (body(event_data={"sum": 1}, currency="euro"), {"data.currency": "INVALID_CURRENCY"}),
    "number for a currency": (
        body(event_data={"sum": 1, "currency": 1}),
        {"data.event_data.currency": "INVALID_CURRENCY"},
    ),
    "deep link without a link": (
        body(root={"data": {"event_name": "_Deeplink", "event_data": {"uri": 1}, "usertime": []}}),
        {"data.event_data.uri": "INVALID_TYPE", "data.usertime": "INVALID_TIME"},
    ),
    "array for an id": (body(device_ids={"adid": ["A"]}), {"data.device_ids.adid": "INVALID_TYPE"}),
    "array of ids": (body(device_ids=["A"]), {"data.device_ids": "INVALID_TYPE"}),
    "an id that is none": (body(device_ids={"fb_id": "A"}), {"data.device_ids.fb_id": "UNKNOWN_DEVICE_ID"}),
    "a long id": (body(device_ids={"adid": "A" * 257}), {"data.device_ids.adid": "TOO_LONG"}),
    "a long id of its own": (body(gaid="A" * 257), {"data.gaid": "TOO_LONG"}),
    "number for transparency": (
        body(app_tracking_transparency=1),
        {"data.app_tracking_transparency": "INVALID_TYPE"},
    ),
    "all of transparency": (
        body(app_tracking_transparency={"att": 2, "att_detail": "perhaps", "att_time": "x"}),
        {
            "data.app_tracking_transparency.att": "INVALID_BOOLEAN",
            "data.app_tracking_transparency.att_detail": "INVALID_VALUE",
            "data.app_tracking_transparency.att_time": "INVALID_TIME",
        },
    ),
    "number for consent": (body(gdpr_privacy_consent=1), {"data.gdpr_privacy_consent": "INVALID_TYPE"}),
    "number for a referrer": (body("install", install_referrer=7), {"data.install_referrer": "INVALID_TYPE"}),
    "no state": (body("session", state="paused?"), {"data.state": "INVALID_VALUE"}),
    "number for data": (body(root={"data": 7}), {"data": "INVALID_TYPE"}),
    "several": (
        body(usertime="x", event_data={"a": {}, "network": "n"}),
        {"data.usertime": "INVALID_TIME", "data.event_data.a": "NOT_FLAT"},
    ),
}


@pytest.mark.parametrize(("value", "wanted"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named_at_once(value: dict[str, Any], wanted: dict[str, str]) -> None:
    assert wrong(value) == wanted


@pytest.mark.parametrize("usertime", [-1, 10**30, "99999999999999999999999999", -(10**40)])
def test_a_time_that_is_out_of_all_range_is_left_to_be_refused(usertime: Any) -> None:
    record = translate(body(usertime=usertime))
    assert not record.warnings
    assert record.event_time.seconds in (-1, 10**12)


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
    ("ids", "told"),
    [
        ({"idfa": "A", "idfv": "V"}, {"data.device_ids.idfa": "TRACKING_NOT_AUTHORIZED"}),
        ({"idfa_sha1": "A"}, {"data.device_ids.idfa_sha1": "TRACKING_NOT_AUTHORIZED"}),
        ({"idfa": "00000000-0000-0000-0000-000000000000"}, {}),
        ({}, {}),
    ],
    ids=["raw", "hashed", "nobody's", "none"],
)
def test_an_idfa_that_does_not_count_is_told(ids: dict[str, str], told: dict[str, str]) -> None:
    assert wrong(body(device_ua=IOS_17, device_ids=ids)) == told


def test_what_cannot_be_read_is_left_out_or_replaced() -> None:
    found = Violations()
    value = {
        "a": "x\0",
        "b": [{"c": "\udcff"}, NOT_A_NUMBER],
        "d\0": 1,
        "adid": "\ud800",
        "record_id": "r\0",
        "fine": "é",
    }
    assert readable_json(value, found) == {
        "a": "x\ufffd",
        "b": [{"c": "\ufffd"}, None],
        "d\ufffd": 1,
        "adid": None,
        "record_id": None,
        "fine": "é",
    }
    assert [(each.field, each.reason) for each in found.found] == [
        ("a", "INVALID_TEXT"), ("b[0].c", "INVALID_TEXT"), ("b[1]", "INVALID_NUMBER"), ("d\ufffd", "INVALID_TEXT"),
        ("adid", "INVALID_TEXT"), ("record_id", "INVALID_TEXT"),
    ]  # fmt: skip


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


_REFUSING = {
    ("app_id", "REQUIRED"), ("app_id", "UNKNOWN_APP"), ("kind", "REQUIRED"), ("event.event_name", "REQUIRED"),
    ("device_ids", "REQUIRED"), ("identity_link.identities", "REQUIRED"), ("event_time", "INVALID_TIME"),
    ("event_time", "EVENT_TIME_IN_FUTURE"), ("event_time", "EVENT_TIME_TOO_OLD"),
}  # fmt: skip


@given(_BODIES)
@pytest.mark.slow
def test_law_any_body_is_kept_or_leaves_nothing_to_work_with(value: dict[str, Any]) -> None:
    parsed, is_odd = parse_json(json.dumps(value).encode())
    assert isinstance(parsed, dict)
    record = translate_for(parsed, {"shop": SHOP}.get, is_odd=is_odd).record
    sent = record_pb2.Record.FromString(record.SerializeToString())
    assert sent == record
    admitted = admit(sent, SETTINGS, NOW_US, lambda _: "")
    if not isinstance(admitted, Entry):
        assert not _REFUSING.isdisjoint((each.field, each.reason) for each in admitted)


@given(_BODIES, st.text())
@pytest.mark.slow
def test_law_any_violation_can_be_told(value: dict[str, Any], field: str) -> None:
    for path in (field, f"event.{field}", f"device_ids.{field}", f"identity_link.{field}"):
        [found] = in_senders_words(value, [Violation(field=path, reason="R", description="d")])
        assert found.reason == "R"
