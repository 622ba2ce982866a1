"""Where clicks lead to, and that nobody else decides it."""

import hashlib
import hmac
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.model import App, Destination, Platform, Template, Tracker
from services.gateway.redirect import destination, signature_holds

ANDROID = "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36"
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15"
DESKTOP = "Mozilla/5.0 (X11; Linux x86_64) Firefox/130.0"
PLAY = "https://play.google.com/store/apps/details?id=com.shop"


def make_tracker(
    install_url: str = PLAY,
    deep_link: str | None = None,
    kind: Destination = Destination.CUSTOM,
    key: bytes = b"",
    **custom: str,
) -> Tracker:
    app = App(app_id="shop", platform=Platform.ANDROID, url_schemes=frozenset({"shop"}))
    return Tracker(
        tracker_id="tr",
        app=app,
        network_id="net",
        install_url=Template(install_url),
        deep_link=Template(deep_link) if deep_link is not None else None,
        destination=kind,
        custom_parameters=custom,
        validation_key=key,
    )


@pytest.mark.parametrize(
    ("tracker", "parameters", "agent", "wanted"),
    [
        pytest.param(make_tracker(), {}, ANDROID, f"{PLAY}&ko_click_id=ID", id="install url"),
        pytest.param(
            make_tracker("https://x.example/p#top"),
            {},
            DESKTOP,
            "https://x.example/p?ko_click_id=ID#top",
            id="fragment",
        ),
        pytest.param(
            make_tracker("https://x.example/?c={click_id}&s={site_id}&t={campaign_id}&n={network_id}&k={ko_click_id}"),
            {"click_id": "a b&c"},
            DESKTOP,
            "https://x.example/?c=a%20b%26c&s=&t=tr&n=net&k=ID&ko_click_id=ID",
            id="macros filled, unknown ones empty",
        ),
        pytest.param(make_tracker(PLAY, "shop://home"), {}, ANDROID, "shop://home?ko_click_id=ID", id="deep link"),
        pytest.param(make_tracker(PLAY, "shop://home"), {}, IPHONE, f"{PLAY}&ko_click_id=ID", id="other platform"),
        pytest.param(make_tracker(PLAY, "shop://home"), {}, DESKTOP, f"{PLAY}&ko_click_id=ID", id="no platform"),
        pytest.param(
            make_tracker(PLAY, "shop://p/{sku}?q={q}"),
            {"sku": "a/b", "q": "1&x=2"},
            ANDROID,
            "shop://p/a/b?q=1%26x%3D2&ko_click_id=ID",
            id="dynamic: a path stays a path, a value a value",
        ),
        pytest.param(
            make_tracker(PLAY, "shop://p/{sku}", sku="42"),
            {},
            ANDROID,
            "shop://p/42?ko_click_id=ID",
            id="default value",
        ),
        pytest.param(
            make_tracker(PLAY, "{dl}"),
            {"dl": "shop://p/1?a=b"},
            ANDROID,
            "shop://p/1?a=b&ko_click_id=ID",
            id="whole link",
        ),
        pytest.param(
            make_tracker(PLAY, "https://shop.example/{p}"),
            {"p": "sale"},
            ANDROID,
            "https://shop.example/sale?ko_click_id=ID",
            id="https deep link",
        ),
        pytest.param(
            make_tracker(PLAY, kind=Destination.GOOGLE_REFERRER, promo="x y"),
            {"cp_1": "é"},
            ANDROID,
            f"{PLAY}&referrer=ko_click_id%3DID%26promo%3Dx%2By%26cp_1%3D%25C3%25A9",
            id="referrer",
        ),
        pytest.param(
            make_tracker(f"{PLAY}&referrer=utm_source%3Dnews&hl=en", kind=Destination.GOOGLE_REFERRER),
            {},
            ANDROID,
            f"{PLAY}&referrer=ko_click_id%3DID%26utm_source%3Dnews&hl=en",
            id="referrer there already",
        ),
        pytest.param(
            make_tracker("https://x.example/\r\nset-cookie: a=b"),
            {},
            DESKTOP,
            "https://x.example/%0D%0Aset-cookie:%20a=b?ko_click_id=ID",
            id="no header can be put in",
        ),
        pytest.param(make_tracker(""), {}, DESKTOP, None, id="nowhere"),
    ],
)
def test_destination(tracker: Tracker, parameters: dict[str, str], agent: str, wanted: str | None) -> None:
    assert destination(tracker, "ID", parameters, agent) == wanted


@pytest.mark.parametrize("value", [
    "https://evil.example", "//evil.example", "http://evil.example/", "javascript:alert(1)", "data:text/html,x",
    "evil://x", "\\\\evil.example", " https://evil.example", "https:evil.example", "HTTPS://EVIL.EXAMPLE", "",
    "@evil.example", ".evil.example", ":80@evil.example", "intent://x#Intent;end", "https://shop.example@evil.example",
])  # fmt: skip
@pytest.mark.parametrize(
    "deep_link",
    ["{v}", "{v}/", "https:{v}", "https://{v}", "https://shop.example{v}", "https://{v}.example/", "{v}://x"],
)
def test_is_no_open_redirect(deep_link: str, value: str) -> None:
    url = destination(make_tracker(PLAY, deep_link), "ID", {"v": value}, ANDROID)
    assert url is not None
    found = urlsplit(url)
    assert (found.scheme, found.netloc) in (("https", "play.google.com"), ("https", "shop.example"))


@pytest.mark.parametrize("install_url", ["{v}", "https://{v}/", "https://shop.{v}.example/", "//{v}", "{v}:x"])
def test_an_install_url_without_a_host_of_its_own_leads_nowhere(install_url: str) -> None:
    assert destination(make_tracker(install_url), "ID", {"v": "evil.example"}, DESKTOP) is None


@given(value=st.text(), place=st.sampled_from(["{v}", "https://shop.example{v}", "shop://a{v}", "https://{v}.example"]))
def test_law_whatever_the_value_scheme_and_host_are_the_owners(value: str, place: str) -> None:
    url = destination(make_tracker(PLAY, place), "ID", {"v": value}, ANDROID)
    assert url is not None
    assert url.isascii()
    assert url.isprintable()
    found = urlsplit(url)
    assert found.scheme == "shop" or (found.scheme, found.netloc) in (
        ("https", "play.google.com"),
        ("https", "shop.example"),
    )


def _signed(path: str, key: bytes = b"k" * 16) -> bytes:
    return f"{path}&signature={hmac.new(key, path.encode(), hashlib.sha256).hexdigest()}".encode()


@pytest.mark.parametrize(
    ("signed", "expires", "holds"),
    [
        pytest.param(_signed("/c/tr?expires=200"), "200", True, id="good"),
        pytest.param(_signed("/c/tr?expires=200").upper().replace(b"/C/TR?EXPIRES", b"/c/tr?expires")
                     .replace(b"SIGNATURE", b"signature"), "200", True, id="upper case"),
        pytest.param(_signed("/c/tr?expires=99"), "99", False, id="expired"),
        pytest.param(_signed("/c/tr?expires=200", b"other"), "200", False, id="other key"),
        pytest.param(_signed("/c/tr?expires=200").replace(b"/tr", b"/tx"), "200", False, id="other path"),
        pytest.param(_signed("/c/tr?expires=200") + b"&adid=x", "200", False, id="unsigned parameter"),
        pytest.param(_signed("/c/tr?a=b"), "", False, id="no expiry"),
        pytest.param(b"/c/tr?expires=200", "200", False, id="no signature"),
        pytest.param(_signed("/c/tr?expires=1e9"), "1e9", False, id="no number"),
    ],
)  # fmt: skip
def test_signature(signed: bytes, expires: str, *, holds: bool) -> None:
    assert signature_holds(make_tracker(key=b"k" * 16), signed, expires, now_s=100.0) is holds


def test_without_a_key_nothing_is_asked() -> None:
    assert signature_holds(make_tracker(), b"/c/tr?", "", now_s=100.0)
