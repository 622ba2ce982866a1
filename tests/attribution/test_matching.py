"""Section A: usable ids, the forms an id comes in, match kinds, duplicates."""

from hashlib import md5, sha1, sha256
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.domain.device_ids import usable_ids
from services.attribution.decision.matching import (
    HASH_LENGTHS,
    conversion_keys,
    device_key,
    duplicates,
    engagement_keys,
    hash_keys,
    hash_length,
    ip_range,
    is_hash,
    match_kind,
    normalise_ip,
    own_key,
    raw_id_keys,
)
from services.attribution.decision.model import (
    DAY_US,
    ClientHints,
    Conversion,
    ConversionKind,
    Engagement,
    EngagementKind,
    MatchKind,
    UserAgent,
    Visitor,
)
from services.attribution.decision.rules import App, ModeledLevel, Platform
from services.attribution.decision.user_agents import are_alike, parse_user_agent, user_agent_of

RAW = "6D92078A-8246-4BA4-AE5B-76104861E7DC"
PLAIN = RAW.replace("-", "")
APP = App(app_id="app", platform=Platform.IOS)
PIXEL = UserAgent(model="Pixel 8", os="Android", os_major="14", os_minor="0")


@pytest.mark.parametrize(
    "absent",
    [
        "",
        " ",
        "-",
        "0",
        "00000000-0000-0000-0000-000000000000",
        "{idfa}",
        "{{idfa}}",
        "%{adid}",
        "[device_id]",
        "null",
        "NULL",
        "device_id",
        "device_id=device_id",
        "idfa",
    ],
)
def test_a2_absent_ids(absent: str) -> None:
    assert usable_ids({"idfa": absent, "adid": f" {RAW} "}) == {"adid": RAW}


@pytest.mark.parametrize("outer", [md5, sha1, sha256])
@pytest.mark.parametrize("digest", [md5, sha1, sha256])
@pytest.mark.parametrize("spelling", [RAW, RAW.lower(), PLAIN, PLAIN.lower()])
@pytest.mark.parametrize("conversion_id", [RAW, RAW.lower(), PLAIN, PLAIN.lower()])
def test_a3_hashes_of_every_spelling(outer: type, digest: type, spelling: str, conversion_id: str) -> None:
    keys = raw_id_keys("app", conversion_id)
    once = digest(spelling.encode()).hexdigest()
    assert device_key("app", spelling) in keys
    assert device_key("app", once) in keys
    assert device_key("app", once.upper()) in keys
    assert device_key("app", ":".join(once[at : at + 2] for at in range(0, len(once), 2))) in keys
    assert device_key("app", outer(once.encode()).hexdigest()) in keys
    assert device_key("app", outer(once.upper().encode()).hexdigest()) in keys


def test_a3_other_ids_spelled_with_colons_or_in_mixed_case() -> None:
    assert device_key("app", md5(b"MyUser-42").hexdigest()) in raw_id_keys("app", "MyUser-42")
    assert device_key("app", md5(b"aa:bb:cc:dd:ee:0f").hexdigest()) in raw_id_keys("app", "AABBCCDDEE0F")


def test_a3_only_the_lengths_that_were_seen_are_computed() -> None:
    assert len(raw_id_keys("app", RAW)) == 85
    assert len(raw_id_keys("app", RAW, {32})) == 29
    assert raw_id_keys("app", RAW, ()) == {device_key("app", PLAIN.lower())}
    assert raw_id_keys("app", RAW, {40}) < raw_id_keys("app", RAW)


def test_keys_of_another_app_never_meet() -> None:
    assert raw_id_keys("app", RAW).isdisjoint(raw_id_keys("other", RAW))


@pytest.mark.parametrize(
    ("value", "length"),
    [
        ("76770dbc2bcc93480130991dde661812", 32),
        ("76770DBC-2BCC-9348-0130-991DDE661812", 32),
        ("A9EEC7EBA87731883B588A1811616CEEE862F39F", 40),
        ("a" * 64, 64),
        (RAW, None),
        (PLAIN, 32),
        ("z" * 32, None),
        ("abc", None),
    ],
)
def test_hash_length(value: str, length: int | None) -> None:
    assert hash_length(value) == length
    assert length is None or length in HASH_LENGTHS


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("adid_md5", "76770dbc2bcc93480130991dde661812", True),
        ("adid_md5", "76770DBC-2BCC-9348-0130-991DDE661812", True),
        ("adid_md5", RAW, True),
        ("android_id_sha1", "a" * 40, True),
        ("kochava_device_id_sha256", "a" * 64, True),
        ("adid_md5", "a" * 40, False),
        ("adid_md5", "z" * 32, False),
        ("adid_md5", "somebody", False),
        ("adid", "76770dbc2bcc93480130991dde661812", False),
        ("custom_md5x", "a" * 32, False),
    ],
)
def test_a_conversions_id_is_a_hash_when_its_kind_says_so(kind: str, value: str, expected: bool) -> None:
    assert is_hash(kind, value) is expected


@pytest.mark.parametrize(("length", "digest"), [(32, md5), (40, sha1), (64, sha256)])
def test_hashes_of_a_raw_id_are_of_each_spelling_and_once(length: int, digest: Any) -> None:
    texts = {RAW, RAW.lower(), PLAIN, PLAIN.lower()}
    expected = {digest(text.encode()).hexdigest() for text in texts}
    assert set(hash_keys("app", RAW, length).values()) == expected
    assert hash_keys("app", PLAIN.lower(), length) == hash_keys("app", f" {RAW} ", length)
    assert hash_keys("app", RAW, length).keys() == {device_key("app", each) for each in expected}
    assert hash_keys("app", RAW, length).keys() < raw_id_keys("app", RAW, [length])
    name = digest(b"Guest-7").hexdigest()
    assert name in hash_keys("app", "Guest-7", length).values(), "as it is given, too"


@pytest.mark.parametrize(
    ("address", "normalised", "range_"),
    [
        ("203.0.113.7", "203.0.113.7", "203.0.113.0"),
        (" ::ffff:203.0.113.7", "203.0.113.7", "203.0.113.0"),
        ("2001:DB8:1:2::7", "2001:db8:1:2::", "2001:db8:1::"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::", "2001:db8:1::"),
    ],
)
def test_a5_ip_and_range(address: str, normalised: str, range_: str) -> None:
    assert normalise_ip(address) == normalised
    assert ip_range(normalised) == range_


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.7", "100.127.255.255", "127.0.0.1", "169.254.1.1", "0.0.0.0",
        "255.255.255.255", "::", "::1", "fd00::1", "fe80::1", "::ffff:10.0.0.1",
    ],
)  # fmt: skip
def test_a5_addresses_that_are_nobodys_never_match(address: str) -> None:
    assert normalise_ip(address) == ""


NOBODYS_NETWORKS = [
    ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
        "255.255.255.255/32", "::/128", "::1/128", "fc00::/7", "fe80::/10",
    )
]  # fmt: skip


@given(
    st.ip_addresses()
    | st.sampled_from(NOBODYS_NETWORKS).flatmap(
        lambda network: st.integers(-3, 3).map(
            lambda off: ip_address((int(network[0]) + off) % (1 << 32 if network.version == 4 else 1 << 128))
        )
    )
    | st.sampled_from(NOBODYS_NETWORKS).map(lambda network: network[-1])
)
def test_a5_addresses_are_compared_as_the_networks_say(address: IPv4Address | IPv6Address) -> None:
    if any(address in network for network in NOBODYS_NETWORKS if network.version == address.version):
        assert normalise_ip(str(address)) == ""
    elif isinstance(address, IPv4Address):
        assert normalise_ip(f" {address}") == normalise_ip(f"::ffff:{address}") == str(address)
    elif address.ipv4_mapped is None:
        assert normalise_ip(str(address)) == str(ip_network((address, 64), strict=False).network_address)


@pytest.mark.parametrize("text", ["", "nowhere", "1.2.3", "1.2.3.4.5", "1.2.3.256", "1.2.3.4:80", "::1::", "1.2.3.4\0"])
def test_other_texts_are_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="is no IP address"):
        normalise_ip(text)


WEBKIT = "AppleWebKit/605.1.15 (KHTML, like Gecko)"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param("Mozilla/5.0 (Linux; Android 14; Pixel 8)", PIXEL, id="Android"),
        pytest.param(
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4_1 like Mac OS X)", UserAgent("iPhone", "iOS", "17", "4"), id="iOS"
        ),
        pytest.param(
            "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Mobile",
            UserAgent("", "Android", "", ""),
            id="Chrome freezes version and model",
        ),
        pytest.param(
            "Mozilla/5.0 (Linux; Android 10; SM-G973F) AppleWebKit/537.36 Chrome/80.0 Mobile",
            UserAgent("SM-G973F", "Android", "10", "0"),
            id="a real Android 10",
        ),
        pytest.param(
            f"Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) {WEBKIT} Version/26.1 Mobile/15E148 Safari/604.1",
            UserAgent("iPhone", "iOS", "26", ""),
            id="Safari freezes the version of iOS",
        ),
        pytest.param(
            f"Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) {WEBKIT} Mobile/15E148",
            UserAgent("iPhone", "iOS", "", ""),
            id="a web view on iOS 18 or later",
        ),
        pytest.param("Shop/1 CFNetwork/1410.0.3 Darwin/22.6.0", UserAgent("", "iOS", "16", ""), id="CFNetwork"),
        pytest.param("Shop/1 CFNetwork/3860.1 Darwin/25.0.0", UserAgent("", "iOS", "26", ""), id="CFNetwork on iOS 26"),
        pytest.param(
            f"Mozilla/5.0 (iPhone; CPU iPhone OS 17_1_2 like Mac OS X) {WEBKIT} Mobile/21B101 "
            "[FBAN/FBIOS;FBAV/441.0.0.23.113;FBDV/iPhone14,2;FBMD/iPhone;FBSN/iOS;FBSV/17.1.2]",
            UserAgent("iPhone14,2", "iOS", "17", "1"),
            id="in-app browser on iOS",
        ),
        pytest.param(
            "Instagram 309.1.0.41.113 Android (33/13; 420dpi; 1080x2176; samsung; SM-A536B; a53x; s5e8825; de_DE)",
            UserAgent("SM-A536B", "Android", "", ""),
            id="in-app browser on Android",
        ),
        pytest.param("okhttp/4.9.2", None, id="okhttp"),
        pytest.param("curl/8", None, id="curl"),
        pytest.param("", None, id="none"),
    ],
)
def test_a5_user_agent(raw: str, expected: UserAgent | None) -> None:
    parsed = parse_user_agent(raw)
    assert (parsed and parsed._replace(device_type="")) == expected


FROZEN = "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Mobile"
NOTHING_HINTED = UserAgent("", "Android", "", "")


@pytest.mark.parametrize(
    ("raw", "hints", "expected"),
    [
        pytest.param(FROZEN, ClientHints("Pixel 8", "Android", "14.0.0"), PIXEL, id="all that is frozen"),
        pytest.param(FROZEN, ClientHints("Pixel 8", "Android", "14"), PIXEL, id="a short version"),
        pytest.param(FROZEN, ClientHints("Pixel 8", "Android", "14.1"), PIXEL._replace(os_minor="1"), id="a minor"),
        pytest.param(
            FROZEN, ClientHints("", "Android", "10.0.0"), UserAgent("", "Android", "10", "0"), id="a real Android 10"
        ),
        pytest.param(FROZEN, ClientHints("Pixel 8", "Android"), UserAgent("Pixel 8", "Android", "", ""), id="a model"),
        pytest.param(
            FROZEN, ClientHints("moto g(7) power", "Android"), UserAgent("g(7) power", "Android", "", ""),
            id="a model as user agents are read",
        ),
        pytest.param(FROZEN, ClientHints(" Pixel\t8 ", "Android", "14"), PIXEL, id="white space"),
        pytest.param(FROZEN, ClientHints("K", "Android"), NOTHING_HINTED, id="a model that is hidden again"),
        pytest.param(FROZEN, ClientHints("Pixel 8", "", "14.0.0"), NOTHING_HINTED, id="no platform"),
        pytest.param(FROZEN, ClientHints("Pixel 8", "Linux", "14.0.0"), NOTHING_HINTED, id="another platform"),
        *(
            pytest.param(FROZEN, ClientHints("", "Android", version), NOTHING_HINTED, id=f"no version: {version}")
            for version in ("0.0.0", "x", "-1", "14;", "1234", "\u0661\u0664", "14.", ".14", "14\n")
        ),
        pytest.param(
            "Mozilla/5.0 (Linux; Android 13; Pixel 7) AppleWebKit/537.36", ClientHints("Pixel 8", "Android", "14.1.0"),
            UserAgent("Pixel 7", "Android", "13", "0"), id="what the user agent tells stands",
        ),
        pytest.param(
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64)", ClientHints("Pixel 8", "Android", "14.0.0"),
            UserAgent("", "Windows", "10", "0"), id="what contradicts the OS",
        ),
        pytest.param(
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X)", ClientHints("Pixel 8", "Android", "14.0.0"),
            UserAgent("iPhone", "iOS", "17", "4"), id="another OS",
        ),
        pytest.param("curl/8", ClientHints("Pixel 8", "Android", "14.0.0"), PIXEL, id="a user agent of no OS"),
        pytest.param("", ClientHints("Pixel 8", "Android", "14.0.0"), PIXEL, id="no user agent"),
        pytest.param("", ClientHints(), None, id="nothing"),
    ],
)  # fmt: skip
def test_a5_client_hints_fill_what_a_user_agent_leaves_unknown(
    raw: str, hints: ClientHints, expected: UserAgent | None
) -> None:
    found = user_agent_of(raw, hints)
    assert (found and found._replace(device_type="")) == expected


@given(st.builds(ClientHints, st.text(), st.just("Android"), st.text()))
def test_a5_law_no_hint_makes_another_device_of_a_phone(hints: ClientHints) -> None:
    found = user_agent_of(FROZEN, hints)
    assert found is not None
    assert (found.os, found.device_type) == ("Android", "PHONE")
    assert "\t" not in "".join(found), "it is stored with its parts between tabs"


@pytest.mark.parametrize(
    ("one", "other", "alike", "alike_without_minor"),
    [
        pytest.param(PIXEL, PIXEL, True, True, id="equal"),
        pytest.param(PIXEL, PIXEL._replace(os_minor="1"), False, True, id="another minor version"),
        pytest.param(PIXEL, PIXEL._replace(os_minor=""), True, True, id="minor version unknown"),
        pytest.param(PIXEL, PIXEL._replace(os_major="13"), False, False, id="another version"),
        pytest.param(PIXEL, PIXEL._replace(model="Pixel 9"), False, False, id="another model"),
        pytest.param(PIXEL, PIXEL._replace(model=""), True, True, id="model unknown"),
        pytest.param(PIXEL, PIXEL._replace(os_major="", os_minor=""), True, True, id="version unknown"),
        pytest.param(PIXEL, UserAgent("", "Android", "", ""), False, False, id="only the OS known"),
        pytest.param(PIXEL, PIXEL._replace(os="iOS"), False, False, id="another OS"),
        pytest.param(PIXEL, None, False, False, id="nothing known"),
        pytest.param(
            UserAgent("iPhone", "iOS", "17", "2"), UserAgent("iPhone14,2", "iOS", "17", "2"), True, True, id="family"
        ),
        pytest.param(
            UserAgent("iPad", "iOS", "17", "2"), UserAgent("iPhone14,2", "iOS", "17", "2"), False, False, id="families"
        ),
        pytest.param(
            UserAgent("iPhone", "iOS", "26", ""), UserAgent("", "iOS", "26", ""), True, True, id="Safari and CFNetwork"
        ),
    ],
)
@pytest.mark.parametrize("is_first", [True, False], ids=["", "turned round"])
def test_a5_alike(
    one: UserAgent, other: UserAgent | None, alike: bool, alike_without_minor: bool, is_first: bool
) -> None:
    first, second = (one, other) if is_first else (other, one)
    assert are_alike(first, second, omit_os_minor=False) is alike
    assert are_alike(first, second, omit_os_minor=True) is alike_without_minor


def click(**values: object) -> Engagement:
    fields = {"engagement_id": "k1", "kind": EngagementKind.CLICK, "tracker_id": "t1", "time_us": 0, **values}
    return Engagement(receive_time_us=0, **fields)  # type: ignore[arg-type]


def event(**values: object) -> Conversion:
    fields = {"conversion_id": "e1", "kind": ConversionKind.EVENT, "time_us": 0, "event_name": "Purchase", **values}
    return Conversion(receive_time_us=0, **fields)  # type: ignore[arg-type]


ID, OTHER_ID = device_key("app", "a1"), device_key("app", "b2")
IP_ONLY = App(app_id="app", platform=Platform.IOS, modeled_level=ModeledLevel.IP_ONLY)
IP_RANGE = App(app_id="app", platform=Platform.IOS, modeled_level=ModeledLevel.IP_RANGE)
NO_MINOR = App(app_id="app", platform=Platform.IOS, omit_os_minor=True)


@pytest.mark.parametrize(
    ("engagement", "conversion", "app", "expected"),
    [
        pytest.param(
            click(device_keys=(ID,), ip="1.1.1.1"),
            event(device_keys=frozenset({ID}), ip="1.1.1.1", click_id="k1"),
            APP,
            MatchKind.CLICK_ID,
            id="A1 the strongest of several",
        ),
        pytest.param(
            click(kind=EngagementKind.IMPRESSION), event(click_id="k1"), APP, None, id="A1 no click id of an impression"
        ),
        pytest.param(
            click(device_keys=(OTHER_ID, ID), ip="1.1.1.1"),
            event(device_keys=frozenset({ID}), ip="1.1.1.1"),
            APP,
            MatchKind.DEVICE_ID,
            id="A1 any of its ids",
        ),
        pytest.param(
            click(ip="1.1.1.1", user_agent=PIXEL),
            event(ip="1.1.1.1", user_agent=PIXEL),
            APP,
            MatchKind.MODELED,
            id="A1 modeled",
        ),
        pytest.param(
            click(ip="1.1.1.1", user_agent=PIXEL), event(ip="1.1.1.1"), APP, MatchKind.IP, id="A1 no user agent"
        ),
        pytest.param(click(ip="1.1.1.1"), event(ip="1.1.1.1"), APP, MatchKind.IP, id="A1 unknown agents are not alike"),
        pytest.param(
            click(ip="1.1.1.1", user_agent=PIXEL),
            event(ip="1.1.1.1", user_agent=PIXEL._replace(os_minor="1")),
            APP,
            MatchKind.IP,
            id="A1 other version",
        ),
        pytest.param(
            click(ip="1.1.1.1", user_agent=PIXEL),
            event(ip="1.1.1.1", user_agent=PIXEL._replace(os_minor="1")),
            NO_MINOR,
            MatchKind.MODELED,
            id="A5 minor version omitted",
        ),
        pytest.param(click(), event(), APP, None, id="two absent addresses are not alike"),
        pytest.param(click(ip="1.1.1.1"), event(ip="1.1.1.2"), APP, None, id="other address"),
        pytest.param(click(ip="1.1.1.1"), event(ip="1.1.1.1"), IP_ONLY, MatchKind.MODELED, id="A5 IP_ONLY"),
        pytest.param(click(ip="1.1.1.1"), event(ip="1.1.1.2"), IP_ONLY, None, id="A5 IP_ONLY other address"),
        pytest.param(click(ip="1.1.1.1"), event(ip="1.1.1.2"), IP_RANGE, MatchKind.MODELED, id="A5 IP_RANGE"),
        pytest.param(click(ip="1.1.1.1"), event(ip="1.1.2.1"), IP_RANGE, None, id="A5 IP_RANGE other range"),
    ],
)
def test_match_kind(engagement: Engagement, conversion: Conversion, app: App, expected: MatchKind | None) -> None:
    assert match_kind(engagement, conversion, app) is expected
    met = {own_key("app", "k1"), *engagement_keys(app, engagement)} & set(conversion_keys(app, conversion))
    assert met or expected is None, "what matches must be found by its keys"


@pytest.mark.parametrize(
    ("engagements", "expected"),
    [
        pytest.param([("k1", 0, "t", "n"), ("k2", DAY_US, "t", "n")], {"k2"}, id="the later"),
        pytest.param([("k1", DAY_US, "t", "n"), ("k2", 0, "t", "n")], {"k1"}, id="whatever the order"),
        pytest.param([("k1", 0, "t", "n"), ("k2", 0, "t", "n")], {"k2"}, id="at equal times the higher id"),
        pytest.param([("k1", 0, "t", ""), ("k2", 0, "t", "")], set(), id="an empty click id never"),
        pytest.param([("k1", 0, "t", "n"), ("k2", 0, "u", "n")], set(), id="other tracker"),
        pytest.param([("k1", 0, "t", "n"), ("k2", 7 * DAY_US - 1, "t", "n")], {"k2"}, id="just within 7 days"),
        pytest.param([("k1", 0, "t", "n"), ("k2", 7 * DAY_US, "t", "n")], set(), id="7 days"),
        pytest.param(
            [("k1", 0, "t", "n"), ("k2", 5 * DAY_US, "t", "n"), ("k3", 10 * DAY_US, "t", "n")],
            {"k2", "k3"},
            id="the repeat of a duplicate",
        ),
    ],
)
def test_a6_duplicates(engagements: list[tuple[str, int, str, str]], expected: set[str]) -> None:
    clicks = [click(engagement_id=i, time_us=at, tracker_id=t, click_id=n) for i, at, t, n in engagements]
    assert duplicates(clicks) == duplicates(reversed(clicks)) == expected


def test_a6_what_is_invalid_is_repeated_by_nothing() -> None:
    """Anybody can make up a click with the click id of another one."""
    clicks = [
        click(engagement_id="forged", time_us=0, tracker_id="t", click_id="n", valid=False),
        click(engagement_id="person", time_us=1, tracker_id="t", click_id="n"),
        click(engagement_id="forged again", time_us=2, tracker_id="t", click_id="n", valid=False),
    ]
    assert duplicates(clicks) == {"forged again"}


def test_a9_what_no_person_clicked_is_repeated_by_nothing_and_may_be_a_repeat() -> None:
    clicks = [
        click(engagement_id="preview", time_us=0, tracker_id="t", click_id="n", visitor=Visitor.BOT),
        click(engagement_id="fetched", time_us=1, tracker_id="t", click_id="n", visitor=Visitor.PREFETCH),
        click(engagement_id="person", time_us=2, tracker_id="t", click_id="n"),
        click(engagement_id="crawler", time_us=3, tracker_id="t", click_id="n", visitor=Visitor.BOT),
        click(engagement_id="again", time_us=2 + 7 * DAY_US, tracker_id="t", click_id="n"),
    ]
    assert duplicates(clicks) == {"crawler"}
