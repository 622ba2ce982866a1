"""The query of a link, and the record it makes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reengage.ingest.v1 import record_pb2
from services.gateway.addresses import ClientAddresses
from services.gateway.links import Visit, click_record, epoch_s, impression_record, parse_query, read_client_hints
from services.gateway.model import App, Platform, Template, Tracker

NOW_S = 1_764_000_000.25


def make_tracker(platform: Platform = Platform.ANDROID) -> Tracker:
    app = App(app_id="shop", platform=platform)
    return Tracker(tracker_id="tr", app=app, install_url=Template("https://x.example/"))


def click(query: str, platform: Platform = Platform.ANDROID) -> record_pb2.Record:
    visit = Visit(ip_address="203.0.113.7", user_agent="Browser", time_s=NOW_S)
    return click_record(make_tracker(platform), parse_query(query.encode()), visit, click_id="ID", is_signed=True)


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("campaign_id=x&site_id=a%20b+c", {"campaign_id": "x", "site_id": "a b c"}),
        ("campaign_id?campaign_id=x&site_id=y", {"campaign_id": "x", "site_id": "y"}),
        ("a=1&a=2", {"a": "1"}),
        ("a=&b&=c&&d=1", {"d": "1"}),
        ("a={click_id}&b=%7Bx%7D&c=%{x}&d=[x]&e=null&f=f&g=${x}&h={x}y", {"h": "{x}y"}),
        ("a=n&b=nullable", {"a": "n", "b": "nullable"}),
        ("a=1%00&b%00=2", {"a": "1", "b": "2"}),
        ("a=%ff", {"a": "\ufffd"}),
        ("a=\u00e9", {"a": "\u00e9"}),
        ("url=http://x?y=z", {"url": "http://x?y=z"}),
        ("", {}),
    ],
    ids=[
        "encoded",
        "doubled key",
        "the first of equal keys",
        "empty",
        "macros",
        "nearly null",
        "NUL",
        "no UTF-8",
        "raw UTF-8",
        "a question mark inside",
        "nothing",
    ],
)
def test_parse_query(query: str, wanted: dict[str, str]) -> None:
    assert parse_query(query.encode()) == wanted


@given(st.binary())
def test_law_any_query_is_read(raw: bytes) -> None:
    parameters = parse_query(raw)
    visit = Visit(ip_address="", user_agent="", time_s=NOW_S)
    record = click_record(make_tracker(), parameters, visit, click_id="ID", is_signed=True)
    assert "\0" not in str(record)
    assert len(record.click.ad.custom_parameters) <= 64


@pytest.mark.parametrize(
    ("query", "platform", "wanted"),
    [
        ("device_id=A", Platform.ANDROID, {"adid": "A"}),
        ("device_id=A", Platform.IOS, {"idfa": "A"}),
        ("device_id=A&device_id_type=oaid", Platform.ANDROID, {"oaid": "A"}),
        ("device_id=A&device_id_type=nonsense", Platform.ANDROID, {"adid": "A"}),
        ("device_id=A&device_hash_method=sha1", Platform.ANDROID, {"adid_sha1": "A"}),
        ("device_id=A&device_hash_method=SHA-256", Platform.ANDROID, {"adid_sha256": "A"}),
        (f"device_id={'a' * 32}&device_id_is_hashed=1", Platform.ANDROID, {"adid_md5": "a" * 32}),
        (f"device_id={'a' * 40}&device_id_is_hashed=true", Platform.IOS, {"idfa_sha1": "a" * 40}),
        ("ios_idfa=A&mac=B&android_id=C", Platform.IOS, {"idfa": "A", "mac": "B", "android_id": "C"}),
        ("device_id=device_id&adid={adid}", Platform.ANDROID, {}),
    ],
    ids=[
        "adid on Android",
        "idfa on iOS",
        "by type",
        "unknown type",
        "hashed",
        "hashed, other spelling",
        "hash by length",
        "sha1 by length",
        "by name",
        "macros",
    ],
)
def test_device_ids(query: str, platform: Platform, wanted: dict[str, str]) -> None:
    assert dict(click(query, platform).device_ids) == wanted


def test_a_click_keeps_all_it_was_told() -> None:
    record = click("click_id=c1&site_id=s&creative_id=cr&cp_0=a&anything=b&network_id=n&att=1&att_time=1764000000")
    assert (record.record_id, record.app_id, record.ip_address, record.user_agent) == (
        "ID",
        "shop",
        "203.0.113.7",
        "Browser",
    )
    assert (record.event_time.seconds, record.event_time.nanos) == (1_764_000_000, 250_000_000)
    assert (record.click.tracker_id, record.click.click_id, record.click.invalid) == ("tr", "c1", False)
    assert (record.click.ad.site_id, record.click.ad.creative_id) == ("s", "cr")
    assert dict(record.click.ad.custom_parameters) == {"cp_0": "a", "anything": "b"}
    assert record.tracking_transparency.authorized
    assert record.tracking_transparency.answer_time.seconds == 1_764_000_000


def test_a_server_ping_speaks_for_its_device() -> None:
    told = click("ip_address=198.51.100.1&device_ua=Phone")
    assert (told.ip_address, told.user_agent) == ("198.51.100.1", "Phone")
    without_agent = click("ip_address=2001:db8::1")
    assert (without_agent.ip_address, without_agent.user_agent) == ("2001:db8::1", "Browser")
    assert click("ip_address=nonsense").ip_address == "203.0.113.7"


@pytest.mark.parametrize(
    ("given", "seconds", "invalidity"),
    [
        ("1763999000", 1_763_999_000, ""),
        ("1763999000000", 1_763_999_000, ""),
        ("1763999000000000", 1_763_999_000, ""),
        ("1763999000000000000", 1_763_999_000, ""),
        ("1763999000.75", 1_763_999_000, ""),
        ("2025-11-24T15:43:20Z", 1_763_999_000, ""),
        ("2025-11-24T15:43:20.123456789Z", 1_763_999_000, ""),
        ("2025-11-24T17:43:20%2B02:00", 1_763_999_000, ""),
        ("2025-11-24T17:43:20+02:00", 1_763_999_000, ""),
        ("20251124T154320Z", 1_763_999_000, ""),
        ("2025-11-24%2015:43:20", 1_763_999_000, ""),
        ("2025-11-24+15:43:20", 1_763_999_000, ""),
        (str(1_764_000_000 - 12 * 3600), 1_764_000_000 - 12 * 3600, "TOO_LATE"),
        ("0", 1_764_000_000 - 12 * 3600, "TOO_LATE"),
        ("1764000001", 1_764_000_000, ""),
        ("2025-11-25T10:00:00", 1_764_000_000, ""),
        ("1764090000", 1_764_000_000, "TIME_NOT_READABLE"),
        ("soon", 1_764_000_000, "TIME_NOT_READABLE"),
        ("-5", 1_764_000_000, "TIME_NOT_READABLE"),
        ("1e99", 1_764_000_000, "TIME_NOT_READABLE"),
        ("2025-13-45", 1_764_000_000, "TIME_NOT_READABLE"),
        ("{click_time}", 1_764_000_000, ""),
    ],
    ids=[
        "seconds", "ms", "us", "ns", "with a fraction", "ISO 8601", "ISO with nanoseconds", "ISO with a zone",
        "ISO with a zone that is not encoded", "ISO without marks", "with a space", "with a space as plus",
        "over 12 hours late", "years late", "in the future", "of another time zone", "a day ahead", "no time",
        "negative", "huge", "no date", "macro",
    ],
)  # fmt: skip
def test_click_time(given: str, seconds: int, invalidity: str) -> None:
    record = click(f"click_time={given}")
    wanted = record_pb2.Invalidity.Value(f"INVALIDITY_{invalidity or 'UNSPECIFIED'}")
    assert (record.event_time.seconds, record.click.invalidity) == (seconds, wanted)
    assert record.click.invalid is bool(invalidity)
    visit = Visit(ip_address="203.0.113.7", user_agent="Browser", time_s=NOW_S)
    seen = impression_record(make_tracker(), parse_query(f"click_time={given}".encode()), visit, record_id="ID")
    assert (seen.event_time.seconds, seen.impression.invalidity) == (seconds, wanted)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("198.51.100.1:4711", "198.51.100.1"),
        ("198.51.100.1,%2010.0.0.1", "198.51.100.1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:db8::1%25eth0", "2001:db8::1"),
        ("198.51.100", "203.0.113.7"),
        ("null", "203.0.113.7"),
        ("unknown,198.51.100.1", "203.0.113.7"),
    ],
)
def test_addresses_of_pings(given: str, wanted: str) -> None:
    """One that is none keeps that of the visitor."""
    assert click(f"ip_address={given}&x=1").ip_address == wanted


@pytest.mark.parametrize(
    ("query", "is_ping"),
    [
        ("", False),
        ("adid=A&click_id=c&site_id=s&cp_0=x&att=1&att_time=1763999000&expires=1&network_id=n", False),
        ("click_time=&ip_address={ip}&device_ua=device_ua&user_agent=null", False),
        ("click_time=1763999000", True),
        ("click_time=1764000001", True),
        ("click_time=soon", True),
        ("ip_address=198.51.100.1", True),
        ("ip_address=nonsense", True),
        ("device_ua=Phone", True),
        ("user_agent=Phone", True),
    ],
    ids=[
        "a person",
        "a person with what a link says of the ad",
        "macros that nobody filled in",
        "with a time",
        "with a time to come",
        "with no time",
        "with an address",
        "with no address",
        "with a user agent",
        "with a user agent by its other name",
    ],
)
def test_whoever_reports_an_engagement_pings(query: str, *, is_ping: bool) -> None:
    """D12: the time of a ping is its sender's word; that of a person's visit is our own clock's."""
    visit = Visit(ip_address="203.0.113.7", user_agent="Browser", time_s=NOW_S)
    seen = impression_record(make_tracker(), parse_query(query.encode()), visit, record_id="ID")
    assert (click(query).click.is_ping, seen.impression.is_ping) == (is_ping, is_ping)


def hinted(model: bytes, platform: bytes = b'"Android"', version: bytes = b'"14.0.0"') -> dict[bytes, bytes]:
    names = (b"sec-ch-ua-model", b"sec-ch-ua-platform", b"sec-ch-ua-platform-version")
    return dict(zip(names, (model, platform, version), strict=True))


@pytest.mark.parametrize(
    ("headers", "hints"),
    [
        (hinted(b'"Pixel 8"'), ("Pixel 8", "Android", "14.0.0")),
        (hinted(b'""', b'"Windows"', b'"15.0.0"'), ("", "Windows", "15.0.0")),
        (hinted(b'"' + b"m" * 256 + b'"'), ("m" * 256, "Android", "14.0.0")),
        *(
            (hinted(model), ("", "Android", "14.0.0"))
            for model in (
                *(
                    b"Pixel 8",
                    b'"Pixel 8',
                    b'Pixel 8"',
                    b'"',
                    b'"a"b"',
                    b'"a", "b"',
                    b"?1",
                    b"",
                    rb'"\"',
                    rb'"a\""',
                    b'"a";b',
                ),
                *(b'"\t"', b'"\0"', b'"\x7f"', '"\u00e9"'.encode(), b'"' + b"m" * 257 + b'"'),
            )
        ),
        (hinted(b'"Pixel 8"', b"Android"), ("Pixel 8", "", "14.0.0")),
        ({b"sec-ch-ua-platform": b'"Android"', b"sec-ch-ua-mobile": b"?1"}, None),
        (hinted(b'""', version=b'""'), None),
        ({}, None),
    ],
)
def test_client_hints(headers: dict[bytes, bytes], hints: tuple[str, str, str] | None) -> None:
    """A5."""
    read = read_client_hints(headers)
    assert (read and (read.model, read.platform, read.platform_version)) == hints


@given(st.binary(), st.binary(), st.binary())
def test_law_any_client_hints_are_read(model: bytes, platform: bytes, version: bytes) -> None:
    for quoted in (b"%s", b'"%s"'):
        read = read_client_hints(hinted(quoted % model, quoted % platform, quoted % version))
        texts = () if read is None else (read.model, read.platform, read.platform_version)
        assert all(len(text) <= 256 and text.isascii() and (not text or text.isprintable()) for text in texts)


@pytest.mark.parametrize("reported", ["", "ip_address=198.51.100.1", "device_ua=Phone", "click_time=1763999000"])
def test_the_client_hints_of_a_server_that_pings_are_not_the_devices(reported: str) -> None:
    """A5."""
    hints = record_pb2.ClientHints(model="Pixel 8", platform="Android")
    visit = Visit(ip_address="203.0.113.7", user_agent="Browser", time_s=NOW_S, client_hints=hints)
    parameters = parse_query(reported.encode())
    clicked = click_record(make_tracker(), parameters, visit, click_id="ID", is_signed=True)
    seen = impression_record(make_tracker(), parameters, visit, record_id="ID")
    for record in (clicked, seen):
        assert record.HasField("client_hints") is not bool(reported)
        assert record.client_hints == (record_pb2.ClientHints() if reported else hints)


@pytest.mark.parametrize(("event", "completed"), [("view", False), ("completed", True), ("", False)])
def test_impression(event: str, *, completed: bool) -> None:
    visit = Visit(ip_address="203.0.113.7", user_agent="Browser", time_s=NOW_S)
    parameters = parse_query(f"event={event}&impression_id=i&sub_site_id=s".encode())
    impression = impression_record(make_tracker(), parameters, visit, record_id="ID").impression
    assert (impression.tracker_id, impression.impression_id, impression.completed_view) == ("tr", "i", completed)
    assert impression.ad.sub_site_id == "s"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (1_764_000_000, 1_764_000_000), (1_764_000_000_500, 1_764_000_000.5), ("1764000000", 1_764_000_000),
        (1_764_000_000.5, 1_764_000_000.5), ("", None), ("x", None), ("nan", None), ("inf", None), (-1, None),
        (True, None), (None, None), ([], None), (1e30, None),
    ],
)  # fmt: skip
def test_epoch(value: object, wanted: float | None) -> None:
    assert epoch_s(value) == wanted


@pytest.mark.parametrize(
    ("proxies", "peer", "forwarded", "client"),
    [
        ([], "10.0.0.1", "198.51.100.1", "10.0.0.1"),
        (["10.0.0.0/8"], "203.0.113.7", "198.51.100.1", "203.0.113.7"),
        (["10.0.0.0/8"], "10.0.0.1", "198.51.100.1", "198.51.100.1"),
        (["10.0.0.0/8"], "10.0.0.1", "6.6.6.6, 198.51.100.1, 10.2.2.2", "198.51.100.1"),
        (["10.0.0.0/8"], "10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        (["::1"], "::1", "[2001:db8::1]:4711", "2001:db8::1"),
        (["::1"], "::1", "2001:db8::1", "2001:db8::1"),
        (["10.0.0.0/8"], "10.0.0.1", "unknown", ""),
        (["10.0.0.0/8"], "10.0.0.1", "10.0.0.2", "10.0.0.1"),
        (["10.0.0.0/8"], "10.0.0.1", "", "10.0.0.1"),
    ],
    ids=[
        "no proxies",
        "not a proxy",
        "proxy",
        "chain of proxies",
        "with a port",
        "IPv6 with a port",
        "IPv6",
        "no address",
        "only proxies",
        "nothing forwarded",
    ],
)
def test_client_address(proxies: list[str], peer: str, forwarded: str, client: str) -> None:
    assert ClientAddresses(proxies).client(peer, forwarded) == client
