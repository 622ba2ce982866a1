"""The places where a macro may stand in a URL that clicks lead to."""

import pytest

from libs.domain.link_targets import LinkError, scheme_of

INTENT = "intent://item/1#Intent;scheme=shop;package=com.shop"


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("https://shop.example", "https"), ("HTTPS://Shop.Example/{a}?b={c}#{d}", "https"),
        ("http://shop.example:81?{q}", "http"), ("https://[::1]/{a}", "https"), ("https://u@shop.example#{a}", "https"),
        ("shop:", "shop"), ("shop:{a}", "shop"), ("shop:{a}/{b}", "shop"), ("shop:///{a}", "shop"),
        ("shop://p/{a}{b}", "shop"), (f"{INTENT};end", "intent"),
        (f"{INTENT};S.ko={{click_id}};i.n={{n}};end", "intent"),
        ("intent://item/{a}?q={b}#Intent;S.browser_fallback_url=https%3A%2F%2Fshop.example;end", "intent"),
        ("android-app://com.shop/shop/item/{a}#Intent;S.ko={b};end", "android-app"), ("shop://p#{a}", "shop"),
    ],
)  # fmt: skip
def test_a_macro_that_chooses_nothing(url: str, scheme: str) -> None:
    assert scheme_of(url) == scheme


@pytest.mark.parametrize(
    "url",
    [
        "{a}", "{a}://shop.example", "ht{a}tps://shop.example", "https{a}//shop.example", "https://{a}", "https://{a}/",
        "https://shop.{a}/", "https://shop.example{a}", "https://shop.example:{a}/", "https://{a}@shop.example/",
        "https://u:{a}@shop.example/", "https://[{a}]/", "https:/{a}/x", "https:{a}//shop.example",
        "shop://{a}", "shop://a{a}/x", "shop:/{a}/{b}", "shop:{a}//{b}", "shop:{a}/{b}/{c}", "https://shop.example{",
        f"{INTENT};S.browser_fallback_url={{a}};end", f"{INTENT};S.browser%5Ffallback_url=https%3A%2F%2F{{a}};end",
        f"{INTENT};S.browser_fallback_url=https%3A%2F%2Fshop.example%2F{{a}};end", f"{INTENT};S.{{a}}=b;end",
        f"{INTENT};{{a}};end", f"{INTENT}{{a}};end", "intent://item#Intent;scheme={a};end", "intent:#Intent;{a}",
        "intent://item#Intent;component=com.shop/{a};end", "intent://item#Intent;action={a};end", "intent://{a}/x",
        "intent://item#Intent{a};end", "intent://item#Intent;SEL;package={a};end", "shop://item#Intent;package={a};end",
        "android-app://{a}/https/shop.example", "android-app://com.shop/{a}/x", "android-app://com.shop/https/{a}",
    ],
)  # fmt: skip
def test_a_macro_that_would_choose(url: str) -> None:
    with pytest.raises(LinkError) as caught:
        scheme_of(url)
    assert caught.value.reason == "MACRO_IN_TARGET"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "INVALID_SCHEME"), ("item/{a}", "INVALID_SCHEME"), ("//shop.example", "INVALID_SCHEME"),
        ("1x:y", "INVALID_SCHEME"), ("JavaScript:alert({a})", "INVALID_SCHEME"), ("data:,{a}", "INVALID_SCHEME"),
        ("https:x", "INVALID_URL"), ("https:{a}", "INVALID_URL"), ("https:///x", "INVALID_URL"),
        ("https://a:0/", "INVALID_URL"), ("https://[::1", "INVALID_URL"), ("https://a.example/ b", "INVALID_URL"),
        ("https://a.example\\@b.example/", "INVALID_URL"), ("https://a.example/\n", "INVALID_URL"),
    ],
)  # fmt: skip
def test_what_is_no_url_to_lead_to(url: str, reason: str) -> None:
    with pytest.raises(LinkError) as caught:
        scheme_of(url)
    assert caught.value.reason == reason
