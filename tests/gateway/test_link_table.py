"""Links as networks, people and mail programs leave them: none loses its click, and nothing that it says."""

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import pytest

from reengage.ingest.v1 import record_pb2
from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID, App
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.tracker_pb2 import Tracker
from services.tracker.links import tracker_links
from tests.gateway.in_memory import ANDROID, NOW_S, PEER, ask, settings_of

A = "cdda802e-fb9c-47ad-9866-0794d394c912"
KEY = "k" * 16
PLAY = "https://play.google.com/store/apps/details?id=com.shop"
SETTINGS = settings_of(
    App(app_id="shop", platform=PLATFORM_ANDROID, url_schemes=["shop"]),
    Tracker(tracker_id="R", app_id="shop", network_id="acme", install_url=PLAY),
    Tracker(tracker_id="ko-shop-android-1a2b", app_id="shop", network_id="acme", install_url=PLAY),
    Tracker(tracker_id="twin", app_id="shop", install_url=PLAY),
    Tracker(tracker_id="Twin", app_id="shop", install_url=PLAY),
    Tracker(tracker_id="checked", app_id="shop", install_url=PLAY, click_validation_key=KEY),
    Tracker(tracker_id="land", app_id="shop", install_url="https://shop.example/sale?a=1#top"),
    Tracker(
        tracker_id="play",
        app_id="shop",
        install_url=PLAY,
        destination_type=Tracker.DESTINATION_TYPE_GOOGLE_REFERRER,
    ),
    Tracker(tracker_id="item", app_id="shop", install_url=PLAY, deep_link="https://shop.example/p/{productId}"),
)
CLICK = "/v1/cpi/click?campaign_id=ko-shop-android-1a2b&network_id=221"


NOTHING: Mapping[str, Any] = MappingProxyType({})


class Kept(NamedTuple):
    """A link, and what of it is in the record: ids, custom parameters, and fields of the click, its ad and itself."""

    link: str
    ids: Mapping[str, str] = NOTHING
    custom: Mapping[str, str] = NOTHING
    fields: Mapping[str, Any] = NOTHING


SAID = {"site_id", "sub_site_id", "creative_id", "partner_campaign_id", "partner_campaign_name", "click_id"}
"""Fields that hold what links say of ads: no more of them are in a record than its link gives."""


def fields_of(record: record_pb2.Record) -> dict[str, Any]:
    """Returns the fields of a click's record, its ad's and its own by their names."""
    own, click = record.ListFields(), record.click.ListFields()
    return {field.name: value for field, value in (*own, *click, *record.click.ad.ListFields())}


ID = {"adid": A}
TABLE = {
    # As people and mail programs leave them.
    "our own": Kept(f"/c/R?adid={A}", ID),
    "a slash at the end of the path": Kept(f"/c/R/?adid={A}", ID),
    "a dot at the end of the path": Kept(f"/c/R.?adid={A}", ID),
    "nothing but a dot": Kept("/c/R."),
    "a comma": Kept("/c/R,"),
    "a bracket and a dot": Kept("/c/R)."),
    "a space": Kept("/c/R%20"),
    "a space and a query": Kept(f"/c/R%20?adid={A}", ID),
    "upper-case path": Kept(f"/C/R?adid={A}", ID),
    "lower-case tracker": Kept(f"/c/r?adid={A}", ID),
    "upper-case tracker": Kept(f"/C/KO-SHOP-ANDROID-1A2B?adid={A}", ID),
    "two slashes before": Kept(f"//c/R?adid={A}", ID),
    "two slashes inside": Kept(f"/c//R?adid={A}", ID),
    "& for ?": Kept(f"/c/R&adid={A}", ID),
    "& for ? with a value encoded": Kept("/c/R&site_id=a%26b&x=1", {}, {"x": "1"}, {"site_id": "a&b"}),
    "/& for ?": Kept(f"/c/R/&adid={A}&site_id=s", ID, {}, {"site_id": "s"}),
    "& for ? and then ?": Kept(f"/c/R&adid={A}?site_id=s", ID, {}, {"site_id": "s"}),
    "? encoded": Kept(f"/c/R%3Fadid={A}&site_id=s", ID, {}, {"site_id": "s"}),
    "all encoded": Kept(f"/c/R%3Fadid%3D{A}%26site_id%3Ds", ID, {}, {"site_id": "s"}),
    "& behind ?": Kept(f"/c/R?&site_id=s&adid={A}&cp_1=0", ID, {"cp_1": "0"}, {"site_id": "s"}),
    "&amp;": Kept(f"/c/R?site_id=s&amp;adid={A}&amp;cp_0=x", ID, {"cp_0": "x"}, {"site_id": "s"}),
    "&amp; twice": Kept(f"/c/R?site_id=s&amp;amp;adid={A}", ID, {}, {"site_id": "s"}),
    "&AMP;": Kept(f"/c/R?site_id=s&AMP;adid={A}", ID, {}, {"site_id": "s"}),
    "&amp; encoded": Kept(f"/c/R?site_id=s&amp%3Badid={A}", ID, {}, {"site_id": "s"}),
    "a dot at the end": Kept(f"/c/R?adid={A}.", ID),
    "a comma at the end": Kept(f"/c/R?adid={A},", ID),
    "a bracket at the end": Kept(f"/c/R?adid={A})", ID),
    "a slash at the end": Kept(f"/c/R?adid={A}/", ID),
    "a space at the end": Kept(f"/c/R?adid={A}%20", ID),
    "a plus at the end": Kept(f"/c/R?adid={A}+", ID),
    "all of it at the end": Kept(f"/c/R?adid={A}).%20", ID),
    "brackets that are a pair": Kept("/c/R?site_id=a(b)", {}, {}, {"site_id": "a(b)"}),
    "the end of a sentence that is a value": Kept("/c/R?q=Foo+Inc.", {}, {"q": "Foo Inc."}),
    "a path's own slash": Kept("/c/R?url=https://x.example/a/", {}, {"url": "https://x.example/a/"}),
    "upper-case keys": Kept(
        f"/c/R?ADID={A}&SITE_ID=s&Click_Id=c&CP_0=x", ID, {"cp_0": "x"}, {"site_id": "s", "click_id": "c"}
    ),
    "keys of one's own keep their case": Kept("/c/R?utmSource=N&Adid=x&adid=y", {"adid": "x"}, {"utmSource": "N"}),
    "? for &": Kept(f"/c/R?adid={A}?click_id=c?site_id=s", ID, {}, {"click_id": "c", "site_id": "s"}),
    "? inside of a value": Kept("/c/R?q=why?x=1", {}, {"q": "why?x=1"}),
    "? inside of a URL": Kept("/c/R?url=http://x.example?site_id=z", {}, {"url": "http://x.example?site_id=z"}),
    "a very long query": Kept(f"/c/R?adid={A}&x={'y' * 30_000}", ID, {"x": "y" * 4096}),
    # As networks make them.
    "older form": Kept(f"{CLICK}&device_id={A}&device_id_type=adid&site_id=p277-", ID, {}, {"site_id": "p277-"}),
    "older form in upper case": Kept(f"/V1/CPI/CLICK/?CAMPAIGN_ID=r&DEVICE_ID={A}", ID),
    "older form with &": Kept(f"/v1/cpi/click&campaign_id=R&adid={A}", ID),
    "campaign named twice": Kept(f"/v1/cpi/click?campaign_id?campaign_id=R&network_id=3603&adid={A}", ID),
    "campaign not first": Kept(
        "/v1/cpi/click?i_cid=int-1782&amp;campaign_id=R&amp;network_id=2708&amp;device_id=device_id&amp;site_id=1"
        "&amp;append_app_conv_trk_params=1", {}, {"i_cid": "int-1782"}, {"site_id": "1"}
    ),
    "campaign at the end of a sentence": Kept("/v1/cpi/click?campaign_id=R)."),
    "own name as value": Kept(f"{CLICK}&device_id=device_id&site_id=1", {}, {}, {"site_id": "1"}),
    "a web page's JSON": Kept(
        f"{CLICK}&device_id=device_id&ko_exchange=true&aftr=%7B%22vh%22%3A%22ext13%22%2C%22referrer%22%3A%22https%3A%2F%2Fa"
        "%2F%22%7D&aftr_source=%2Fvpn", {}, {"ko_exchange": "true", "aftr": '{"vh":"ext13","referrer":"https://a/"}',
                                             "aftr_source": "/vpn"},
    ),
    "JSON that is not encoded": Kept('/c/R?aftr={"a":[1,2]}&x=[]', {}, {"aftr": '{"a":[1,2]}', "x": "[]"}),
    "names with brackets": Kept(
        "/c/R?partner_campaign_name=[US]%20Retarget%20[v2]&site_id={a}b&creative_id=(x)y",
        {}, {}, {"partner_campaign_name": "[US] Retarget [v2]", "site_id": "{a}b", "creative_id": "(x)y"},
    ),
    "a link of its own inside": Kept(
        "/c/R?site_id=univision&creative_id=evergreen&lpurl=https://vix.example/x&cp_1=referral"
        "&deeplink=shop://canales", {}, {"lpurl": "https://vix.example/x", "cp_1": "referral",
                                         "deeplink": "shop://canales"},
        {"creative_id": "evergreen", "site_id": "univision"},
    ),
    "macros in braces": Kept(f"{CLICK}&click_id={{logid}}&site_id={{{{publisher.bundle}}}}&creative_id={{c.title}}"),
    "macros in percent signs": Kept(f"{CLICK}&click_id=%{{bid_id}}&site_id=%%SITE%%&creative_id=%CREATIVE%"),
    "a macro that looks encoded": Kept(f"{CLICK}&click_id=%AD_ID%&site_id=%DEVICE_ID%&adid=%%ADID%%"),
    "a macro encoded twice": Kept(f"{CLICK}&click_id=%257Bclick_id%257D&site_id=%257B%257Bid%257D%257D"),
    "macros in other marks": Kept(
        f"{CLICK}&click_id=__CLICKID__&site_id=${{SITE}}&sub_site_id=[id]&creative_id=##creative##&cp_0=<x>&cp_1=$y$"
    ),
    "null as asked for": Kept(f"{CLICK}&click_id=null&device_id=NULL&site_id=null"),
    "a click id of nobody": Kept(f"{CLICK}&click_id=undefined&site_id=s", {}, {}, {"site_id": "s"}),
    "the whole of it": Kept(
        f"{CLICK}&ad_platform=x&ad_type=non_incent&bid_type=CPI&bid_won=0.25&click_id=c-1&creative_id=cr&creative_size=320x50"
        f"&creative_type=banner&device_id={A}&device_id_type=adid&impression_id=i-1&language=en&partner_campaign_id=88"
        "&partner_campaign_name=Spring+Sale&site_id=s&sub_site_id=ss&skan_campaign_id=7&source=m", ID,
        {"ad_platform": "x", "ad_type": "non_incent", "bid_type": "CPI", "bid_won": "0.25", "creative_size": "320x50",
         "creative_type": "banner", "impression_id": "i-1", "language": "en", "skan_campaign_id": "7", "source": "m"},
        {"click_id": "c-1", "creative_id": "cr", "partner_campaign_id": "88", "partner_campaign_name": "Spring Sale",
         "site_id": "s", "sub_site_id": "ss"},
    ),
    "other names of ids": Kept(f"{CLICK}&gaid={A}&android_id=9774d56d682e549d&mac=02:00:00:00:00:01",
                               {**ID, "android_id": "9774d56d682e549d", "mac": "02:00:00:00:00:01"}),
    "an id by its type": Kept(f"{CLICK}&device_id=x1&device_id_type=OAID", {"oaid": "x1"}),
    "an id by the type gaid": Kept(f"{CLICK}&device_id={A}&device_id_type=gaid", ID),
    "a type that nobody knows": Kept(f"{CLICK}&device_id={A}&device_id_type=google_id", ID),
    "a hashed id": Kept(f"{CLICK}&device_id={'a' * 40}&device_id_is_hashed=true", {"adid_sha1": "a" * 40}),
    "a hash by its method": Kept(f"{CLICK}&device_id={'a' * 32}&device_hash_method=MD5", {"adid_md5": "a" * 32}),
    "a hash by its name": Kept(f"{CLICK}&adid_sha1={'a' * 40}", {"adid_sha1": "a" * 40}),
    "ids of iOS": Kept(f"{CLICK}&ios_idfa={A}", {"idfa": A}),
    "two names of one id": Kept(f"{CLICK}&gaid=x1&adid=x2", {"adid": "x1"}),
    "an id that is too long": Kept(f"{CLICK}&adid={'x' * 300}&site_id=s", {}, {}, {"site_id": "s"}),
    "a click id that is too long": Kept(f"{CLICK}&click_id={'x' * 300}", {}, {}, {"click_id": "x" * 256}),
    "a site that is too long": Kept(f"{CLICK}&site_id={'é' * 300}", {}, {}, {"site_id": "é" * 256}),
    "a name that is too long": Kept(
        f"{CLICK}&partner_campaign_name={'é' * 3_000}&cp_0={'é' * 3_000}", {}, {"cp_0": "é" * 2048},
        {"partner_campaign_name": "é" * 2048},
    ),
    "a key that is too long": Kept(f"{CLICK}&{'k' * 300}=x", {}, {"k" * 256: "x"}),
    "consent": Kept(f"{CLICK}&att=1&att_time=2025-11-24T15:43:20Z&adid={A}", ID),
    "UTF-8 that is not encoded": Kept("/c/R?partner_campaign_name=Été", {}, {}, {"partner_campaign_name": "Été"}),
    "no UTF-8": Kept("/c/R?site_id=%ff", {}, {}, {"site_id": "\ufffd"}),
    "NUL": Kept("/c/R?site_id=a%00b", {}, {}, {"site_id": "ab"}),
    # Server pings.
    "ping": Kept(
        f"{CLICK}&adid={A}&ip_address=198.51.100.1&device_ua=Phone%201&click_time=1763999000", ID, {},
        {"ip_address": "198.51.100.1", "user_agent": "Phone 1", "is_ping": True},
    ),
    "ping without a user agent": Kept(
        f"{CLICK}&adid={A}&ip_address=2001:db8::1", ID, {}, {"ip_address": "2001:db8::1", "user_agent": ANDROID}
    ),
    "ping with an address that is none": Kept(f"{CLICK}&adid={A}&ip_address=here", ID, {}, {"ip_address": PEER}),
    "ping with a chain": Kept(f"{CLICK}&ip_address=198.51.100.1,10.0.0.1", {}, {}, {"ip_address": "198.51.100.1"}),
    "ping with a user agent encoded twice": Kept(
        f"{CLICK}&device_ua=Mozilla%252F5.0%2520%2528Linux%2529", {}, {}, {"user_agent": "Mozilla/5.0 (Linux)"}
    ),
    "ping with macros": Kept(
        f"{CLICK}&ip_address={{ip}}&user_agent=%{{user_agent}}&click_time=[time]", {}, {},
        {"ip_address": PEER, "user_agent": ANDROID},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kept", TABLE.values(), ids=TABLE)
def test_what_a_link_says_is_kept(kept: Kept) -> None:
    answer = ask(SETTINGS, kept.link)
    assert (answer.status, answer.sign) == (302, "")
    assert answer.location.startswith(PLAY)
    record = answer.record
    assert record is not None
    assert answer.location.endswith(f"&ko_click_id={record.record_id}")
    found = fields_of(record)
    assert dict(record.device_ids) == dict(kept.ids)
    assert dict(record.click.ad.custom_parameters) == dict(kept.custom)
    assert {name: found.get(name) for name in kept.fields} == dict(kept.fields)
    assert {name for name in found if name in SAID} == {name for name in kept.fields if name in SAID}
    assert not record.click.invalid


@pytest.mark.parametrize(
    "link", ["/c/nobody", "/c/", "/c/TWIN", "/c/R/more", "/v1/cpi/click", "/v1/cpi/click?campaign_id=x"]
)
def test_a_link_of_nobody_says_so(link: str) -> None:
    """Of two trackers whose ids differ in their case alone a link in another case names neither."""
    answer = ask(SETTINGS, link)
    assert (answer.status, answer.sign, answer.record) == (404, "refused UNKNOWN_TRACKER", None)


@pytest.mark.parametrize("name", ["twin", "Twin"])
def test_ids_that_differ_in_case_are_two(name: str) -> None:
    record = ask(SETTINGS, f"/c/{name}").record
    assert record is not None
    assert record.click.tracker_id == name


@pytest.mark.parametrize("tracker_id", ["R", "ko-shop-android-1a2b", "twin", "Twin"])
@pytest.mark.parametrize("as_read", [str, str.lower, "{}.".format, "{}?adid=x".format, "{}&adid=x".format])
def test_short_links(tracker_id: str, as_read: Callable[[str], str]) -> None:
    tracker = Tracker(tracker_id=tracker_id)
    short = tracker_links(tracker, Network(network_id="acme")).short
    assert re.fullmatch("/C/[0-9A-Z]{10}", short), "what a QR code holds in half the room"
    record = ask(SETTINGS, as_read(short)).record
    assert record is not None
    assert record.click.tracker_id == tracker_id


@pytest.mark.parametrize("path", ["/v1/cpi/clicks", "/track/impressions", "/cc/R", "/", "/track/jsonx", "/c"])
def test_other_paths_are_no_links(path: str) -> None:
    assert ask(SETTINGS, path).record is None


@pytest.mark.parametrize(
    "path", ["/track/impression", "/TRACK/Impression", "/track/impression/", "/track/impression.", "//track/impression"]
)
def test_impressions_too(path: str) -> None:
    answer = ask(SETTINGS, f"{path}?event=view&amp;campaign_id=r&amp;impression_id=i-1&click_id=c&Site_ID=s.")
    assert answer.status == 204
    assert answer.record is not None
    seen = answer.record.impression
    assert (seen.tracker_id, seen.impression_id, seen.ad.site_id) == ("R", "i-1", "s")
    assert dict(seen.ad.custom_parameters) == {"click_id": "c"}


def signed(link: str) -> str:
    return f"{link}&signature={hmac.new(KEY.encode(), link.encode(), hashlib.sha256).hexdigest()}"


GOOD = signed(f"/c/checked?adid={A}&expires=1764000060")


@pytest.mark.parametrize(
    ("link", "invalidity", "ids"),
    [
        pytest.param(GOOD, "UNSPECIFIED", ID, id="good"),
        pytest.param(f"{GOOD}&android_id=evil&site_id=evil", "UNSPECIFIED", ID, id="parameters behind it"),
        pytest.param(f"{GOOD}&adid=evil&signature={'0' * 64}", "UNSPECIFIED", ID, id="another signature behind it"),
        pytest.param(f"{GOOD}.", "UNSPECIFIED", ID, id="a dot behind it"),
        pytest.param(GOOD.replace("&", "&amp;"), "UNSPECIFIED", ID, id="&amp;"),
        pytest.param(GOOD.replace("/c/checked", "/C/CHECKED/"), "UNSPECIFIED", ID, id="upper case"),
        pytest.param(GOOD.replace("?", "&"), "UNSPECIFIED", ID, id="& for ?"),
        pytest.param(
            signed(f"/v1/cpi/click?campaign_id=checked&adid={A}&expires=1764000060"), "UNSPECIFIED", ID, id="older form"
        ),
        pytest.param(GOOD.replace(A, "evil"), "BAD_SIGNATURE", {"adid": "evil"}, id="another id"),
        pytest.param(signed(f"/c/checked?adid={A}&expires=1763999999"), "BAD_SIGNATURE", ID, id="expired"),
        pytest.param(f"/c/checked?adid={A}", "BAD_SIGNATURE", ID, id="none"),
    ],
)
def test_signed_links(link: str, invalidity: str, ids: dict[str, str]) -> None:
    """Whoever has a link that is signed can write something behind it, but is not believed."""
    answer = ask(SETTINGS, link)
    assert answer.status == 302
    assert answer.record is not None
    click = answer.record.click
    assert record_pb2.Invalidity.Name(click.invalidity) == f"INVALIDITY_{invalidity}"
    assert (dict(answer.record.device_ids), click.ad.site_id) == (ids, "")
    assert answer.sign == ("" if invalidity == "UNSPECIFIED" else f"invalid {invalidity}")


def test_a_ping_of_no_time_is_kept_and_says_so() -> None:
    answer = ask(SETTINGS, "/c/R?click_time=soon&ip_address=198.51.100.1")
    assert (answer.status, answer.sign) == (302, "invalid TIME_NOT_READABLE")
    assert answer.record is not None
    assert (answer.record.click.invalid, answer.record.event_time.seconds) == (True, int(NOW_S))


@pytest.mark.parametrize("link", ["/c/R", "/track/impression?campaign_id=R"])
def test_what_ingest_refuses_is_in_a_header(link: str) -> None:
    assert ask(SETTINGS, link, refusals=["UNKNOWN_TRACKER", "TOO_LONG"]).sign == "refused UNKNOWN_TRACKER TOO_LONG"


@pytest.mark.parametrize("on", ["1", "true", "TRUE"])
def test_parameters_are_passed_on(on: str) -> None:
    answer = ask(
        SETTINGS,
        f"/c/land?click_id=c&a=2&A=3&utm_source=x%26y&adid={A}&append_app_conv_trk_params={on}&referrer=r&ko_click_id=k",
    )
    found = urlsplit(answer.location)
    assert (found.scheme, found.netloc, found.path, found.fragment) == ("https", "shop.example", "/sale", "top")
    assert answer.record is not None
    assert parse_qsl(found.query) == [
        ("a", "1"), ("click_id", "c"), ("utm_source", "x&y"), ("adid", A), ("ko_click_id", answer.record.record_id),
    ]  # fmt: skip


@pytest.mark.parametrize("off", ["", "&append_app_conv_trk_params=0", "&append_app_conv_trk_params={x}"])
def test_parameters_are_not_passed_on_unasked(off: str) -> None:
    assert parse_qsl(urlsplit(ask(SETTINGS, f"/c/land?click_id=c&b=2{off}").location).query)[:-1] == [("a", "1")]


def test_the_play_referrer_carries_the_parameters() -> None:
    answer = ask(SETTINGS, "/c/play?cp_0=x&utm_source=news&click_id=c&ko_click_id=forged")
    referrer = dict(parse_qsl(dict(parse_qsl(urlsplit(answer.location).query))["referrer"]))
    assert answer.record is not None
    assert referrer == {"ko_click_id": answer.record.record_id, "cp_0": "x", "utm_source": "news"}
    passed = ask(SETTINGS, "/c/play?cp_0=x&click_id=c&id=com.evil&append_app_conv_trk_params=1")
    query = dict(parse_qsl(urlsplit(passed.location).query))
    assert query["id"] == "com.shop"
    assert dict(parse_qsl(query["referrer"])).keys() == {"ko_click_id", "cp_0", "click_id", "id"}


@pytest.mark.parametrize("key", ["productId", "productid", "PRODUCTID"])
def test_a_deep_link_is_filled_by_the_key_as_it_is_written(key: str) -> None:
    filled = ask(SETTINGS, f"/c/item?{key}=7").location.startswith("https://shop.example/p/7?")
    assert filled == (key != "PRODUCTID")
