"""The places that clicks lead to, which nobody but the owner decides."""

import hashlib
import hmac
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.model import App, Destination, Platform, Template, Tracker
from services.gateway.redirect import lead, signature_holds

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


def destination(tracker: Tracker, click_id: str, parameters: dict[str, str], agent: str) -> str | None:
    """Returns the URL that a click leads to."""
    found = lead(tracker, click_id, parameters, agent)
    return None if found is None else found.url


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
            "shop://p/a%2Fb?q=1%26x%3D2&ko_click_id=ID",
            id="dynamic: a value stays a value",
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
            f"{PLAY}&ko_click_id=ID",
            id="a value is no link",
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
@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("deep_link", "parameters", "wanted"),
    [
        pytest.param("shop://p/{sku}?x={foo}", {"sku": "../../x?y#z"}, "shop://p/..%2F..%2Fx%3Fy%23z?x=&", id="all"),
        pytest.param("shop://p/{sku}/buy", {"sku": ".."}, "shop://p//buy?", id="no climbing"),
        pytest.param("shop://p/{a}{b}/buy", {"a": ".", "b": "."}, "shop://p//buy?", id="no climbing by two"),
        pytest.param("shop:{x}", {"x": "/evil.com"}, "shop:%2Fevil.com?", id="no authority"),
        pytest.param("shop:{x}", {"x": "//evil.com"}, "shop:%2F%2Fevil.com?", id="none by two slashes"),
        pytest.param("shop:/{a}/{b}", {"b": "evil.com"}, f"{PLAY}&", id="none by an empty value"),
        pytest.param("shop://{page}", {"page": "u@evil.com:80/x"}, f"{PLAY}&", id="authority"),
        pytest.param(
            "shop://p?q={q}#{f}", {"q": "..", "f": "a&b"}, "shop://p?q=..&ko_click_id=ID#a%26b", id="fragment"
        ),
        pytest.param("shop://p?u=a%3Fb%3D{v}&w={v}", {"v": "1&c"}, "shop://p?u=a%3Fb%3D1%2526c&w=1%26c&", id="nested"),
        pytest.param("{dl}/", {"dl": "shop://p"}, f"{PLAY}&", id="a part of a link is no link"),
    ],
)
def test_a_value_stays_in_its_place(deep_link: str, parameters: dict[str, str], wanted: str) -> None:
    url = destination(make_tracker(PLAY, deep_link), "ID", parameters, ANDROID)
    assert url == (wanted if "ko_click_id" in wanted else f"{wanted}ko_click_id=ID")


_WORDS = st.text("abcdefg", min_size=1, max_size=4)
_PIECES = _WORDS | st.just("{v}") | st.builds("{}{{v}}".format, _WORDS) | st.just("{v}{v}")
_NASTY = (
    st.text("./\\?#&=@:%{}[] ab\r\n\té") | st.sampled_from(["..", "//evil.com", "/..", "%2e%2e", "?a=b#c"]) | st.text()
)


@given(
    start=st.sampled_from(["shop://p", "https://shop.example:81"]),
    path=st.lists(_PIECES, max_size=4),
    query=st.dictionaries(_WORDS, _PIECES, max_size=3),
    fragment=st.none() | _PIECES,
    value=_NASTY,
)
def test_law_all_but_the_places_is_the_owners(
    start: str, path: list[str], query: dict[str, str], fragment: str | None, value: str
) -> None:
    asked = "&".join(f"{key}={piece}" for key, piece in query.items())
    link = "/".join([start, *path]) + (f"?{asked}" if asked else "") + (f"#{fragment}" if fragment else "")
    wanted_value = "" if not value.strip(".") else value
    for url in (
        destination(make_tracker(PLAY, link), "ID", {"v": value}, ANDROID),
        destination(make_tracker(link), "ID", {"v": value}, DESKTOP),
    ):
        assert url is not None
        found = urlsplit(url)
        assert f"{found.scheme}://{found.netloc}" == start
        assert [unquote(part) for part in found.path.split("/")[1:]] == [p.replace("{v}", wanted_value) for p in path]
        assert not {".", ".."} & set(found.path.split("/"))
        assert parse_qsl(found.query, keep_blank_values=True) == [
            *((key, piece.replace("{v}", value)) for key, piece in query.items()),
            ("ko_click_id", "ID"),
        ]
        assert unquote(found.fragment) == (fragment or "").replace("{v}", value)


@given(
    template=st.text("ab:/{}?#.", max_size=12).map(lambda text: "shop:" + text.replace("{", "{a}").replace("}", "{b}")),
    values=st.fixed_dictionaries({"a": _NASTY, "b": _NASTY}),
)
def test_law_an_authority_is_there_when_the_owner_wrote_one(template: str, values: dict[str, str]) -> None:
    url = destination(make_tracker(PLAY, template), "ID", values, ANDROID)
    assert url is not None
    assert url.startswith("shop://") == template.startswith("shop://") or url == f"{PLAY}&ko_click_id=ID"


def _signed(path: str, key: bytes = b"k" * 16) -> bytes:
    return f"{path}&signature={hmac.new(key, path.encode(), hashlib.sha256).hexdigest()}".encode()


_EXPIRED = "/c/tr?expires=99"


@pytest.mark.parametrize(
    ("link", "holds"),
    [
        pytest.param(_signed("/c/tr?expires=200"), True, id="good"),
        pytest.param(_signed("/c/tr?expires=200").upper().replace(b"/C/TR?EXPIRES", b"/c/tr?expires"), True,
                     id="upper case"),
        pytest.param(_signed("/c/tr?expires=200") + b"&adid=x&signature=y", True, id="parameters behind it"),
        pytest.param(_signed("/c/tr?expires=200") + b").", True, id="the end of a sentence"),
        pytest.param(_signed("/c/tr?expires=200").replace(b"/c/tr", b"/C/Tr/"), True, id="path as mail programs write"),
        pytest.param(_signed("/c/tr?a=b&expires=200").replace(b"&", b"&amp;"), True, id="&amp;"),
        pytest.param(_signed("/c/tr?expires=200").replace(b"?", b"&"), True, id="& for ?"),
        pytest.param(_signed(_EXPIRED), False, id="expired"),
        pytest.param(_signed(_EXPIRED) + b"&expires=200", False, id="expired, and not so behind the signature"),
        pytest.param(_signed("/c/tr?expires=200", b"other"), False, id="other key"),
        pytest.param(_signed("/c/tr?expires=200").replace(b"200", b"201"), False, id="other parameter"),
        pytest.param(_signed("/c/tr?expires=200").replace(b"&", b"&adid=x&"), False, id="one more parameter"),
        pytest.param(_signed("/c/tx?expires=200").replace(b"/c/tx", b"/c/tr"), False, id="of another tracker"),
        pytest.param(_signed("/c/tr?a=b"), False, id="no expiry"),
        pytest.param(b"/c/tr?expires=200", False, id="no signature"),
        pytest.param(b"/c/tr?expires=200&signature=", False, id="an empty one"),
        pytest.param(_signed("/c/tr?expires=1e9"), False, id="no number"),
    ],
)  # fmt: skip
def test_signature(link: bytes, *, holds: bool) -> None:
    path, _, query = link.partition(b"?")
    if not query:
        path, _, query = link.partition(b"&")
    assert signature_holds(make_tracker(key=b"k" * 16), path, b"/c/tr", query, now_s=100.0) is holds


def test_without_a_key_nothing_is_asked() -> None:
    assert signature_holds(make_tracker(), b"/c/tr", b"/c/tr", b"", now_s=100.0)
