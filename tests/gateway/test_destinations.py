"""The places that clicks lead to where the app is there, and where it is not."""

import html
import json
import re
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reengage.ingest.v1 import record_pb2
from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID, PLATFORM_IOS, App
from reengage.tracker.v1.status_pb2 import STATUS_ARCHIVED
from reengage.tracker.v1.tracker_pb2 import Tracker
from services.gateway.redirect import deferred_deep_link
from services.gateway.settings import GatewaySettings
from tests.gateway.in_memory import ANDROID, DESKTOP, IPHONE, MAC_CHROME, NOW_S, SAFARI, Answer, ask, settings_of

PLAY = "https://play.google.com/store/apps/details?id=com.shop"
STORE = "https://apps.apple.com/app/id1"
FALLBACK = "https://shop.example/app"
IPAD = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_6) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148"
ON_ANDROID = {"facebook": f"{ANDROID} [FB_IAB/FB4A;FBAV/440.0;]", "instagram": f"{ANDROID} Instagram 310.0 Android",
              "webview": ANDROID.replace("Pixel 8", "Pixel 8; wv"), "okhttp": "okhttp/4.12.0",
              "dalvik": "Dalvik/2.1.0 (Linux; U; Android 14; Pixel 8)"}  # fmt: skip
ON_IOS = {
    "facebook": f"{IPHONE} [FBAN/FBIOS;FBDV/iPhone15,2]",
    "ipad": IPAD,
    "chrome": IPHONE.replace("Version", "CriOS"),
    "ipad in an app": f"{IPAD} [FBAN/FBIOS;FBDV/iPad13,4]",
    "cfnetwork": "Shop/1 CFNetwork/1410 Darwin/22.6.0",
}
ELSEWHERE = {"desktop": DESKTOP, "mac": MAC_CHROME, "nothing": "", "bot": "Googlebot/2.1", "windows phone":
             "Mozilla/5.0 (Windows Phone 10.0; Android 6.0.1; Lumia) like iPhone"}  # fmt: skip


def shop(platform: int = PLATFORM_ANDROID, *, app: dict[str, Any] | None = None, **tracker: Any) -> GatewaySettings:
    of_app = {"app_id": "shop", "platform": platform, "url_schemes": ["shop"], "bundle_id": "com.shop", **(app or {})}
    install_url = PLAY if platform == PLATFORM_ANDROID else STORE
    return settings_of(
        App(**of_app), Tracker(**{"tracker_id": "t", "app_id": "shop", "install_url": install_url, **tracker})
    )


def opened(answer: Answer) -> tuple[str, str]:
    """Returns the two URLs of the page that opens an app."""
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "script-src 'sha256-" in answer.headers["content-security-policy"]
    found = re.findall(r'id="(?:open|go)" href="([^"]*)"', answer.body.decode())
    url, fallback = map(html.unescape, found)
    return url, fallback


ID = f"ko_click_id={int(NOW_S * 1000):012x}{bytes(10).hex()}"
CUSTOM: dict[str, Any] = {"deep_link": "shop://p/{sku}"}


@pytest.mark.parametrize("agent", [ANDROID, *ON_ANDROID.values()])
def test_a_custom_scheme_on_android(agent: str) -> None:
    answer = ask(shop(**CUSTOM), "/c/t?sku=7", agent)
    fallback = quote(f"{PLAY}&{ID}", safe="")
    assert answer.status == 302
    assert answer.location == (
        f"intent://p/7?{ID}#Intent;scheme=shop;package=com.shop;S.browser_fallback_url={fallback};end"
    )


@pytest.mark.parametrize("agent", [IPHONE, *ON_IOS.values()])
def test_a_custom_scheme_on_ios(agent: str) -> None:
    assert opened(ask(shop(PLATFORM_IOS, **CUSTOM), "/c/t?sku=7", agent)) == (f"shop://p/7?{ID}", f"{STORE}?{ID}")


@pytest.mark.parametrize("agent", [ANDROID, *ON_ANDROID.values(), *ELSEWHERE.values()])
def test_elsewhere_an_ios_link_leads_to_the_store(agent: str) -> None:
    assert ask(shop(PLATFORM_IOS, **CUSTOM), "/c/t?sku=7", agent).location == f"{STORE}?{ID}"


@pytest.mark.parametrize("agent", [IPHONE, SAFARI, *ON_IOS.values(), *ELSEWHERE.values()])
def test_elsewhere_an_android_link_leads_to_the_store(agent: str) -> None:
    assert ask(shop(**CUSTOM), "/c/t?sku=7", agent).location == f"{PLAY}&{ID}"


def test_what_may_be_an_ipad_finds_out_in_the_browser() -> None:
    answer = ask(shop(PLATFORM_IOS, **CUSTOM), "/c/t?sku=7", SAFARI)
    assert opened(answer) == (f"shop://p/7?{ID}", f"{STORE}?{ID}")
    assert b"data-touch" in answer.body
    assert b"data-touch" not in ask(shop(PLATFORM_IOS, **CUSTOM), "/c/t?sku=7", IPHONE).body


HTTPS = {"deep_link": "https://shop.example/p/{sku}"}
MARKET = {
    "install_url": "market://details?id=com.shop",
    "destination_type": Tracker.DESTINATION_TYPE_GOOGLE_REFERRER,
}
INTENT = {"deep_link": "intent://p/{sku}#Intent;scheme=shop;package=com.shop;end"}
FOR_APP = {"fallback_url": FALLBACK}


@pytest.mark.parametrize(
    ("platform", "agent", "app", "tracker", "wanted"),
    [
        pytest.param(PLATFORM_IOS, IPHONE, {}, HTTPS, f"https://shop.example/p/7?{ID}", id="universal link"),
        pytest.param(PLATFORM_ANDROID, ANDROID, {}, HTTPS, f"https://shop.example/p/7?{ID}", id="app link"),
        pytest.param(PLATFORM_ANDROID, DESKTOP, {}, HTTPS, f"{PLAY}&{ID}", id="https on a desktop"),
        pytest.param(PLATFORM_ANDROID, DESKTOP, FOR_APP, CUSTOM, f"{PLAY}&{ID}", id="the store goes first"),
        pytest.param(
            PLATFORM_ANDROID, DESKTOP, FOR_APP, {"install_url": ""}, f"{FALLBACK}?{ID}", id="no store: the fallback"
        ),
        pytest.param(PLATFORM_ANDROID, DESKTOP, {}, {"install_url": ""}, "", id="nothing"),
        pytest.param(
            PLATFORM_ANDROID, ANDROID, FOR_APP, {"install_url": "", **CUSTOM},
            f"intent://p/7?{ID}#Intent;scheme=shop;package=com.shop;S.browser_fallback_url="
            f"{quote(f'{FALLBACK}?{ID}', safe='')};end", id="scheme and the fallback",
        ),
        pytest.param(
            PLATFORM_ANDROID, ANDROID, {}, {"install_url": "", **CUSTOM}, f"shop://p/7?{ID}", id="scheme alone"
        ),
        pytest.param(
            PLATFORM_ANDROID, ANDROID, {}, INTENT,
            f"intent://p/7?{ID}#Intent;scheme=shop;package=com.shop;S.browser_fallback_url="
            f"{quote(f'{PLAY}&{ID}', safe='')};end", id="intent",
        ),
        pytest.param(
            PLATFORM_ANDROID, ANDROID, {},
            {"deep_link": "intent://p#Intent;scheme=shop;S.browser_fallback_url=https%3A%2F%2Fshop.example;end"},
            f"intent://p?{ID}#Intent;scheme=shop;S.browser_fallback_url=https%3A%2F%2Fshop.example;end",
            id="intent with a fallback of its own",
        ),
        pytest.param(
            PLATFORM_ANDROID, ANDROID, {}, {"deep_link": "intent://p#Intent;scheme=other;end"}, f"{PLAY}&{ID}",
            id="intent of another scheme",
        ),
        pytest.param(PLATFORM_ANDROID, DESKTOP, {}, INTENT, f"{PLAY}&{ID}", id="intent on a desktop"),
        pytest.param(
            PLATFORM_ANDROID, ANDROID, {"bundle_id": "not;a=package"}, {"deep_link": "shop:home#x"},
            f"intent:home?{ID}#x#Intent;scheme=shop;S.browser_fallback_url={quote(f'{PLAY}&{ID}', safe='')};end",
            id="no package, no host, a fragment",
        ),
        pytest.param(
            PLATFORM_ANDROID, ANDROID, FOR_APP, {"status": STATUS_ARCHIVED, **CUSTOM}, f"{FALLBACK}?{ID}", id="archived"
        ),
        pytest.param(PLATFORM_ANDROID, ANDROID, {}, {"status": STATUS_ARCHIVED}, "", id="archived, and no fallback"),
        pytest.param(
            PLATFORM_ANDROID, ANDROID, {},
            {"install_url": "https://shop.example/sale", "destination_type": Tracker.DESTINATION_TYPE_LANDING_PAGE},
            f"https://shop.example/sale?{ID}", id="landing page",
        ),
        pytest.param(
            PLATFORM_ANDROID, ANDROID, {},
            MARKET,
            f"market://details?id=com.shop&referrer={quote(f'{ID}&sku=7', safe='')}", id="market",
        ),
        pytest.param(
            PLATFORM_ANDROID, DESKTOP, {},
            MARKET,
            f"{PLAY}&referrer={quote(f'{ID}&sku=7', safe='')}", id="market on a desktop",
        ),
    ],
)  # fmt: skip
def test_where_there_is_no_app(
    platform: int, agent: str, app: dict[str, Any], tracker: dict[str, Any], wanted: str
) -> None:
    answer = ask(shop(platform, app=app, **tracker), "/c/t?sku=7", agent)
    assert (answer.status, answer.location) == (302 if wanted else 404, wanted)
    assert answer.record is not None, "somebody clicked all the same"


def two_apps(**android: Any) -> GatewaySettings:
    on: dict[str, Any] = {"link_domains": ["go.shop.example"]}
    return settings_of(
        App(
            app_id="a",
            platform=PLATFORM_ANDROID,
            bundle_id="com.shop",
            fallback_url=f"{FALLBACK}/android",
            **on,
            **android,
        ),
        App(
            app_id="i",
            platform=PLATFORM_IOS,
            bundle_id="com.shop-it",
            fallback_url=FALLBACK,
            apple_team_id="ABCDE12345",
            **on,
        ),
        App(
            app_id="z",
            platform=PLATFORM_IOS,
            bundle_id="com.gone",
            apple_team_id="ABCDE12345",
            status=STATUS_ARCHIVED,
            **on,
        ),
    )


@pytest.mark.parametrize(
    ("host", "agent", "wanted"),
    [
        pytest.param("go.shop.example", IPHONE, FALLBACK, id="ios"),
        pytest.param("go.shop.example", ANDROID, f"{FALLBACK}/android", id="android"),
        pytest.param("GO.Shop.Example:443", DESKTOP, f"{FALLBACK}/android", id="any"),
        pytest.param("other.example", IPHONE, "", id="another host"),
        pytest.param("", IPHONE, "", id="no host"),
    ],
)
def test_links_of_no_tracker(host: str, agent: str, wanted: str) -> None:
    answer = ask(two_apps(), "/c/nobody?url=https://evil.example", agent, host=host)
    assert (answer.status, answer.location) == (302 if wanted else 404, wanted)
    assert (answer.sign, answer.record) == ("refused UNKNOWN_TRACKER", None)


@pytest.mark.parametrize("path", ["/.well-known/apple-app-site-association", "/apple-app-site-association"])
def test_association_files(path: str) -> None:
    apple = ask(two_apps(), path, host="go.shop.example")
    assert (apple.status, apple.headers["content-type"]) == (200, "application/json")
    [detail] = json.loads(apple.body)["applinks"]["details"]
    assert (detail["appIDs"], detail["appID"]) == (["ABCDE12345.com.shop-it"], "ABCDE12345.com.shop-it")
    assert {"/": "/c/*", "caseSensitive": False} in detail["components"]
    prints = [":".join(["AB"] * 32)]
    android = ask(
        two_apps(certificate_fingerprints=prints), "/.well-known/assetlinks.json", host="go.shop.example:8443"
    )
    assert json.loads(android.body) == [
        {
            "relation": ["delegate_permission/common.handle_all_urls"],
            "target": {"namespace": "android_app", "package_name": "com.shop", "sha256_cert_fingerprints": prints},
        }
    ]
    assert ask(two_apps(), "/.well-known/assetlinks.json", host="go.shop.example").status == 404, "no fingerprints"
    assert ask(two_apps(), path, host="other.example").status == 404


def test_the_deep_link_of_a_click_is_there_for_later() -> None:
    config = shop(PLATFORM_IOS, deep_link="shop://p/{sku}?s={site_id}&c={click_id}&i={idfa}")
    record = ask(config, "/c/t?sku=7%2F8&site_id=s&click_id=c&idfa=I", IPHONE).record
    tracker = config.tracker("t")
    assert record is not None
    assert tracker is not None
    assert deferred_deep_link(tracker, record) == f"shop://p/7%2F8?s=s&c=c&i=I&{ID}"
    assert deferred_deep_link(tracker, record_pb2.Record(impression=record_pb2.Impression())) == ""
    plain = shop(PLATFORM_IOS).tracker("t")
    assert plain is not None
    assert deferred_deep_link(plain, record) == ""


EVIL = st.sampled_from([
    "https://evil.example", "//evil.example", "javascript:alert(1)", "intent://evil.example#Intent;scheme=https;end",
    ";S.browser_fallback_url=https%3A%2F%2Fevil.example;end", "#Intent;package=evil;end", "\r\nlocation: //evil",
    '"><script>alert(1)</script>', "</script>", "..", "%2e%2e", "@evil.example", "evil", "&id=com.evil", "\\evil",
]) | st.text(max_size=20)  # fmt: skip
KEYS = st.sampled_from([
    "sku", "url", "redirect", "deep_link", "install_url", "fallback_url", "referrer", "id", "S.browser_fallback_url",
    "append_app_conv_trk_params", "link", "package", "scheme", "campaign_id", "ko_click_id", "browser_fallback_url",
])  # fmt: skip
OWN = {"play.google.com", "apps.apple.com", "shop.example"}


def target_of(url: str) -> str:
    """Returns whom a URL belongs to: its host on the web, else its scheme, an intent's and its fallback's checked."""
    parts = urlsplit(url)
    if parts.scheme in ("https", "http"):
        return parts.netloc
    if parts.scheme != "intent":
        return parts.scheme
    told = dict(part.partition("=")[::2] for part in parts.fragment.rpartition("Intent;")[2].split(";"))
    assert target_of(unquote(told["S.browser_fallback_url"])) in OWN
    assert told.get("package", "com.shop") == "com.shop"
    return told["scheme"]


@given(
    parameters=st.lists(st.tuples(KEYS, EVIL), max_size=5),
    passes=st.booleans(),
    path=st.sampled_from(["/c/t", "/C/T/", "/c/nobody", "/v1/cpi/click?campaign_id=t"])
    | EVIL.map(lambda text: f"/c/{quote(text)}"),
    tracker=st.sampled_from([{}, CUSTOM, HTTPS, INTENT, {"status": STATUS_ARCHIVED}, {"install_url": ""}]),
    agent=st.sampled_from([ANDROID, IPHONE, SAFARI, DESKTOP]),
    platform=st.sampled_from([PLATFORM_ANDROID, PLATFORM_IOS]),
)
@settings(max_examples=1_000, deadline=None)
@pytest.mark.slow
def test_law_is_no_open_redirect(
    parameters: list[tuple[str, str]], passes: bool, path: str, tracker: dict[str, Any], agent: str, platform: int
) -> None:
    app = {"fallback_url": FALLBACK, "link_domains": ["go.shop.example"]}
    query = "&".join(f"{key}={quote(value, safe='')}" for key, value in parameters)
    query += "&append_app_conv_trk_params=1" if passes else ""
    target = f"{path}{'&' if '?' in path else '?'}{query}"
    answer = ask(shop(platform, app=app, **tracker), target, agent, host="go.shop.example")
    urls = [answer.location] if answer.status == 302 else opened(answer)
    for url in urls:
        assert url.isascii()
        assert url.isprintable()
        assert target_of(url) in {*OWN, "shop"}
        if "play.google.com" in url and not url.startswith("intent"):
            assert url.startswith(PLAY)
            assert url.count("id=com.") == 1
    if answer.status == 200:
        assert answer.body.count(b"<script>") == 1
