"""Device ids that are somebody's (A2, A3, A7): one table of cases, to which every service is held."""

import time
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from libs.domain.device_ids import (
    ADVERTISING_KINDS,
    HASHED_KINDS,
    KINDS,
    KINDS_OF_ADVERTISING_IDS,
    RAW_KINDS,
    is_macro,
    is_usable,
    normalise,
    usable_ids,
)
from libs.domain.lanes import lane_of
from libs.time import DAY_US
from reengage.ingest.v1 import record_pb2
from services.gateway.links import Visit, click_record, parse_query
from services.gateway.model import App, Platform, Template, Tracker
from services.gateway.translation.record import translate
from services.ingest.countries import Countries
from services.ingest.entry import admit
from services.ingest.model import App as IngestApp
from services.ingest.model import IngestSettings
from tests.attribution.naive import is_usable as naively_usable

ADID = "cdda802e-fb9c-47ad-9866-0794d394c912"

NOBODYS = {
    "A2 empty": "",
    "A2 blank": "  ",
    "A2 zeros": "00000000-0000-0000-0000-000000000000",
    "A2 short zeros": "0",
    "A2 zero mac": "00:00:00:00:00:00",
    "A2 all f": "FFFFFFFF-ffff-FFFF-ffff-FFFFFFFFFFFF",
    "A2 short f": "ffff",
    "A2 no digit": "- : -",
    "A2 null": "null",
    "A2 (null)": "(null)",
    "A2 NULL": " NULL ",
    "A2 nil": "nil",
    "A2 none": "None",
    "A2 undefined": "undefined",
    "A2 unknown": "Unknown",
    "A2 n/a": "N/A",
    "A2 na": "na",
    "A2 false": "false",
    "A2 true": "TRUE",
    "A2 anonymous": "anonymous",
    "A2 optout": "OptOut",
    "A2 not_available": "not_available",
    "A2 replace_me": "REPLACE_ME",
    "A2 -1": "-1",
    "A2 a kind's name": "idfa",
    "A2 device_id": "device_id",
    "A2 device_id=device_id": "device_id=device_id",
    "A2 mac of iOS 7": "02:00:00:00:00:00",
    "A2 mac without colons": "020000000000",
    "A2 faulty android id": "9774d56d682e549c",
    "A2 emulator's imei": "012345678912345",
    "A2 zero imei": "000000000000000",
    "A7 {name}": "{gaid}",
    "A7 {{name}}": "{{gaid}}",
    "A7 {{ name }}": "{{ device.id }}",
    "A7 [name]": "[gaid]",
    "A7 (name)": "(gaid)",
    "A7 <name>": "<gaid>",
    "A7 %name%": "%gaid%",
    "A7 %%name%%": "%%GAID%%",
    "A7 %{name}": "%{gaid}",
    "A7 ${name}": "${gaid}",
    "A7 $name$": "$gaid$",
    "A7 #{name}": "#{gaid}",
    "A7 __NAME__": "__GAID__",
    "A7 ##name##": "##gaid##",
    "A7 long macro": "{advertising_identifier_of_the_device}",
}
SOMEBODYS = {
    "A2 uuid": ADID,
    "A2 upper case": ADID.upper(),
    "A2 begins with zeros": "00000000-0000-0000-0000-000000000001",
    "A2 begins with f": "ffffffff-ffff-ffff-ffff-fffffffffff0",
    "A2 android id": "9774d56d682e549d",
    "A2 custom": "user-4711",
    "A2 word with more": "unknown-17",
    "A2 -10": "-10",
    "A3 md5": "0cc175b9c0f1b6a831c399e269772661",
    "A7 brackets within": "[US] Retarget [v2]",
    "A7 json": '{"a": 1}',
    "A7 two macros": "{a}-{b}",
    "A7 one mark only": "{gaid",
    "A7 marks of two languages": "{gaid]",
    "A7 a number": "{4711}",
    "A7 words": "(see the notes)",
}
APP = App(app_id="shop", platform=Platform.ANDROID)
TRACKER = Tracker(tracker_id="t1", app=APP, install_url=Template("https://example.com/"))
VISIT = Visit(ip_address="203.0.113.7", user_agent="", time_s=time.time())
SETTINGS = IngestSettings(
    apps={
        "shop": IngestApp(
            app_lane=lane_of("shop"), max_age_us=31 * DAY_US, max_lead_us=DAY_US, event_names=frozenset({"Purchase"})
        )
    },
    app_of_tracker={"t1": "shop"},
    stamp=b"",
)


def sent_by_link(value: str) -> record_pb2.Record:
    parameters = parse_query(f"campaign_id=t1&custom=me&adid={quote(value)}".encode())
    return click_record(TRACKER, parameters, VISIT, click_id="c1", is_signed=True)


def sent_by_json(value: str) -> record_pb2.Record:
    data = {"event_name": "Purchase", "device_ids": {"custom": "me", "adid": value}, "origination_ip": "203.0.113.7"}
    return translate({"action": "event", "kochava_app_id": "shop", "data": data}, lambda _: None).record


def sent_by_grpc(value: str) -> record_pb2.Record:
    record = record_pb2.Record(app_id="shop", ip_address="203.0.113.7", device_ids={"adid": value, "custom": "me"})
    record.event.event_name = "Purchase"
    return record


def stored(record: record_pb2.Record) -> dict[str, str]:
    """Returns what ingest keeps for attribution and postback: the ids that they will ever see."""
    entry = admit(record, SETTINGS, time.time_ns() // 1000, Countries("").of)
    assert not isinstance(entry, list), entry
    return dict(record_pb2.Record.FromString(entry.record).device_ids)


@pytest.mark.parametrize(
    ("value", "is_somebodys"),
    [pytest.param(value, False, id=name) for name, value in NOBODYS.items()]
    + [pytest.param(value, True, id=name) for name, value in SOMEBODYS.items()],
)
class TestEveryWayIn:
    def test_kernel(self, value: str, is_somebodys: bool) -> None:
        assert is_usable(value) is is_somebodys
        assert usable_ids({"adid": value}) == ({"adid": value.strip()} if is_somebodys else {})

    def test_naive_reading_of_the_rules(self, value: str, is_somebodys: bool) -> None:
        assert naively_usable(value) is is_somebodys

    @pytest.mark.parametrize("sent", [sent_by_link, sent_by_json, sent_by_grpc])
    def test_what_is_stored(self, sent: Callable[[str], record_pb2.Record], value: str, is_somebodys: bool) -> None:
        assert stored(sent(value)) == {"custom": "me"} | ({"adid": value} if is_somebodys else {})


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40))
def test_kernel_and_naive_reading_agree(value: str) -> None:
    assert is_usable(value) is naively_usable(value)


@example("_____")
@given(st.lists(st.sampled_from([*"{}[]()<>%$#_-: 0fF1x", "name", "null", "idfa", "  "]), max_size=8).map("".join))
def test_kernel_and_naive_reading_agree_on_what_looks_like_a_macro(value: str) -> None:
    assert is_usable(value) is naively_usable(value)


@given(st.text(max_size=40))
def test_normalising_twice_is_normalising_once(value: str) -> None:
    assert normalise(normalise(value)) == normalise(value)


@pytest.mark.parametrize(
    "text", ["{campaign}", "__CLICK_ID__", "[aff.sub]", "%%PATTERN:url%%", "${GDPR_CONSENT_755}", "_____"]
)
def test_macros_of_links_are_absent(text: str) -> None:
    assert is_macro(text)
    assert parse_query(f"site_id={quote(text)}".encode()) == {}


@pytest.mark.parametrize("text", ["[US] Retarget [v2]", '{"a":"b"}', "{a}{b}", "a{b}", "50%", "$5", "(see notes)"])
def test_values_that_merely_contain_marks_are_kept(text: str) -> None:
    assert not is_macro(text)
    assert parse_query(f"site_id={quote(text)}".encode()) == {"site_id": text}


def test_hashes_have_kinds_of_their_own() -> None:
    assert {"idfa", "idfa_md5", "adid_sha256", "kochava_device_id_sha1"} <= set(KINDS)
    assert HASHED_KINDS["kochava_device_id_sha1"] == ("kochava_device_id", 40)
    assert HASHED_KINDS.keys() | set(RAW_KINDS) == set(KINDS)


def test_ids_that_platforms_make_for_advertising_are_of_their_own_kinds() -> None:
    assert {"adid", "idfa", "oaid", "rida", "faid"} == ADVERTISING_KINDS
    assert {
        f"{kind}_{method}" for kind in ADVERTISING_KINDS for method in ("md5", "sha1", "sha256")
    } == KINDS_OF_ADVERTISING_IDS - ADVERTISING_KINDS
