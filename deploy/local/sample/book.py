"""Tells stories: the records of one person's devices and ads, in the shapes that real senders use.

Step n of every story is played in round n, so that a click is kept before the install it leads to is sent. What must
become of a step is noted beside it, from the rules, never by running the product.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

from deploy.local.sample.settings import ANDROID, IOS, POSTBACKS, TRACKERS
from deploy.local.x_network import hashed

Json = dict[str, Any]
NETWORK_OF = {tracker.tracker_id: tracker.network_id for tracker in TRACKERS}
ENDS = {"acme": "DELIVERED", "bravo": "DELIVERED", "viewly": "DELIVERED", "x": "DELIVERED", "closed": "REFUSED"}
"""The ends of deliveries, by path of the demo's local ad network."""
KINDS = ("click", "impression", "install", "event", "session", "deep_link_open", "identity_link")
"""Kinds of records, as the log names them."""
NOT_TOLD = ("DUPLICATE", "REFUSED", "LINKED")
"""Outcomes that no network hears of."""

_PHONES = {
    IOS: (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
        "Mozilla/5.0 (iPad; CPU OS 16_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
    ),
    ANDROID: (
        "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0",
        "Dalvik/2.1.0 (Linux; U; Android 13; SM-S911B Build/TP1A.220624.014)",
        "Mozilla/5.0 (Linux; Android 12; moto g(60)) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0",
    ),
}


class Book:
    """All sendings, and what must become of them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.sendings: list[Json] = []
        """Each has `round` and `story`, and one of `get`, `post`, `json` (one record), `record` (one, for gRPC)."""
        self.sent: Counter[str] = Counter()
        self.logged: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.decisions: Counter[str] = Counter()
        self.deliveries: Counter[str] = Counter()
        self.people = 0

    def address(self) -> str:
        """Returns an IP address that nobody else in the sample has."""
        self.people += 1
        if self.people % 9 == 0:
            return f"2001:db8:{self.people:x}::1"
        return f"198.18.{self.people // 250}.{self.people % 250 + 1}"

    def uuid(self) -> str:
        """Returns an advertising id."""
        digits = f"{self.random.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"

    def decided(
        self,
        app: str,
        event: str,
        outcome: str,
        *,
        reason: str = "-",
        tracker: str = "-",
        by: str = "-",
        told: bool = True,
        asked: str = "DELIVERED",
    ) -> None:
        """Notes the decision that must come, and with it the deliveries; `asked` is how a claim request ends."""
        self.decisions[f"{app} {event} {outcome} {reason} {tracker} {by}"] += 1
        if outcome in NOT_TOLD or not told:
            return
        for postback in POSTBACKS:
            if (postback.app_id, postback.trigger) == (app, event) and (
                not postback.network_only or NETWORK_OF.get(tracker) == postback.network_id
            ):
                end = asked if postback.claims else ENDS[postback.path]
                self.deliveries[f"{postback.configuration_id} {end}"] += 1


class Story:
    """One person and what he does, step by step. `number` picks the shapes his records come in."""

    def __init__(self, book: Book, name: str, app: str, number: int) -> None:
        self.book, self.name, self.app, self.number = book, f"{name}/{app}/{number}", app, number
        self.round = 0
        self.agent = _PHONES[app][number % 3]
        self.ad_id_name, self.other_id_name = ("idfa", "idfv") if app == IOS else ("adid", "android_id")
        self.sends_version = False
        """True: bodies give the device's version instead of a user agent."""
        self.new_device()

    def new_device(self) -> None:
        """Takes another device, in another place."""
        self.ip = self.book.address()
        self.ad_id = self.book.uuid().upper() if self.app == IOS else self.book.uuid()
        self.other_id = self.book.uuid().upper() if self.app == IOS else f"{self.book.random.getrandbits(64):016x}"
        self.kochava_id = f"KA{self.book.random.getrandbits(96):024x}"

    # Ads.

    def click(self, tracker: str, *, ago: int = 0, keep: str = "", by_id: bool = True, **query: str) -> None:
        """Clicks on a link, `ago` seconds back; `keep` names the click id that the redirect hands out."""
        if by_id:
            query = self._id_in_link() | query
        if ago:
            query["click_time"] = f"<{-ago}>"
        query |= {"site_id": f"site-{self.number % 7}", "creative_id": "{creative}", "cp_0": self.name}
        path = (
            f"/c/{tracker}?{_query(query)}",
            f"/v1/cpi/click?{_query({'campaign_id': tracker, 'network_id': '17'} | query)}",
            f"/v1/cpi/click?campaign_id?{_query({'campaign_id': tracker} | query)}",  # some networks make it so
        )[self.number % 3]
        line: Json = {"get": path}
        if "ip_address" not in query:
            line["agent"] = self.agent
        if keep:
            line["keep"] = keep
        self._send(line, "click")

    def anonymous_click(self, tracker: str, *, ago: int = 0, agent: str = "") -> None:
        """Clicks on a link whose id macro nobody replaced: address and user agent are all there is."""
        macro = ("{idfa}", "%{ADID}", "[device_id]", "null", "00000000-0000-0000-0000-000000000000")[self.number % 5]
        self.click(tracker, ago=ago, by_id=False, ip_address=self.ip, device_ua=agent or self.agent, device_id=macro)

    def view(self, tracker: str, *, ago: int = 0, completed: bool = False) -> None:
        """Sees an ad, by an impression link."""
        query = self._id_in_link() | {"event": "complete" if completed else "view", "impression_id": self.name}
        if ago:
            query["click_time"] = f"<{-ago}>"
        line: Json = {"get": f"/track/impression?{_query({'campaign_id': tracker} | query)}", "agent": self.agent}
        self._send(line, "impression")

    def old_click(self, tracker: str, *, ago: int, **record: Any) -> None:
        """Clicks further back than a link may tell, so over gRPC; `record` replaces fields of it."""
        self._send({"record": self._record(ago, {"click": {"tracker_id": tracker}}) | record}, "click")

    def old_view(self, tracker: str, *, ago: int) -> None:
        """Sees an ad further back than a link may tell, likewise."""
        self._send({"record": self._record(ago, {"impression": {"tracker_id": tracker}})}, "impression")

    def x_says(self, *, ago: int = 0, silent: bool = False, **data: Any) -> None:
        """Has X claim what the person does by a click `ago` seconds back, with `data` beside it; or not answer."""
        claim = {"engagement_time": f"<{-ago} iso>", "engagement_type": "CLICK", "promoted_properties": {}}
        conduct = {"silent": True} if silent else {"twitter": claim, "data": data}
        self.book.sendings.append(
            {"round": self.round, "story": self.name, "x": {"device": hashed(self.ad_id), "conduct": conduct}}
        )
        self.round += 1

    # The app.

    def install(
        self,
        outcome: str,
        *,
        ago: int = 0,
        record_id: str = "",
        referrer: str = "",
        repeats: int = 0,
        **decided: Any,
    ) -> None:
        """Installs the app, which must be decided so; the record comes again `repeats` times."""
        data: Json = {"install_referrer": {"referrer": referrer}} if referrer else {}
        kind = {"install": {"referrer": referrer} if referrer else {}}
        self._conversion("install", "install", data, kind, ago=ago, record_id=record_id, repeats=repeats)
        self.book.decided(self.app, "_install", outcome, **decided)

    def event(
        self,
        name: str,
        outcome: str,
        *,
        ago: int = 0,
        record_id: str = "",
        data: Json | None = None,
        only_other_id: bool = False,
        repeats: int = 0,
        **decided: Any,
    ) -> None:
        """Does something in the app, which must be decided so."""
        event_data = self._event_data(name) if data is None else data
        kind: Json = {"event": {"event_name": name, "event_data": {k: str(v) for k, v in event_data.items()}}}
        if name == "Purchase":
            kind["event"]["revenue"] = {
                "amount_micros": str(1_000_000 * (self.number % 90 + 10)),
                "currency_code": "EUR",
            }
        self._conversion(
            "event", "event", {"event_name": name, "event_data": event_data or []}, kind,
            ago=ago, record_id=record_id, only_other_id=only_other_id, repeats=repeats,
        )  # fmt: skip
        self.book.decided(self.app, name, outcome, **decided)

    def session(self, state: str, outcome: str = "", **decided: Any) -> None:
        """Starts or ends a session; only the first start after an install is decided upon."""
        kind = {"session": {"state": f"STATE_{state.upper()}"}}
        self._conversion("session", "session", {"state": state}, kind)
        if outcome:
            self.book.decided(self.app, "SessionBegin", outcome, **decided)

    def opened(self, uri: str, outcome: str, **decided: Any) -> None:
        """Opens the app by a link."""
        data = {"event_name": "_Deeplink", "event_data": {"uri": uri}}
        self._post(self._json("event", data), "deep_link_open")
        self.book.decided(self.app, "_Deeplink", outcome, **decided)

    def identity_link(self, outcome: str, **decided: Any) -> None:
        """Ties a name of the person to the device."""
        body: Json = {
            "kochava_app_id": self.app,
            "device_id": {self.ad_id_name: self.ad_id},
            "data": {"account": f"user-{self.number}", "newsletter": "yes"},
        }
        if self.number % 2:
            self._send({"post": "/v1/cpi/identityLink.php", "body": body}, "identity_link")
        else:
            self._post({"action": "identityLink"} | body, "identity_link")
        self.book.decided(self.app, "_identity_link", outcome, **decided)

    def update(self, outcome: str, **decided: Any) -> None:
        """Tells that the device's ids changed."""
        self._post(self._json("update", {}), "event")
        self.book.decided(self.app, "_Update", outcome, **decided)

    # Broken ones.

    def refused(self, action: str, change: Callable[[Json], object], *reasons: str) -> None:
        """Sends a record that is refused for these reasons, once `change` was made to its JSON."""
        body = self._json(action, {"event_name": "Search", "event_data": []} if action == "event" else {})
        change(body)
        self._refuse({"json": body}, action, reasons)

    def refused_body(self, text: str, *reasons: str) -> None:
        """Sends a body that is refused as a whole."""
        self._refuse({"post": "/track/json", "text": text}, "event", reasons)

    def refused_link(self, path: str) -> None:
        """Follows a link that leads nowhere."""
        self._refuse({"get": path, "agent": self.agent}, "click", ("UNKNOWN_LINK",))

    def refused_record(self, kind: Json, *reasons: str, ago: int = 0, **record: Any) -> None:
        """Sends a record that is refused over gRPC."""
        self._refuse({"record": self._record(ago, kind) | record}, next(iter(kind)), reasons)

    # How it is sent.

    def _conversion(
        self, action: str, kind: str, data: Json, record_kind: Json, *,
        ago: int = 0, record_id: str = "", only_other_id: bool = False, repeats: int = 0,
    ) -> None:  # fmt: skip
        over_grpc = self.number % 10 in (8, 9) and "install_referrer" not in data and "ko_click_id" not in str(data)
        if over_grpc:
            record = self._record(ago, record_kind, only_other_id=only_other_id)
            record["record_id"] = record_id or self.book.uuid()
            line: Json = {"record": record}
        else:
            body = self._json(action, data, ago=ago, only_other_id=only_other_id)
            # Most senders give no id of their own.
            if record_id or self.number % 3 == 0 and not repeats:
                body["record_id"] = record_id or self.book.uuid()
            line = {"json": body}
        self._send(line, kind)
        for _ in range(repeats):
            self._send(line, kind, again=True)

    def _post(self, body: Json, kind: str) -> None:
        self._send({"json": body}, kind)

    def _send(self, line: Json, kind: str, *, again: bool = False) -> None:
        self.book.sendings.append({"round": self.round, "story": self.name} | line)
        self.book.sent[kind] += 1
        if not again:
            self.book.logged[kind] += 1
        self.round += 1

    def _refuse(self, line: Json, kind: str, reasons: tuple[str, ...]) -> None:
        self.book.sendings.append({"round": self.round, "story": self.name} | line)
        self.book.sent[kind if kind in KINDS else "unknown"] += 1
        self.book.refused["+".join(sorted(set(reasons)))] += 1
        self.round += 1

    # What it looks like.

    def _id_in_link(self) -> Json:
        """Returns the advertising id in one of the forms that networks send (A3)."""
        name, raw = self.ad_id_name, self.ad_id
        match self.number % 8:
            case 0:
                return {name: raw}
            case 1:
                return {"device_id": raw.swapcase(), "device_id_type": name}
            case 2:
                return {"ios_idfa" if name == "idfa" else "adid": raw.replace("-", "").lower()}
            case 3:
                return _hashed("md5", raw.upper())
            case 4:
                return _hashed("sha1", raw.lower())
            case 5:
                return _hashed("sha256", raw.lower().replace("-", ""))
            case 6:
                return _hashed("sha1", hashlib.md5(raw.lower().encode()).hexdigest())  # noqa: S324  # as senders do
            case _:
                return {"device_id": raw}

    def _ids(self, *, only_other_id: bool) -> Json:
        return {self.other_id_name: self.other_id} if only_other_id else {
            self.ad_id_name: self.ad_id, self.other_id_name: self.other_id,
        }  # fmt: skip

    def _record(self, ago: int, kind: Json, *, only_other_id: bool = False) -> Json:
        record: Json = {
            "app_id": self.app,
            "device_ids": self._ids(only_other_id=only_other_id),
            "ip_address": self.ip,
            "user_agent": self.agent,
        }
        if ago:
            record["event_time"] = f"<{-ago} iso>"
        return record | kind

    def _json(self, action: str, more: Json, *, ago: int = 0, only_other_id: bool = False) -> Json:
        """Returns a server-to-server body, in one of the shapes that senders make."""
        number = self.number
        ids = self._ids(only_other_id=only_other_id)
        data: Json = {
            "device_ids": ([{name: value} for name, value in ids.items()], ids | {"oaid": "", "custom": "null"}, ids)[
                number % 3
            ],
            "origination_ip": self.ip,
            "device_ua": quote(self.agent) if number % 4 == 1 else self.agent,
            "app_ver" if number % 5 == 1 else "app_version": "4.2.1",
        }
        if self.sends_version:
            data |= {"device_ua": "", "device_ver": "iPhone15,2-iOS-17.5" if self.app == IOS else "Pixel 8-Android-14"}
        if ago:
            data["usertime"] = (f"@{-ago}", f"<{-ago}>", f"@{-ago} ms", f"<{-ago} ms>")[number % 4]
        elif number % 4 == 2:
            data["usertime"] = ""
        if self.app == IOS:
            # Without it, iOS 14 and later give no IDFA.
            data["app_tracking_transparency"] = {"att": True, "att_detail": "authorized"}
        if number % 6 == 1:
            data["device_limit_tracking"] = "false"
            data["gdpr_privacy_consent"] = {
                "gdpr_applies": "1",
                "tc_string": "CPXxRfAPXxRfAAfKABENB-CgAAAAAAAAAAYgAAAAAAAA",
            }
        data |= more
        body: Json = {"action": action, "kochava_app_id": self.app}
        if not only_other_id:
            body["kochava_device_id"] = (self.kochava_id, "", None)[number % 3]
        # Every key of `data` may stand at the root instead.
        return body | data if number % 7 == 3 else body | {"data": data}

    def _event_data(self, name: str) -> Json:
        if name == "Purchase":
            amount = self.number % 90 + 10
            return {
                ("sum", "price", "revenue")[self.number % 3]: (amount, f"{amount}.00")[self.number % 2],
                "currency": "EUR",
            }
        return {"screen": f"page-{self.number % 12}", "signed_in": True} if self.number % 2 else {}


def _query(parameters: Json) -> str:
    # What stands for a time or a click id is filled in when it is played.
    return urlencode(parameters, safe="<>{}[],", quote_via=quote)


def _hashed(method: str, text: str) -> Json:
    digest = hashlib.new(method, text.encode()).hexdigest()
    return {"device_id": digest, "device_id_is_hashed": "true", "device_hash_method": method}
