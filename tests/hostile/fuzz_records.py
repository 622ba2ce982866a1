"""Records for the fuzz: right ones, odd ones and hostile ones of every kind, by a seed."""

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from google.protobuf.timestamp_pb2 import Timestamp

from libs.domain.device_ids import KINDS
from libs.time import DAY_US, HOUR_US, SECOND_US, to_timestamp
from reengage.ingest.v1 import record_pb2

ANDROID, IOS = "fuzz-android", "fuzz-ios"
TRACKERS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        ANDROID: ("android-re", "android-flash", "android-ua"),
        IOS: ("ios-re", "ios-ua"),
    }
)
EVENTS = ("Purchase", "Subscribe", "View", "SessionBegin", "_Deeplink")
MAX_MICROS = 2**63 - 1

ODD = (
    "", " ", "0", "-0", "NaN", "nan", "inf", "-Infinity", "1e400", "-1e999999", "9" * 400, "0x10", "1_000", "١٢٣",
    "1,299.00", "null", "true", "undefined", "{}", "[]", '{"a":1}', '"x"', '{"a":', "[" * 900, "[" * 900 + "]" * 900,
    '{"a":' * 400 + "1" + "}" * 400, '"\\ud800"', "\\", "\\u0000", '"', "'", "';--", "%", "%00", "%zz", "&a=b", "#",
    "{click_id}", "{{event_name}}", "%{x}", "{secret.key}", "${jndi:ldap://a}", "__CLICK_ID__", "\r\nX-Evil: 1", "\t",
    "\x1b[2J", "\x7f\x80\x9f", "\u202e\u202d", "\u2028\u2029", "\ufeff", "\uffff\ufffe", "\U0010ffff", "e\u0301" * 30,
    "👩‍👩‍👧‍👦" * 20, "ß", "İ", "ﷺ" * 40, "\ud7ff\ue000", "../../etc/passwd", "http://[::1/", "javascript:alert(1)",
    "-9223372036854775808", "18446744073709551616", "2026-13-45T99:99:99Z", "0001-01-01T00:00:00Z", "a" * 255,
)  # fmt: skip
IDS_OF_MANY = ("everybody", "00000000-0000-0000-0000-000000000001", "ffffffff-aaaa-4aaa-8aaa-aaaaaaaaaaaa")
IDS_OF_NOBODY = ("", "0" * 32, "{adid}", "null", "00000000-0000-0000-0000-000000000000", "9774d56d682e549c")
ADDRESSES = (
    "192.0.2.1", "203.0.113.7", "10.0.0.1", "100.64.0.1", "127.0.0.1", "0.0.0.0", "255.255.255.255",
    "2001:db8::1", "::", "::1", "fe80::1", "::ffff:192.0.2.1", "2001:db8:0:0:1:2:3:4",
)  # fmt: skip
NO_ADDRESSES = ("1.2.3", "1.2.3.4:80", "[::1]", "fe80::1%eth0", "a", "999.1.1.1", "٠.٠.٠.٠", " 192.0.2.1", "1.2.3.4\0")
USER_AGENTS = (
    "", "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 Chrome/126.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 Chrome/126.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Version/17.5 Mobile Safari/604.1",
    "Googlebot/2.1 (+http://www.google.com/bot.html)", "Android OS 9999999999999.99999999999", "(" * 2000,
    "Mozilla/5.0 (Linux; Android " + "9" * 3000 + ")",
)  # fmt: skip
AMOUNTS = (0, 1, -1, 12_990_000, 999_999, -5_000_000, MAX_MICROS, -MAX_MICROS - 1)
CURRENCIES = ("USD", "EUR", "JPY", "XXX", "ZZZ")
NO_CURRENCIES = ("", "usd", "US", "USDT", "€", "U\0D")
TEXT_KEYS = ("sum", "price", "currency", "quantity", "x", "y", "country", "a b", "ключ", "k" * 256, "", "secret.key")


class Records:
    """A sequence of serialised records, the same for the same seed and time: `now_us` is when they are sent."""

    def __init__(self, seed: int, now_us: int, *, devices: int) -> None:
        self._random, self._now_us, self._devices = random.Random(seed), now_us, devices
        self._record_ids: list[str] = []
        self._click_ids: list[str] = []
        self._number = 0
        self._seed = seed

    def batch(self, size: int) -> list[bytes]:
        """Returns the next records."""
        return [self._spoilt(self._record()) for _ in range(size)]

    def _record(self) -> record_pb2.Record:
        self._number += 1
        pick, chance = self._random.choice, self._chance
        record = record_pb2.Record(app_id=pick((ANDROID, ANDROID, IOS)))
        record.record_id = f"{self._seed}-{self._number}"
        if self._record_ids and chance(0.02):
            record.record_id = pick(self._record_ids)
        elif chance(0.03):
            record.record_id = pick(("", f"{self._odd()}-{self._number}"[-256:]))
        self._identify(record)
        if not chance(0.02):
            record.ip_address = f"198.51.100.{self._random.randrange(256)}" if chance(0.5) else pick(ADDRESSES)
        record.user_agent = pick(USER_AGENTS)
        if chance(0.3):  # else now: what is dated back has much decided again (D12)
            ahead_us = self._random.randrange(-2 * DAY_US, 0) if chance(0.9) else pick((-30 * DAY_US, 23 * HOUR_US))
            record.event_time.CopyFrom(to_timestamp(self._now_us + ahead_us))
            if chance(0.2):
                record.event_time.nanos = pick((0, 999_999_999, 1))
        self._surround(record)
        self._KINDS[self._random.choices(range(len(self._KINDS)), self._WEIGHTS)[0]](self, record)
        if chance(0.15):
            self._break(record)
        self._record_ids.append(record.record_id)
        if record.WhichOneof("kind") == "click":
            self._click_ids.append(record.record_id)
        return record

    def _identify(self, record: record_pb2.Record) -> None:
        hot = 3 if self._chance(0.02) else self._devices  # a few devices are met again and again
        number = self._random.randrange(hot)
        main = "adid" if record.app_id == ANDROID else "idfa"
        record.device_ids[main] = f"{number:08x}-aaaa-4aaa-8aaa-{number * 7919:012x}"
        pick, chance = self._random.choice, self._chance
        if chance(0.1):
            record.device_ids[pick(("custom", "android_id", "imei", "custom_md5"))] = pick(IDS_OF_MANY)
        if chance(0.1):
            record.device_ids[pick(KINDS)] = pick((*IDS_OF_NOBODY, *ODD))[:256]
        if chance(0.1):
            # Devices meet, but not all of an app: what one giant device costs is another test's.
            other = self._random.randrange(self._devices) if chance(0.02) else number
            record.device_ids["kochava_device_id"] = f"kd-{other}"
        if chance(0.03):
            del record.device_ids[main]

    def _surround(self, record: record_pb2.Record) -> None:
        chance = self._chance
        record.limit_ad_tracking, record.data_controlled = chance(0.1), chance(0.1)
        if chance(0.1):
            record.app_version = self._text(4096)
        if chance(0.1):
            record.privacy_consent.tc_string = self._text(4096)
            record.privacy_consent.ad_user_data = chance(0.5)
        if chance(0.1):
            record.tracking_transparency.authorized = chance(0.5)
            record.tracking_transparency.answer_time.CopyFrom(self._far_time())
        if chance(0.1):
            hints = record.client_hints
            hints.model, hints.platform = self._text(256), self._random.choice(("Android", self._text(256)))
            hints.platform_version = self._random.choice(("14.0.0", self._text(256)))

    # The kinds.

    def _click(self, record: record_pb2.Record) -> None:
        click = record.click
        click.tracker_id = self._random.choice(TRACKERS[record.app_id])
        if self._chance(0.5):
            click.click_id = self._text(256) if self._chance(0.2) else f"net-{self._random.randrange(self._devices)}"
        click.is_ping, click.invalid = self._chance(0.1), self._chance(0.05)
        click.visitor = self._random.choice((0, 0, 0, 1, 2))  # type: ignore[assignment]
        self._advertise(click.ad)

    def _impression(self, record: record_pb2.Record) -> None:
        impression = record.impression
        impression.tracker_id = self._random.choice(TRACKERS[record.app_id])
        impression.impression_id, impression.completed_view = self._text(256), self._chance(0.5)
        self._advertise(impression.ad)

    def _install(self, record: record_pb2.Record) -> None:
        record.install.click_record_id = self._click_id()
        record.install.referrer = self._text(4096)

    def _event(self, record: record_pb2.Record) -> None:
        event = record.event
        event.event_name = self._random.choice(EVENTS) if self._chance(0.97) else self._text(128) or "Odd"
        event.click_record_id = self._click_id()
        for _ in range(64 if self._chance(0.01) else self._random.choice((0, 1, 2, 4))):
            event.event_data[self._random.choice(TEXT_KEYS)] = self._text(4096)
        if self._chance(0.5):
            event.revenue.amount_micros = self._random.choice(AMOUNTS)
            event.revenue.currency_code = self._random.choice(CURRENCIES)

    def _session(self, record: record_pb2.Record) -> None:
        record.session.state = self._random.choice(
            (record_pb2.Session.STATE_START, record_pb2.Session.STATE_START, record_pb2.Session.STATE_STOP)
        )
        record.session.click_record_id = self._click_id()

    def _deep_link_open(self, record: record_pb2.Record) -> None:
        link = record.deep_link_open
        link.uri, link.click_record_id = self._text(4096) or "a://b", self._click_id()
        if self._chance(0.4):
            link.tracker_id = self._random.choice((*TRACKERS[record.app_id], self._text(256)))

    def _identity_link(self, record: record_pb2.Record) -> None:
        for _ in range(64 if self._chance(0.03) else 2):
            record.identity_link.identities[self._text(256)] = self._text(4096)

    _KINDS: Sequence[Callable[["Records", record_pb2.Record], None]] = (
        _click, _impression, _install, _event, _session, _deep_link_open, _identity_link,
    )  # fmt: skip
    _WEIGHTS = (25, 8, 8, 40, 9, 6, 4)

    def _advertise(self, ad: record_pb2.AdDetails) -> None:
        if self._chance(0.3):
            ad.site_id, ad.creative_id, ad.partner_campaign_name = self._text(256), self._text(256), self._text(4096)
            for _ in range(self._random.choice((0, 1, 3))):
                ad.custom_parameters[self._random.choice(("cp_0", "x", "sku", *TEXT_KEYS))] = self._text(4096)

    # What is odd, and what is wrong.

    def _break(self, record: record_pb2.Record) -> None:
        """Makes something of a record wrong that ingest must refuse, or take as it is."""
        pick = self._random.choice
        match self._random.randrange(7):
            case 0:
                record.event_time.CopyFrom(self._far_time())
            case 1:
                record.app_id = pick(("", "nobody's", self._text(256)))
            case 2:
                record.ip_address = pick(NO_ADDRESSES)
            case 3:
                record.device_ids[pick(("", "email", "ADID", "adid_md4"))] = self._odd()
            case 4:
                record.device_ids.clear()
            case 5:
                record.user_agent = pick(("a" * 4097, "a\0b", "é" * 2049, "😀" * 1024))
            case _:
                self._break_kind(record)

    def _break_kind(self, record: record_pb2.Record) -> None:
        pick = self._random.choice
        match self._random.randrange(6):
            case 0:
                record.event.revenue.currency_code = pick(NO_CURRENCIES)
            case 1:
                record.event.event_data[pick(("source", "network", "k" * 257))] = self._odd()
            case 2:
                record.event.event_name = pick(("", "_install", "_install2", "n" * 129, "a\0b", *ODD))
                record.event.event_data["x"] = "x" * pick((4096, 4097, 100_000))
            case 3:
                record.session.state = pick((0, 3, 99))  # type: ignore[assignment]
            case 4:
                record.click.tracker_id = pick(("", "nobody's", self._odd()[:256]))
            case _:
                for number in range(pick((65, 200))):
                    record.identity_link.identities[f"k{number}"] = "x" * pick((1, 4096))

    def _spoilt(self, record: record_pb2.Record) -> bytes:
        """Returns the bytes of a record, some of them no longer those of a record."""
        content = record.SerializeToString()
        if not self._chance(0.02):
            return content
        spoilt, place = bytearray(content), self._random.randrange(len(content))
        match self._random.randrange(4):
            case 0:
                spoilt[place] = self._random.randrange(256)
            case 1:
                del spoilt[place:]
            case 2:
                spoilt += self._random.choice((b"\xf8\x07\x01", b"\xa2\x06\x01\xff", b"\x0a\x02\xff\xfe"))
            case _:
                spoilt += content  # twice what may be there once
        return bytes(spoilt)

    def _text(self, limit: int) -> str:
        """Returns a text of at most so many bytes."""
        if self._chance(0.6):
            text = f"t{self._random.randrange(1000)}"
        elif self._chance(0.8):
            text = self._odd()
        else:
            text = self._random.choice(("x", "é", "😀", "{", '"', "[", "\\", "&", "\u202e")) * limit
        return text.encode()[:limit].decode(errors="ignore")

    def _odd(self) -> str:
        return "a\0b" if self._chance(0.005) else self._random.choice(ODD)

    def _far_time(self) -> Timestamp:
        far = (0, 2**62, -(2**62), 253_402_300_799, 253_402_300_800, -62_135_596_800, self._now_us // SECOND_US)
        return Timestamp(seconds=self._random.choice(far), nanos=self._random.choice((0, -1, 999_999_999, 2**31 - 1)))

    def _click_id(self) -> str:
        """Returns our click id as it comes back: mostly none, one that exists, or anything."""
        if self._chance(0.6):
            return ""
        if self._click_ids and self._chance(0.8):
            return self._random.choice(self._click_ids)[:256]
        return self._text(256)

    def _chance(self, share: float) -> bool:
        return self._random.random() < share
