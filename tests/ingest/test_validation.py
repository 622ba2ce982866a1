"""The wrong fields of a record, of which all are named at once."""

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
            max_age_us=31 * DAY_S * 1_000_000, max_lead_us=DAY_S * 1_000_000, app_lane=5, event_names=DEFINED_EVENTS
        ),
        STRICT_APP: App(max_age_us=HOUR_S * 1_000_000, max_lead_us=0, app_lane=6, event_names=frozenset()),
    },
    app_of_tracker={TRACKER: APP, ARCHIVED_TRACKER: APP, STRICT_TRACKER: STRICT_APP},
    stamp=record_pb2.Record(settings_revision=7).SerializeToString(),
)


def reasons(wrong: record_pb2.Record) -> set[tuple[str, str]]:
    """Returns (field, reason) of everything wrong with a record."""
    found = admit(wrong, SETTINGS, NOW_US, Countries("").of)
    return set() if isinstance(found, Entry) else {(violation.field, violation.reason) for violation in found}


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
    "long id": (event(record_id="i" * 257), {("record_id", "TOO_LONG")}),
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
    "no device": (event(device_ids={}), {("device_ids", "REQUIRED")}),
    "no usable device": (event(device_ids={"idfa": "", "adid": "{adid}"}), {("device_ids", "REQUIRED")}),
    "strange id": (event(device_ids={"idfa": "1", "imsi": "2"}), {("device_ids", "UNKNOWN_DEVICE_ID")}),
    "long device id": (event(device_ids={"idfa": "1" * 257}), {("device_ids.idfa", "TOO_LONG")}),
    "NUL in a device id": (event(device_ids={"idfa": "1\0"}), {("device_ids.idfa", "INVALID_TEXT")}),
    "no address": (event(ip_address=""), {("ip_address", "REQUIRED")}),
    "no such address": (event(ip_address="1.2.3.256"), {("ip_address", "INVALID_IP_ADDRESS")}),
    "address with NUL": (event(ip_address="1.2.3.4\0"), {("ip_address", "INVALID_IP_ADDRESS")}),
    "address and space": (event(ip_address="1.2.3.4 "), {("ip_address", "INVALID_IP_ADDRESS")}),
    "long user agent": (event(user_agent="é" * 2049), {("user_agent", "TOO_LONG")}),
    "NUL in user agent": (event(user_agent="\0"), {("user_agent", "INVALID_TEXT")}),
    "client hints": (
        event(client_hints=record_pb2.ClientHints(model="m" * 257, platform="p\0", platform_version="1" * 257)),
        {
            ("client_hints.model", "TOO_LONG"),
            ("client_hints.platform", "INVALID_TEXT"),
            ("client_hints.platform_version", "TOO_LONG"),
        },
    ),
    "transparency": (
        event(tracking_transparency=record_pb2.TrackingTransparency(detail=9)),  # type: ignore[arg-type]
        {("tracking_transparency.detail", "INVALID_VALUE")},
    ),
    "no tracker": (record(click=record_pb2.Click()), {("click.tracker_id", "REQUIRED")}),
    "unknown visitor": (
        record(click=record_pb2.Click(tracker_id=TRACKER, visitor=3)),  # type: ignore[arg-type]
        {("click.visitor", "INVALID_VALUE")},
    ),
    "unknown visitor of an impression": (
        record(impression=record_pb2.Impression(tracker_id=TRACKER, visitor=3)),  # type: ignore[arg-type]
        {("impression.visitor", "INVALID_VALUE")},
    ),
    "unknown tracker": (
        record(impression=record_pb2.Impression(tracker_id="x")),
        {("impression.tracker_id", "UNKNOWN_TRACKER")},
    ),
    "another app's tracker": (
        record(click=record_pb2.Click(tracker_id=STRICT_TRACKER)),
        {("click.tracker_id", "UNKNOWN_TRACKER")},
    ),
    "long click id": (
        record(click=record_pb2.Click(tracker_id=TRACKER, click_id="c" * 257)),
        {("click.click_id", "TOO_LONG")},
    ),
    "65 custom parameters": (
        record(click=record_pb2.Click(tracker_id=TRACKER, ad=record_pb2.AdDetails(custom_parameters=many(65)))),
        {("click.ad.custom_parameters", "TOO_MANY")},
    ),
    "long site": (
        record(impression=record_pb2.Impression(tracker_id=TRACKER, ad=record_pb2.AdDetails(site_id="s" * 257))),
        {("impression.ad.site_id", "TOO_LONG")},
    ),
    "NUL in the referrer": (
        record(install=record_pb2.Install(referrer="a\0b")),
        {("install.referrer", "INVALID_TEXT")},
    ),
    "no event name": (event(""), {("event.event_name", "REQUIRED")}),
    "long event name": (event("e" * 129), {("event.event_name", "TOO_LONG")}),
    "reserved event name": (event("_install_2"), {("event.event_name", "RESERVED_NAME")}),
    "65 keys": (
        record(event=record_pb2.Event(event_name="e", event_data=many(65))),
        {("event.event_data", "TOO_MANY")},
    ),
    "long value": (record(event=with_data("k", "é" * 2049)), {("event.event_data.k", "TOO_LONG")}),
    "NUL in a value": (record(event=with_data("k", "\0")), {("event.event_data.k", "INVALID_TEXT")}),
    "long name": (record(event=with_data("k" * 257)), {("event.event_data", "TOO_LONG")}),
    "currency": (
        record(event=record_pb2.Event(event_name="e", revenue=record_pb2.Money(amount_micros=1, currency_code="usd"))),
        {("event.revenue.currency_code", "INVALID_CURRENCY_CODE")},
    ),
    "no state": (record(session=record_pb2.Session()), {("session.state", "REQUIRED")}),
    "no uri": (record(deep_link_open=record_pb2.DeepLinkOpen()), {("deep_link_open.uri", "REQUIRED")}),
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
            event=record_pb2.Event(event_name="_install", event_data={"source": "s"}),
        ),
        {
            ("record_id", "TOO_LONG"),
            ("app_id", "UNKNOWN_APP"),
            ("event_time", "INVALID_TIME"),
            ("device_ids", "REQUIRED"),
            ("ip_address", "INVALID_IP_ADDRESS"),
            ("user_agent", "INVALID_TEXT"),
            ("event.event_name", "RESERVED_NAME"),
            ("event.event_data.source", "RESERVED_NAME"),
        },
    ),
}


@pytest.mark.parametrize("sent", GOOD.values(), ids=GOOD.keys())
def test_acceptable(sent: record_pb2.Record) -> None:
    assert reasons(sent) == set()


@pytest.mark.parametrize(("sent", "expected"), BAD.values(), ids=BAD.keys())
def test_every_wrong_field_is_named(sent: record_pb2.Record, expected: set[tuple[str, str]]) -> None:
    assert reasons(sent) == expected


@pytest.mark.parametrize("name", sorted(RESERVED_EVENT_DATA))
def test_event_data_may_not_carry_reserved_names(name: str) -> None:
    assert reasons(record(event=with_data(name))) == {(f"event.event_data.{name}", "RESERVED_NAME")}


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


def test_a_repeat_has_the_same_key() -> None:
    ids = {name: f"{name}-1" for name in KINDS[:8]}
    backwards = dict(reversed(ids.items()))
    again = event(device_ids=backwards, settings_revision=6)
    assert entry(event(device_ids=ids)).key == entry(again, NOW_US + 9_000_000).key


@pytest.mark.parametrize(
    "other",
    [
        event("Other"),
        event(device_ids={"idfa": "2"}),
        event(event_time=at(0)),
        event(ip_address="192.0.2.8"),
        record(session=record_pb2.Session(state=record_pb2.Session.STATE_START)),
    ],
    ids=["name", "device", "time", "content", "kind"],
)
def test_another_record_has_another_key(other: record_pb2.Record) -> None:
    assert entry(event()).key != entry(other).key


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

    assert reasons(made(1)) == reasons(made(2_500))


def test_settings_of_the_test_are_those_that_tracker_sends() -> None:
    from services.ingest.settings import build_settings

    resources: dict[str, dict[tuple[str, ...], object]] = {"app": {}, "tracker": {}, "event_definition": {}}
    for resource in settings_response().resources:
        kind = resource.WhichOneof("resource")
        assert kind is not None
        message = getattr(resource, kind)
        fields = ("app_id", "event_name") if kind == "event_definition" else (f"{kind}_id",)
        resources[kind][tuple(getattr(message, field) for field in fields)] = message
    built = build_settings(resources, 7)  # type: ignore[arg-type]
    apps = {app_id: (app.max_age_us, app.max_lead_us, app.event_names) for app_id, app in built.apps.items()}
    assert apps == {app_id: (app.max_age_us, app.max_lead_us, app.event_names) for app_id, app in SETTINGS.apps.items()}
    assert built.app_of_tracker == SETTINGS.app_of_tracker
    assert built.stamp == SETTINGS.stamp
