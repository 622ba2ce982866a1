"""Clicks that try to choose where a browser goes, or which app it opens."""

import re
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.domain.link_targets import LinkError, scheme_of
from services.gateway.links import parse_query
from services.gateway.model import App, Platform, Template, Tracker
from services.gateway.redirect import lead

ANDROID = "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36"
STORE = "https://play.example/shop"
SCHEMES = ("shop", "intent", "android-app", "market")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?:[/\\]{2}([^/\\?#]*))?([^?#]*)(?:\?[^#]*)?(?:#(.*))?", re.DOTALL)


def target(url: str) -> tuple[str, ...]:
    """Returns what decides where a URL leads, as browsers read it: scheme, authority, all of an intent but extras."""
    found = _URL.fullmatch(url)
    assert found is not None, "it is a URL"
    scheme, authority, path, fragment = (part or "" for part in found.groups())
    intent: list[str] = []
    for part in fragment.split(";") if fragment.startswith("Intent") else ():
        key, _, value = part.partition("=")
        is_extra = re.match(r"[SBbcdfils]\.", key) is not None and unquote(key) != "S.browser_fallback_url"
        intent.append(key if is_extra else f"{key}={unquote(value)}")
    of_app = path.split("/")[1:3] if scheme.lower() == "android-app" else []
    return scheme.lower(), authority.lower(), *of_app, *intent


def destination(tracker: Tracker, click_id: str, parameters: dict[str, str], agent: str) -> str | None:
    """Returns the URL of where a click leads."""
    found = lead(tracker, click_id, parameters, agent)
    return None if found is None else found.url


def tracker_of(*, install_url: str = STORE, deep_link: str | None = None) -> Tracker:
    app = App(app_id="shop", platform=Platform.ANDROID, url_schemes=frozenset(SCHEMES))
    link = Template(deep_link) if deep_link is not None else None
    return Tracker(tracker_id="t", app=app, install_url=Template(install_url), deep_link=link)


EVIL = [
    "", ".", "..", "/", "//", "//evil.example", "https://evil.example", "https%3A%2F%2Fevil.example", "%",
    "%2f%2fevil.example",
    "\\\\evil.example", "@evil.example", ":80@evil.example", ".evil.example", "javascript:alert(1)", "data:text/html,x",
    "evil:", "\r\nx: y", "\t//evil.example", "\0", "#Intent;package=evil;end", ";package=evil;", "%23Intent;", "?", "#",
    ";S.browser_fallback_url=https%3A%2F%2Fevil.example;end", "&", "=", "evil\u3002example", "\uff20evil",
]  # fmt: skip
VALUES = (
    st.sampled_from(EVIL)
    | st.text(max_size=30)
    | st.binary(max_size=30).map(lambda raw: parse_query(b"a=" + raw).get("a", ""))
)
PIECES = st.sampled_from([
    "{a}", "{b}", "{a}", "/", "//", ":", "@", "?", "#", ".", "\\", "shop", "https:", "shop:", "shop://p", "intent:",
    "https://shop.example", "intent://p/", "#Intent;", ";", "end", "S.k=", "S.browser_fallback_url=", "package=",
    "scheme=", "android-app://p", "/https/h/", "x", "q=", "80", "%2F", "{", "}", " ", "HTTPS://Shop.Example/",
])  # fmt: skip
TEMPLATES = st.lists(PIECES, min_size=1, max_size=9).map("".join)


def filled(template: str, a: str, b: str) -> str | None:
    """Returns where a click leads whose tracker has this deep link; None when that is to the store."""
    url = destination(tracker_of(deep_link=template), "ID", {"a": a, "b": b}, ANDROID)
    assert url is not None
    return None if url == f"{STORE}?ko_click_id=ID" else url


@given(template=TEMPLATES, a=VALUES, b=VALUES)
@settings(max_examples=2_000)
@pytest.mark.slow
def test_law_whatever_a_click_says_its_target_is_that_of_the_settings(template: str, a: str, b: str) -> None:
    for url, plain in (
        (filled(template, a, b), filled(template, "x", "x")),
        (
            destination(tracker_of(install_url=template), "ID", {"a": a, "b": b}, ""),
            destination(tracker_of(install_url=template), "ID", {"a": "x", "b": "x"}, ""),
        ),
    ):
        assert (url is None) == (plain is None), "whether it leads anywhere is not the click's affair"
        if url is not None and plain is not None:
            assert url.isascii()
            assert url.isprintable()
            assert target(url) == target(plain)


LED = [
    "https://shop.example/{a}", "https://shop.example?{a}={b}#{a}", "shop:{a}{b}", "shop:{a}/{b}", "shop://p/{a}/{b}",
    "intent://p/{a}?{b}#Intent;scheme=shop;package=com.shop;S.k={a};S.browser_fallback_url=https%3A%2F%2Fshop.example;end",
    "intent:{a}#Intent;S.k={b};end", "android-app://com.shop/https/shop.example/{a}#Intent;i.k={b};end",
]  # fmt: skip


@pytest.mark.parametrize("template", LED)
@given(a=VALUES, b=VALUES)
def test_law_macros_that_may_stand_are_filled_and_choose_nothing(template: str, a: str, b: str) -> None:
    url, plain = filled(template, a, b), filled(template, "x", "x")
    assert url is not None
    assert plain is not None
    assert target(url) == target(plain)
    assert "evil" not in "".join(target(url))


@given(template=TEMPLATES)
@settings(max_examples=1_000)
@pytest.mark.slow
def test_law_tracker_refuses_what_the_gateway_does_not_lead_to(template: str) -> None:
    """A setting that does nothing is none: a deep link that tracker accepts is one that clicks lead to."""
    try:
        is_accepted = scheme_of(template) in ("https", *SCHEMES)
    except LinkError:
        return
    assert (filled(template, "x", "x") is not None) == is_accepted
