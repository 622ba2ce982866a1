"""The wrong fields of a record, of which all are named at once."""

from dataclasses import replace

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from libs.domain.device_ids import KINDS
from libs.domain.event_names import RESERVED_EVENT_DATA
from libs.domain.lanes import lane_of
from reengage.ingest.v1 import record_pb2
from services.ingest.countries import Countries
from services.ingest.entry import admit
from services.ingest.model import App, Entry, IngestSettings
from tests.ingest.conftest import (
    APP,
    ARCHIVED_APP,
    ARCHIVED_TRACKER,
    DEFINED_EVENTS,
    LIMIT,
    LIMITED_APP,
    STRICT_APP,
    STRICT_TRACKER,
    TRACKER,
    click,
    event,
    record,
    settings_response,
)

NOW_S = 1_800_000_000
NOW_US = NOW_S * 1_000_000
HOUR_S, DAY_S = 3600, 86_400

SETTINGS = IngestSettings(
    apps={
        APP: App(
            max_age_us=31 * DAY_S * 1_000_000,
            max_lead_us=DAY_S * 1_000_000,
            app_lane=5,
            event_names=DEFINED_EVENTS,
            records_per_second=2_500,
        ),
        STRICT_APP: App(
            max_age_us=HOUR_S * 1_000_000, max_lead_us=0, app_lane=6, event_names=frozenset(), records_per_second=2_500
        ),
        LIMITED_APP: App(
            max_age_us=31 * DAY_S * 1_000_000,
            max_lead_us=DAY_S * 1_000_000,
            app_lane=7,
            event_names=frozenset(),
            records_per_second=LIMIT,
        ),
    },
    app_of_tracker={TRACKER: APP, ARCHIVED_TRACKER: APP, STRICT_TRACKER: STRICT_APP},
    stamp=record_pb2.Record(settings_revision=7).SerializeToString(),
)


def reasons(wrong: record_pb2.Record) -> set[tuple[str, str]]:
    """Returns (field, reason) of everything that a record is refused for."""
    found = admit(wrong, SETTINGS, NOW_US, Countries("").of)
    return set() if isinstance(found, Entry) else {(violation.field, violation.reason) for violation in found}


def kept(wrong: record_pb2.Record) -> tuple[record_pb2.Record, set[tuple[str, str]]]:
    """Returns a record as it is stored, but for what ingest adds, and (field, code) of what it is warned of."""
    found = entry(wrong)
    stored = record_pb2.Record.FromString(found.record)
    for name in ("settings_revision", "warnings", *(() if wrong.record_id else ("record_id",))):
        stored.ClearField(name)
    if not wrong.HasField("event_time"):
        stored.ClearField("event_time")
    return stored, set() if found.warned is None else {(w.field, w.code) for w in found.warned.found}


def entry(good: record_pb2.Record, now_us: int = NOW_US) -> Entry:
    found = admit(good, SETTINGS, now_us, Countries("").of)
    assert isinstance(found, Entry), found
    return found


def at(offset_s: int, nanos: int = 0) -> Timestamp:
    return Timestamp(seconds=NOW_S + offset_s, nanos=nanos)


def with_data(name: str, value: str = "v") -> record_pb2.Event:
    return record_pb2.Event(event_name="e", event_data={name: value})


def many(number: int) -> dict[str, str]:
    return {f"k{index}": "v" for index in range(number)}


GOOD = {
    "click": click(),
    "click of an archived tracker": record(click=record_pb2.Click(tracker_id=ARCHIVED_TRACKER)),
    "click without id and address": click(device_ids={}, ip_address=""),
    "click with unusable id": click(device_ids={"idfa": "{idfa}"}),
    "impression": record(impression=record_pb2.Impression(tracker_id=TRACKER)),
    "install": record(install=record_pb2.Install()),
    "event": event(),
    "event, 128 characters": event("é" * 128),
    "event, 64 keys": record(event=record_pb2.Event(event_name="e", event_data=many(64))),
    "event, 4 KB": record(event=with_data("k", "x" * 4096)),
    "refund": record(
        event=record_pb2.Event(event_name="e", revenue=record_pb2.Money(amount_micros=-1, currency_code="EUR"))
    ),
    "session": record(session=record_pb2.Session(state=record_pb2.Session.STATE_STOP)),
    "deep link of a strange tracker": record(
        deep_link_open=record_pb2.DeepLinkOpen(uri="shop://x", tracker_id="not-ours"), ip_address=""
    ),
    "identity link": record(identity_link=record_pb2.IdentityLink(identities={"email": "a@b"}), ip_address=""),
    "IPv6": event(ip_address="2001:db8::1"),
    "id, 256 characters": event(record_id="i" * 256),
    "31 days back": event(event_time=at(-31 * DAY_S)),
    "24 hours ahead": event(event_time=at(DAY_S)),
    "strict, an hour back": event(app_id=STRICT_APP, event_time=at(-HOUR_S)),
    "strict, now": event(app_id=STRICT_APP, event_time=at(0)),
    "hash": event(device_ids={"idfa_sha256": "0a" * 32}),
    "consent": event(privacy_consent=record_pb2.PrivacyConsent(gdpr_applies=True, ad_user_data=False)),
}

BAD: dict[str, tuple[record_pb2.Record, set[tuple[str, str]]]] = {
    "no app": (event(app_id=""), {("app_id", "REQUIRED")}),
    "unknown app": (event(app_id="x"), {("app_id", "UNKNOWN_APP")}),
    "archived app": (event(app_id=ARCHIVED_APP), {("app_id", "UNKNOWN_APP")}),
    "no kind": (record(), {("kind", "REQUIRED")}),
    "too old": (event(event_time=at(-31 * DAY_S - 1)), {("event_time", "EVENT_TIME_TOO_OLD")}),
    "too early": (event(event_time=at(DAY_S, 1000)), {("event_time", "EVENT_TIME_IN_FUTURE")}),
    "strict, too old": (
        event(app_id=STRICT_APP, event_time=at(-HOUR_S - 1)),
        {("event_time", "EVENT_TIME_TOO_OLD")},
    ),
    "strict, too early": (
        event(app_id=STRICT_APP, event_time=at(0, 1000)),
        {("event_time", "EVENT_TIME_IN_FUTURE")},
    ),
    "no such time": (event(event_time=Timestamp(nanos=-1)), {("event_time", "INVALID_TIME")}),
    "no device and no address": (event(device_ids={}, ip_address=""), {("device_ids", "REQUIRED")}),
    "no usable device and no address": (
        event(device_ids={"idfa": "", "adid": "{adid}"}, ip_address="here"),
        {("device_ids", "REQUIRED"), ("ip_address", "INVALID_IP_ADDRESS")},
    ),
    "no device that is short enough, and no address": (
        event(device_ids={"idfa": "1" * 257}, ip_address=""),
        {("device_ids", "REQUIRED"), ("device_ids.idfa", "TOO_LONG")},
    ),
    "identity link of an address": (
        record(device_ids={}, identity_link=record_pb2.IdentityLink(identities={"email": "a@b"})),
        {("device_ids", "REQUIRED")},
    ),
    "no tracker": (record(click=record_pb2.Click()), {("click.tracker_id", "REQUIRED")}),
    "unknown tracker": (
        record(impression=record_pb2.Impression(tracker_id="x")),
        {("impression.tracker_id", "UNKNOWN_TRACKER")},
    ),
    "another app's tracker": (
        record(click=record_pb2.Click(tracker_id=STRICT_TRACKER)),
        {("click.tracker_id", "UNKNOWN_TRACKER")},
    ),
    "no event name": (event(""), {("event.event_name", "REQUIRED")}),
    "no identities": (
        record(identity_link=record_pb2.IdentityLink()),
        {("identity_link.identities", "REQUIRED")},
    ),
    "all at once": (
        record_pb2.Record(
            record_id="i" * 300,
            app_id="x",
            event_time=Timestamp(nanos=-1),
            device_ids={"idfa": "null"},
            ip_address="here",
            user_agent="\0",
            event=record_pb2.Event(event_name="", event_data={"source": "s"}),
        ),
        {
            ("record_id", "TOO_LONG"),
            ("app_id", "UNKNOWN_APP"),
            ("event_time", "INVALID_TIME"),
            ("device_ids", "REQUIRED"),
            ("ip_address", "INVALID_IP_ADDRESS"),
            ("user_agent", "INVALID_TEXT"),
            ("event.event_name", "REQUIRED"),
            ("event.event_data.source", "RESERVED_NAME"),
        },
    ),
}


def with_ad(**fields: object) -> record_pb2.Record:
    ad = record_pb2.AdDetails(**fields)  # type: ignore[arg-type]
    return record(click=record_pb2.Click(tracker_id=TRACKER, ad=ad))


def with_pairs(pairs: dict[str, str], **fields: object) -> record_pb2.Record:
    return record(event=record_pb2.Event(event_name="e", event_data=pairs), **fields)


KEPT: dict[str, tuple[record_pb2.Record, record_pb2.Record, set[tuple[str, str]]]] = {
    "an id that is none": (
        event(device_ids={"idfa": "1", "imsi": "2"}),
        event(device_ids={"idfa": "1"}),
        {("device_ids.imsi", "UNKNOWN_DEVICE_ID")},
    ),
    "long device id": (
        event(device_ids={"idfa": "1" * 257, "adid": "2"}),
        event(device_ids={"adid": "2"}),
        {("device_ids.idfa", "TOO_LONG")},
    ),
    "NUL in a device id": (
        event(device_ids={"idfa": "1\0", "adid": "2"}),
        event(device_ids={"adid": "2"}),
        {("device_ids.idfa", "INVALID_TEXT")},
    ),
    "an address alone": (event(device_ids={}), event(device_ids={}), {("device_ids", "NO_DEVICE_ID")}),
    "an address, and ids that are nobody's": (
        record(session=record_pb2.Session(state=1), device_ids={"adid": "{adid}"}),  # type: ignore[arg-type]
        record(session=record_pb2.Session(state=1), device_ids={}),  # type: ignore[arg-type]
        {("device_ids", "NO_DEVICE_ID")},
    ),
    "no address": (event(ip_address=""), event(ip_address=""), set()),
    "no such address": (
        event(ip_address="1.2.3.256"),
        event(ip_address=""),
        {("ip_address", "INVALID_IP_ADDRESS")},
    ),
    "address with NUL": (event(ip_address="1.2.3.4\0"), event(ip_address=""), {("ip_address", "INVALID_IP_ADDRESS")}),
    "address and space": (event(ip_address="1.2.3.4 "), event(ip_address="1.2.3.4"), set()),
    "address and port": (event(ip_address="1.2.3.4:80"), event(ip_address="1.2.3.4"), set()),
    "address in brackets": (event(ip_address="[2001:db8::1]:443"), event(ip_address="2001:db8::1"), set()),
    "address with a zone": (event(ip_address="fe80::1%eth0"), event(ip_address="fe80::1"), set()),
    "chain": (event(ip_address="192.0.2.7, 10.0.0.1"), event(ip_address="192.0.2.7"), set()),
    "long user agent": (event(user_agent="é" * 2049), event(user_agent="é" * 2048), {("user_agent", "TOO_LONG")}),
    "cut within a character": (
        event(app_version="x" + "é" * 2048),
        event(app_version="x" + "é" * 2047),
        {("app_version", "TOO_LONG")},
    ),
    "NUL in user agent": (event(user_agent="a\0b"), event(user_agent="a\ufffdb"), {("user_agent", "INVALID_TEXT")}),
    "client hints": (
        event(client_hints=record_pb2.ClientHints(model="m" * 257, platform="p\0", platform_version="1" * 257)),
        event(client_hints=record_pb2.ClientHints(model="m" * 256, platform="p\ufffd", platform_version="1" * 256)),
        {
            ("client_hints.model", "TOO_LONG"),
            ("client_hints.platform", "INVALID_TEXT"),
            ("client_hints.platform_version", "TOO_LONG"),
        },
    ),
    "transparency": (
        event(
            tracking_transparency=record_pb2.TrackingTransparency(
                authorized=True,
                detail=9,  # type: ignore[arg-type]
                answer_time=Timestamp(nanos=-1),
            )
        ),
        event(tracking_transparency=record_pb2.TrackingTransparency(authorized=True)),
        {("tracking_transparency.detail", "INVALID_VALUE"), ("tracking_transparency.answer_time", "INVALID_TIME")},
    ),
    "unknown visitor, who is no person": (
        record(click=record_pb2.Click(tracker_id=TRACKER, visitor=3)),  # type: ignore[arg-type]
        record(click=record_pb2.Click(tracker_id=TRACKER, visitor=record_pb2.VISITOR_BOT)),
        {("click.visitor", "INVALID_VALUE")},
    ),
    "unknown visitor of an impression": (
        record(impression=record_pb2.Impression(tracker_id=TRACKER, visitor=3)),  # type: ignore[arg-type]
        record(impression=record_pb2.Impression(tracker_id=TRACKER, visitor=record_pb2.VISITOR_BOT)),
        {("impression.visitor", "INVALID_VALUE")},
    ),
    "long click id": (
        record(click=record_pb2.Click(tracker_id=TRACKER, click_id="c" * 257)),
        record(click=record_pb2.Click(tracker_id=TRACKER, click_id="c" * 256)),
        {("click.click_id", "TOO_LONG")},
    ),
    "long site and creative": (
        with_ad(site_id="s" * 257, creative_id="c" * 257),
        with_ad(site_id="s" * 256, creative_id="c" * 256),
        {("click.ad.site_id", "TOO_LONG"), ("click.ad.creative_id", "TOO_LONG")},
    ),
    "66 custom parameters": (
        with_ad(custom_parameters={f"k{index:02}": "v" for index in range(66)}),
        with_ad(custom_parameters={f"k{index:02}": "v" for index in range(64)}),
        {("click.ad.custom_parameters.k64", "TOO_MANY"), ("click.ad.custom_parameters.k65", "TOO_MANY")},
    ),
    "NUL in the referrer": (
        record(install=record_pb2.Install(referrer="a\0b")),
        record(install=record_pb2.Install(referrer="a\ufffdb")),
        {("install.referrer", "INVALID_TEXT")},
    ),
    "long event name": (event("é" * 129), event("é" * 128), {("event.event_name", "TOO_LONG")}),
    "reserved event name": (event("_install_2"), event("data__install_2"), {("event.event_name", "RESERVED_NAME")}),
    "reserved event name, too long then": (
        event("_install" + "e" * 120),
        event("data__install" + "e" * 115),
        {("event.event_name", "RESERVED_NAME"), ("event.event_name", "TOO_LONG")},
    ),
    "65 names": (
        with_pairs({f"k{index:02}": "v" for index in range(65)}),
        with_pairs({f"k{index:02}": "v" for index in range(64)}),
        {("event.event_data.k64", "TOO_MANY")},
    ),
    "long value": (
        with_pairs({"k": "é" * 2049, "l": "v"}),
        with_pairs({"k": "é" * 2048, "l": "v"}),
        {("event.event_data.k", "TOO_LONG")},
    ),
    "NUL in a value": (with_pairs({"k": "\0"}), with_pairs({"k": "\ufffd"}), {("event.event_data.k", "INVALID_TEXT")}),
    "long name": (
        with_pairs({"k" * 257: "v"}),
        with_pairs({"k" * 256: "v"}),
        {(f"event.event_data.{'k' * 64}", "TOO_LONG")},
    ),
    "names that begin alike": (
        with_pairs({"k" * 256: "v", "k" * 257: "w"}),
        with_pairs({"k" * 256: "v"}),
        {(f"event.event_data.{'k' * 64}", "TOO_LONG")},
    ),
    "reserved names": (
        with_pairs({"source": "s", "data_source": "t", "site": "u"}),
        with_pairs({"data_data_source": "s", "data_source": "t", "data_site": "u"}),
        {("event.event_data.source", "RESERVED_NAME"), ("event.event_data.site", "RESERVED_NAME")},
    ),
    "currency": (
        record(event=record_pb2.Event(event_name="e", revenue=record_pb2.Money(amount_micros=1, currency_code="usd"))),
        event("e"),
        {("event.revenue.currency_code", "INVALID_CURRENCY")},
    ),
    "no state": (
        record(session=record_pb2.Session()),
        record(session=record_pb2.Session()),
        {("session.state", "REQUIRED")},
    ),
    "no such state": (
        record(session=record_pb2.Session(state=9)),  # type: ignore[arg-type]
        record(session=record_pb2.Session()),
        {("session.state", "INVALID_VALUE")},
    ),
    "no uri": (
        record(deep_link_open=record_pb2.DeepLinkOpen()),
        record(deep_link_open=record_pb2.DeepLinkOpen()),
        {("deep_link_open.uri", "REQUIRED")},
    ),
    "long names of a person": (
        record(identity_link=record_pb2.IdentityLink(identities={"email": "é" * 2049})),
        record(identity_link=record_pb2.IdentityLink(identities={"email": "é" * 2048})),
        {("identity_link.identities.email", "TOO_LONG")},
    ),
}


@pytest.mark.parametrize("sent", GOOD.values(), ids=GOOD.keys())
def test_acceptable(sent: record_pb2.Record) -> None:
    assert reasons(sent) == set()


@pytest.mark.parametrize(("sent", "expected"), BAD.values(), ids=BAD.keys())
def test_every_wrong_field_is_named(sent: record_pb2.Record, expected: set[tuple[str, str]]) -> None:
    assert reasons(sent) == expected


@pytest.mark.parametrize(("sent", "stored", "warned"), KEPT.values(), ids=KEPT.keys())
def test_a_wrong_field_costs_that_field(
    sent: record_pb2.Record, stored: record_pb2.Record, warned: set[tuple[str, str]]
) -> None:
    assert kept(sent) == (stored, warned)


@pytest.mark.parametrize(("sent", "stored", "warned"), KEPT.values(), ids=KEPT.keys())
def test_what_was_put_right_is_right(
    sent: record_pb2.Record, stored: record_pb2.Record, warned: set[tuple[str, str]]
) -> None:
    """What is warned of once more is missing, not wrong."""
    again, still = kept(record_pb2.Record.FromString(stored.SerializeToString()))
    assert again == stored
    assert {code for _, code in still} <= {"NO_DEVICE_ID", "REQUIRED"}


@pytest.mark.parametrize("name", sorted(RESERVED_EVENT_DATA))
def test_event_data_may_not_carry_reserved_names(name: str) -> None:
    stored, warned = kept(record(event=with_data(name)))
    assert (dict(stored.event.event_data), warned) == (
        {f"data_{name}": "v"},
        {(f"event.event_data.{name}", "RESERVED_NAME")},
    )


def test_warnings_of_the_sender_are_kept_with_those_of_ingest() -> None:
    sent = event(ip_address="here")
    sent.warnings.add(field="data.event_data.sum", code="INVALID_AMOUNT", message="no revenue")
    stored = record_pb2.Record.FromString(entry(sent).record)
    assert [(w.field, w.code) for w in stored.warnings] == [
        ("data.event_data.sum", "INVALID_AMOUNT"),
        ("ip_address", "INVALID_IP_ADDRESS"),
    ]


def test_warnings_of_the_sender_are_bounded() -> None:
    sent = event()
    for number in range(200):
        sent.warnings.add(field="f" * 300, code=f"C{number}\0" + "c" * 300, message="m\0" * 300)
    stored = record_pb2.Record.FromString(entry(sent).record)
    assert len(stored.warnings) == 32
    assert max(each.ByteSize() for each in stored.warnings) < 600
    assert "\0" not in str(stored.warnings)


def test_of_many_warnings_some_are_told() -> None:
    found = entry(with_pairs({f"k{index:03}": "v" for index in range(1_000)})).warned
    assert found is not None
    assert len(found.found) == 32
    assert (found.found[-1].code, found.found[-1].message) == ("MORE", "… and 905 more")


def test_a_long_record_id_is_known_by_all_of_it() -> None:
    long = "i" * 300
    first, again, other = (entry(event(record_id=each)) for each in (long, long, long + "j"))
    assert first.key == again.key != other.key
    assert not first.has_given_id
    assert 0 < len(first.record_id) <= 256
    assert first.warned is not None
    assert [(w.field, w.code) for w in first.warned.found] == [("record_id", "TOO_LONG")]


def test_a2_unusable_ids_are_not_stored() -> None:
    stored = entry(event(device_ids={"idfa": "null", "adid": "a-1", "oaid": "0000"}))
    assert dict(record_pb2.Record.FromString(stored.record).device_ids) == {"adid": "a-1"}


def test_the_stored_record_is_complete() -> None:
    sent = event(user_agent="Mozilla")
    stored = entry(sent)
    kept = record_pb2.Record.FromString(stored.record)
    assert kept.record_id == stored.record_id
    assert kept.event_time.ToMicroseconds() == NOW_US
    assert kept.settings_revision == 7
    kept.ClearField("record_id")
    kept.ClearField("event_time")
    kept.ClearField("settings_revision")
    assert kept == sent


def test_given_id_and_time_are_kept() -> None:
    stored = record_pb2.Record.FromString(entry(event(record_id="r-1", event_time=at(-5, 7000))).record)
    assert (stored.record_id, stored.event_time) == ("r-1", at(-5, 7000))


@pytest.mark.parametrize(
    ("sent", "device"),
    [
        (event(device_ids={"idfa": "A-1", "kochava_device_id": "KD1"}), "kd1"),
        (event(device_ids={"idfa": "A-1", "kochava_device_id": "null"}), "a-1"),
        (event(device_ids={"idfa_md5": "FF", "adid": "x"}), "x"),
        (click(device_ids={}), "192.0.2.7"),
        (click(device_ids={}, ip_address="", record_id="r-1"), "r-1"),
    ],
    ids=["app instance", "first usable", "raw before hash", "address", "record"],
)
def test_the_lane_is_that_of_the_device(sent: record_pb2.Record, device: str) -> None:
    assert entry(sent).lane == lane_of(APP, device)


IDS = {name: f"{name}-1" for name in KINDS[:8]}
PRICED = record_pb2.Event(
    event_name="e",
    event_data={"price": "9.99", "sum": "10.00"},
    revenue=record_pb2.Money(amount_micros=1, currency_code="EUR"),
)


def priced(price: str, sum_: str) -> record_pb2.Event:
    again = record_pb2.Event(event_data={"sum": sum_, "price": price}, event_name="e")
    again.revenue.CopyFrom(PRICED.revenue)
    return again


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"ip_address": "192.0.2.8", "user_agent": "other", "app_version": "2"},
        {"device_ids": {name: value.upper() for name, value in reversed(IDS.items())}},
        {"device_ids": {**IDS, "faid": "{faid}"}},
        {"settings_revision": 6},
        {"event": priced("9.990", "10.00")},
        {"event": priced("9.9900", "10.")},
        {"event": priced("9.99", "10")},
    ],
    ids=["nothing", "around it", "letter case and order", "nobody's id", "output", "9.990", "9.9900, 10.", "10"],
)
def test_a_repeat_has_the_same_key(changed: dict[str, object]) -> None:
    first = {"device_ids": IDS, "event": PRICED, "event_time": at(-5)}
    assert entry(record(**first)).key == entry(record(**{**first, **changed}), NOW_US + 9_000_000).key


@pytest.mark.parametrize(
    "other",
    [
        event("Other"),
        event(device_ids={"idfa": "2"}),
        event(event_time=at(0)),
        with_pairs({"n": "1"}),
        with_pairs({"n": "0.10", "m": "1"}),
        record(
            event=record_pb2.Event(
                event_name="Purchase", revenue=record_pb2.Money(amount_micros=1, currency_code="EUR")
            )
        ),
        record(session=record_pb2.Session(state=record_pb2.Session.STATE_START)),
    ],
    ids=["name", "device", "time", "data", "decimals in data", "revenue", "kind"],
)
def test_another_record_has_another_key(other: record_pb2.Record) -> None:
    assert entry(event()).key != entry(other).key


def test_data_that_merely_look_alike_are_others() -> None:
    keys = {entry(with_pairs({"order": value})).key for value in ("1.1", "1.11", "11", "01.1", "1.1.0", "110", "100")}
    assert len(keys) == 7


def test_without_ids_address_and_user_agent_are_the_device() -> None:
    made = [
        entry(event(device_ids={}, ip_address=address, user_agent=agent)).key
        for address, agent in (("192.0.2.7", "a"), ("192.0.2.8", "a"), ("192.0.2.7", "b"), ("192.0.2.7", "a"))
    ]
    assert (len(set(made)), made[0]) == (3, made[3])


def test_a_given_id_alone_tells_repeats_within_its_app() -> None:
    key = entry(event(record_id="r-1")).key
    assert entry(click(record_id="r-1", device_ids={"adid": "other"})).key == key
    assert entry(event(record_id="r-1", app_id=STRICT_APP, event_time=at(0))).key != key
    assert entry(event(record_id="r-2")).key != key


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@given(name=texts, value=texts, user_agent=texts, device_id=texts)
def test_the_short_cut_for_short_records_changes_nothing(
    name: str, value: str, user_agent: str, device_id: str
) -> None:
    """Padding beyond the short cut's bound gives the same verdict on everything else."""

    def made(padding: int) -> record_pb2.Record:
        return record(
            event=record_pb2.Event(event_name="e", event_data={name: value, "padding": "x" * padding}),
            app_version="v" * padding,
            user_agent=user_agent,
            client_hints=record_pb2.ClientHints(model=value),
            device_ids={"idfa": device_id},
        )

    def told(padding: int) -> set[tuple[str, str]]:
        found = admit(made(padding), SETTINGS, NOW_US, Countries("").of)
        if not isinstance(found, Entry):
            return {(violation.field, violation.reason) for violation in found}
        return {(w.field, w.code) for w in found.warned.found} if found.warned else set()

    assert told(1) == told(2_500)


def test_settings_of_the_test_are_those_that_tracker_sends() -> None:
    from services.ingest.settings import build_settings

    kinds = ("app", "tracker", "event_definition", "api_key")
    resources: dict[str, dict[tuple[str, ...], object]] = {kind: {} for kind in kinds}
    for resource in settings_response().resources:
        kind = resource.WhichOneof("resource")
        assert kind is not None
        message = getattr(resource, kind)
        fields = ("app_id", "event_name") if kind == "event_definition" else (f"{kind}_id",)
        resources[kind][tuple(getattr(message, field) for field in fields)] = message
    built = build_settings(resources, 7)  # type: ignore[arg-type]
    apps = {app_id: replace(app, app_lane=0) for app_id, app in built.apps.items()}
    assert apps == {app_id: replace(app, app_lane=0) for app_id, app in SETTINGS.apps.items()}
    assert built.app_of_tracker == SETTINGS.app_of_tracker
    assert built.stamp == SETTINGS.stamp
