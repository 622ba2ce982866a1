"""Templates: the syntaxes of macros, escaping by place, and what is refused; and what each macro gives."""

import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import Violations
from reengage.attribution.v1 import decision_pb2
from reengage.ingest.v1 import record_pb2
from reengage.postback.v1 import conversion_pb2
from reengage.tracker.v1.app_pb2 import PLATFORM_IOS
from services.postback.adapters.adapter import Request
from services.postback.adapters.template import DESCRIPTION, Template, render
from services.postback.macros import MACROS, Values
from services.postback.validation import configured
from tests.postback.conftest import completed, configuration, purchase


def parsed(**fields: Any) -> tuple[Template, list[tuple[str, str]]]:
    """Returns a template, and the fields found wrong with the reasons."""
    written = {"method": "POST" if "body" in fields else "GET", "url": "https://a.example/", **fields}
    violations = Violations()
    template = configured(completed(configuration(template=written)), violations)
    assert isinstance(template, Template)
    return template, [(one.field.removeprefix("configuration.adapter_fields."), one.reason) for one in violations.found]


def rendered(values: dict[str, str], **fields: Any) -> Request:
    template, wrong = parsed(**fields)
    assert not wrong
    return render(template, lambda name: values.get(name, ""))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("{click_id}", "V"),
        ("{{click_id}}", "V"),
        ("(click_id)", "V"),
        ("[click_id]", "V"),
        ("%{click_id}", "V"),
        ("[cp_3]", "V"),
        ("{{secret.token}}", "V"),
        ("{own_key}", "V"),
        ("{{own_key}}", "{V}"),
        ("%{own_key}", "%V"),
        ("(own_key)", "(own_key)"),
        ("[own_key]", "[own_key]"),
        ("{click_id}{tracker_id}", "VV"),
        ("{ click_id }", "{ click_id }"),
        ("{}", "{}"),
    ],
)
def test_syntaxes_of_macros(written: str, read: str) -> None:
    values = dict.fromkeys(["click_id", "tracker_id", "cp_3", "secret.token", "own_key"], "V")
    assert rendered(values, body=written, headers={"content-type": "text/plain"}).body == read


@pytest.mark.parametrize(
    ("content_type", "template", "value", "body"),
    [
        ("application/json", '{"a": "{click_id}"}', 'x"\\\n', '{"a": "x\\"\\\\\\n"}'),
        ("application/vnd.api+json; charset=utf-8", '{"a": "{click_id}"}', '"', '{"a": "\\""}'),
        ("application/json", '{"\\"{click_id}": 1}', '"', '{"\\"\\"": 1}'),
        ("application/json", '{"a": {click_id}}', "12.5", '{"a": 12.5}'),
        ("application/json", '{"a": {click_id}}', "text", '{"a": "text"}'),
        ("application/json", '{"a": {click_id}}', '1, "admin": true', '{"a": "1, \\"admin\\": true"}'),
        ("application/json", '{"a": {click_id}}', "NaN", '{"a": "NaN"}'),
        ("application/json", '{"a": {click_id}}', "", '{"a": null}'),
        ("application/x-www-form-urlencoded", "a={click_id}&b=1", "x&y=z +", "a=x%26y%3Dz+%2B&b=1"),
        ("application/xml", "<a b='{click_id}'/>", "<'&\">", "<a b='&lt;&#x27;&amp;&quot;&gt;'/>"),
        ("text/plain", "{click_id}", '<"&', '<"&'),
    ],
)
def test_bodies_are_escaped_by_their_type(content_type: str, template: str, value: str, body: str) -> None:
    assert rendered({"click_id": value}, body=template, headers={"Content-Type": content_type}).body == body


def test_a_post_is_json_unless_it_says_otherwise() -> None:
    request = rendered({"click_id": '"'}, body='{"a": "{click_id}"}')
    assert (request.method, request.headers["Content-Type"], request.body) == (
        "POST",
        "application/json",
        '{"a": "\\""}',
    )


def test_values_cannot_leave_their_place() -> None:
    nasty = "a b/../?x=1&y=#\r\nHost: evil\u2028"
    request = rendered(
        {"click_id": nasty}, url="https://a.example/{click_id}?c={click_id}", headers={"x-c": "{click_id}"}
    )
    assert urlsplit(request.url).path.count("/") == 1
    assert parse_qs(urlsplit(request.url).query) == {"c": [nasty]}
    assert request.headers["x-c"] == "a b/../?x=1&y=#Host: evil"


@given(value=st.text(min_size=1))
def test_any_value_survives_json_and_url(value: str) -> None:
    request = rendered(
        {"click_id": value}, url="https://a.example/?c={click_id}", body='{"in": "{click_id}", "out": {click_id}}'
    )
    body = json.loads(request.body)
    assert body["in"] == value
    assert set(body) == {"in", "out"}
    assert parse_qs(urlsplit(request.url).query, keep_blank_values=True) == {"c": [value]}


def test_unmatched_macros_give_the_default() -> None:
    request = rendered({}, url="https://a.example/?a={click_id}&b={own}", default_value="n/a")
    assert request.url == "https://a.example/?a=n%2Fa&b=n%2Fa"
    assert request.unmatched == ("click_id", "own")


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"url": ""}, {("url", "REQUIRED")}),
        ({"url": "ftp://a.example/"}, {("url", "INVALID_URL")}),
        ({"url": "{click_id}"}, {("url", "INVALID_URL")}),
        ({"url": "https://{click_id}/"}, {("url", "INVALID_URL")}),
        ({"url": "https://a.example{click_id}/"}, {("url", "MACRO_IN_HOST")}),
        ({"url": "https://a.(network).example/"}, {("url", "MACRO_IN_HOST")}),
        ({"url": "https://user:pass@a.example/"}, {("url", "INVALID_URL")}),
        ({"url": "https://a.example/a b"}, {("url", "INVALID_URL")}),
        ({"url": "https://a.example/\r\nX: y"}, {("url", "INVALID_URL")}),
        ({"url": "https://a.example/" + "a" * 4096}, {("url", "TOO_LONG")}),
        ({"headers": {"X": "a\r\nY: b"}}, {("headers[X]", "INVALID_VALUE")}),
        ({"headers": {"X:": "a"}}, {("headers[X:]", "INVALID_NAME")}),
        ({"headers": {"webhook-ID": "a"}}, {("headers[webhook-ID]", "INVALID_NAME")}),
        ({"headers": {"Host": "a"}}, {("headers[Host]", "INVALID_NAME")}),
        ({"headers": {"a": "1", "A": "2"}}, {("headers", "REPEATED")}),
        ({"headers": {f"x-{n}": "1" for n in range(33)}}, {("headers", "TOO_MANY")}),
        ({"body": "x", "method": "GET"}, {("body", "NOT_ALLOWED")}),
        ({"body": "x" * 65537}, {("body", "TOO_LONG")}),
    ],
)
def test_what_is_refused(fields: dict[str, Any], wrong: set[tuple[str, str]]) -> None:
    assert set(parsed(**fields)[1]) == wrong


@pytest.mark.parametrize(("found", "said", "country"), [("DE", "FR", "DE"), ("", "FR", "FR"), ("", "", "")])
def test_the_country_is_that_of_the_address_else_what_the_sender_says(found: str, said: str, country: str) -> None:
    conversion = purchase()
    conversion.record.country, conversion.record.event.event_data["country"] = found, said
    assert Values(conversion, delivery_id="d", is_revenue=False).get("country") == country


def full_conversion() -> conversion_pb2.Conversion:
    conversion = purchase(
        event_name="Buy",
        campaign_id="campaign",
        engagement_id="click",
        matched_by=decision_pb2.MATCH_KIND_DEVICE_ID,
        lookback=Duration(seconds=3600, nanos=5),
        install_time=Timestamp(seconds=1_766_664_000),
        conversion_time=Timestamp(seconds=1_767_270_896, nanos=789_123_000),
    )
    conversion.record.MergeFrom(
        record_pb2.Record(
            device_ids={
                "idfa": "00000000-0000-0000-0000-000000000000",
                "idfv": "IDFV-1",
                "adid": "ADID-1",
                "android_id": "AID",
                "oaid": "{oaid}",
                "kochava_device_id": "KD",
            },
            ip_address="203.0.113.7",
            country="DE",
            user_agent="Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X)",
            limit_ad_tracking=True,
            tracking_transparency=record_pb2.TrackingTransparency(authorized=False),
            app_version="1.2",
            event=record_pb2.Event(event_data={"quantity": "2", "country": "FR", "own": "mine", "sum": "99"}),
        )
    )
    conversion.engagement.event_time.FromSeconds(1_767_267_296)
    conversion.engagement.click.ad.MergeFrom(
        record_pb2.AdDetails(
            site_id="site",
            sub_site_id="sub",
            creative_id="creative",
            custom_parameters={"cp_0": "zero", "cp_9": "nine", "own": "theirs", "link": "parameter"},
        )
    )
    conversion.names.MergeFrom(
        conversion_pb2.Names(
            tracker="T",
            campaign="C",
            segment="S",
            network="N",
            bundle_id="com.example",
            store_app_id="123",
            platform=PLATFORM_IOS,
            agency="A",
            custom_parameters={
                "cp_0": "the tracker's",
                "cp_2": "two",
                "own": "the tracker's",
                "more": "of the tracker",
            },
        )
    )
    return conversion


MACRO_VALUES = {
    "event_name": "Buy",
    "event_time": "2026-01-01T12:34:56.789Z",
    "event_timestamp": "1767270896",
    "revenue": "12.5",
    "price": "12.5",
    "currency": "EUR",
    "quantity": "2",
    "click_id": "their click",
    "engagement_id": "click",
    "engagement_time": "2026-01-01T11:34:56.000Z",
    "impression_id": "",
    "site_id": "site",
    "sub_site_id": "sub",
    "creative_id": "creative",
    "tracker_id": "tracker",
    "tracker": "T",
    "campaign_id": "campaign",
    "campaign": "C",
    "segment": "S",
    "network_id": "network",
    "network": "N",
    "agency": "A",
    "attribution_type": "reengagement",
    "matched_by": "device_id",
    "lookback": "3600",
    "install_time": "2025-12-25T12:00:00.000Z",
    "device_id": "IDFV-1",
    "idfa": "",
    "idfv": "IDFV-1",
    "adid": "ADID-1",
    "android_id": "AID",
    "oaid": "",
    "kochava_device_id": "KD",
    "ip_address": "203.0.113.7",
    "device_ua": "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X)",
    "country": "DE",
    "os": "ios",
    "os_version": "17.2",
    "app_id": "app",
    "app_version": "1.2",
    "bundle_id": "com.example",
    "store_app_id": "123",
    "limit_ad_tracking": "1",
    "att_status": "denied",
    "delivery_id": "the id",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *MACRO_VALUES.items(),
        ("cp_0", "zero"),
        ("cp_9", "nine"),
        ("cp_1", ""),
        ("cp_2", "two"),
        ("more", "of the tracker"),
        ("own", "mine"),
        ("link", "parameter"),
        ("sum", "99"),
        ("nothing", ""),
    ],
)
def test_macros(name: str, value: str) -> None:
    assert Values(full_conversion(), delivery_id="the id", is_revenue=True).get(name) == value


def test_the_table_names_every_macro() -> None:
    assert set(MACRO_VALUES) == set(MACROS)


def test_the_adapter_s_help_names_every_macro() -> None:
    """That is the list that people look macros up in."""
    listed = set(re.findall(r"\{(\w+)\}", DESCRIPTION.help)) - {"macro", "name"}
    assert listed == {*MACROS, "cp_0", "cp_9"}


@pytest.mark.parametrize("name", ["revenue", "price", "currency", "sum"])
def test_amounts_are_withheld_unless_wanted(name: str) -> None:
    assert Values(full_conversion(), delivery_id="", is_revenue=False).get(name) == ""


@pytest.mark.parametrize(("micros", "text"), [(0, "0"), (1, "0.000001"), (-2_500_000, "-2.5"), (10_000_000, "10")])
def test_amounts(micros: int, text: str) -> None:
    conversion = purchase()
    conversion.record.event.revenue.amount_micros = micros
    assert Values(conversion, delivery_id="", is_revenue=True).get("revenue") == text


def test_macros_of_an_impression_and_an_install() -> None:
    conversion = purchase(event_name="_install", attribution_type=decision_pb2.ATTRIBUTION_TYPE_INSTALL)
    conversion.engagement.impression.MergeFrom(
        record_pb2.Impression(impression_id="view", ad=record_pb2.AdDetails(site_id="site"))
    )
    values = Values(conversion, delivery_id="", is_revenue=False)
    names = ("impression_id", "click_id", "site_id", "attribution_type")
    assert [values.get(name) for name in names] == ["view", "", "site", "install"]
