"""The sample's stories. Each docstring names the rules that its outcome follows from."""

from collections.abc import Callable, Iterator
from functools import partial

from deploy.local.sample.book import Book, Json, Story
from deploy.local.sample.settings import ANDROID, DAY, HOUR, IOS, MINUTE

LAST = {IOS: "last-shop-ios", ANDROID: "last-shop-android"}
"""The last conversion of each app: once it was decided and told to a network, so was everything before it."""
EXPLAINED = {
    "a won one, with those that lost": (ANDROID, "sample-won"),
    "one that came too early to reengage": (IOS, "sample-too-early"),
    "one that nobody won": (IOS, "sample-not-attributed"),
    "one that X claimed in vain": (IOS, "sample-claimed"),
    "one that X did not answer": (IOS, "sample-no-answer"),
}
"""Conversions the demo explains in full: app and conversion id."""

_DESKTOP = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
)
_ACME = {IOS: "ios-acme-spring", ANDROID: "android-acme-spring"}
_OTHER = {IOS: "ios-bravo-spring", ANDROID: "android-viewly-spring"}
_RETURN = {IOS: "ios-acme-return", ANDROID: "android-acme-return"}
_RETIRED = {IOS: "ios-acme-retired", ANDROID: "android-acme-retired"}


def tell(book: Book) -> None:
    """Tells every story as often as `_STORIES` says, on each of its apps."""
    for story, apps, times in _STORIES:
        for app in apps:
            for number in range(times):
                story(Story(book, story.__name__.replace("_", "-"), app, number))


# Installs.


def click_then_install(story: Story) -> None:
    """A3, C1: matched by device id, raw or hashed."""
    tracker = (_ACME, _OTHER)[story.number % 2][story.app]
    story.click(tracker)
    story.install("ATTRIBUTED", tracker=tracker, by="DEVICE_ID")


def click_hours_ago(story: Story) -> None:
    """Follows a link as a server's ping, up to 12 hours late: it still counts from when the click was."""
    story.click(_ACME[story.app], ago=11 * HOUR, ip_address=story.ip, device_ua=story.agent)
    story.install("ATTRIBUTED", ago=10 * HOUR, tracker=_ACME[story.app], by="DEVICE_ID")


def ping_too_late(story: Story) -> None:
    """Follows a link as a ping more than 12 hours late: it is kept, and never a candidate."""
    story.click(_ACME[story.app], ago=13 * HOUR)
    story.install("ORGANIC", reason="NO_WINNER")


def modeled(story: Story) -> None:
    """A1, A2: an unreplaced macro is no id, so IP and user agent must do."""
    story.anonymous_click(_ACME[story.app], ago=2 * HOUR)
    story.install("ATTRIBUTED", tracker=_ACME[story.app], by="MODELED")


def same_address(story: Story) -> None:
    """A1: clicked on a computer, installed on a phone in the same home."""
    story.anonymous_click(_ACME[story.app], ago=3 * HOUR, agent=_DESKTOP)
    story.install("ATTRIBUTED", tracker=_ACME[story.app], by="IP")


def referrer(story: Story) -> None:
    """A1: the Play Store hands our click id back."""
    story.click(_ACME[ANDROID], keep=story.name, by_id=False, utm="1")
    story.install(
        "ATTRIBUTED",
        referrer=f"utm_source=acme&ko_click_id=<click {story.name}>",
        tracker=_ACME[ANDROID],
        by="CLICK_ID",
    )


def organic(story: Story) -> None:
    """F1."""
    story.sends_version = story.number % 5 == 2
    story.install("ORGANIC", reason="NO_CANDIDATE", repeats=story.number % 8 == 5)


def click_a_month_ago(story: Story) -> None:
    """B1, B2: outside the built-in 30 days."""
    story.old_click(_ACME[story.app], ago=30 * DAY + 12 * HOUR)
    first = story.app == IOS and story.number == 0
    story.install("ORGANIC", record_id=EXPLAINED["one that nobody won"][1] if first else "", reason="NO_WINNER")


def network_window(story: Story) -> None:
    """B3: the network's layer, 7 days."""
    days = 6 if story.number % 2 else 8
    story.old_click("ios-bravo-spring", ago=days * DAY)
    if days < 7:
        story.install("ATTRIBUTED", tracker="ios-bravo-spring", by="DEVICE_ID")
    else:
        story.install("ORGANIC", reason="NO_WINNER")


def app_window(story: Story) -> None:
    """B3: the app's layer, 24 hours for a mere IP."""
    story.old_click("ios-acme-spring", ago=2 * DAY, user_agent=_DESKTOP, device_ids={})
    story.install("ORGANIC", reason="NO_WINNER")


def newer_wins(story: Story) -> None:
    """C2: of two networks' clicks the newer one."""
    older, newer = (_ACME, _OTHER) if story.number % 2 else (_OTHER, _ACME)
    story.click(older[story.app], ago=3 * HOUR)
    story.click(newer[story.app], ago=HOUR)
    story.install("ATTRIBUTED", tracker=newer[story.app], by="DEVICE_ID")


def click_before_view(story: Story) -> None:
    """C1: an older click goes before a newer view, and a click by id before one by address."""
    story.click(_ACME[ANDROID], ago=3 * HOUR)
    story.view("android-viewly-spring", ago=HOUR)
    story.anonymous_click("android-viewly-spring", ago=30 * MINUTE)
    story.click(_RETIRED[ANDROID], ago=20 * MINUTE)
    first = story.number == 0
    story.install(
        "ATTRIBUTED",
        record_id=EXPLAINED["a won one, with those that lost"][1] if first else "",
        tracker=_ACME[ANDROID],
        by="DEVICE_ID",
    )


def view_then_install(story: Story) -> None:
    """C1, B3: a view wins when there is no click; this network's last 6 hours."""
    if story.number % 4 == 3:
        story.old_view("android-viewly-spring", ago=7 * HOUR)
        story.install("ORGANIC", reason="NO_WINNER")
    else:
        story.view("android-viewly-spring", ago=HOUR)
        story.install("ATTRIBUTED", tracker="android-viewly-spring", by="DEVICE_ID")


def completed_view(story: Story) -> None:
    """C2: this app puts completed views first."""
    story.view("android-viewly-spring", ago=3 * HOUR, completed=True)
    story.view("android-acme-spring", ago=HOUR)
    story.install("ATTRIBUTED", tracker="android-viewly-spring", by="DEVICE_ID")


def repeated_click_id(story: Story) -> None:
    """A6: a network's click id that comes again on another device is a duplicate."""
    tracker, click_id = _ACME[story.app], f"net-{story.name}"
    story.click(tracker, ago=2 * HOUR, click_id=click_id)
    story.install("ATTRIBUTED", tracker=tracker, by="DEVICE_ID")
    story.new_device()
    story.click(tracker, ago=HOUR, click_id=click_id)
    story.install("ORGANIC", reason="NO_WINNER")


def archived_tracker(story: Story) -> None:
    """G2, TRACKER_ARCHIVED: its links still lead somewhere, and win nothing."""
    story.click(_RETIRED[story.app])
    story.install("ORGANIC", reason="NO_WINNER")


def wrong_type(story: Story) -> None:
    """F1: a reengagement tracker wins no first install."""
    story.click(_RETURN[story.app])
    story.install("ORGANIC", reason="NO_WINNER")


def id_and_address(story: Story) -> None:
    """A4: a click that carries another device's id is not matched by address and user agent."""
    story.old_click(_ACME[story.app], ago=2 * HOUR, device_ids={story.ad_id_name: story.book.uuid()})
    story.install("ORGANIC", reason="NO_WINNER")


def installed_twice(story: Story) -> None:
    """F2."""
    story.install("ORGANIC", ago=2 * DAY, reason="NO_CANDIDATE")
    story.install("DUPLICATE", ago=DAY, reason="DUPLICATE_INSTALL")


def reprocessed(story: Story) -> None:
    """F2: this app counts an install again after 20 days, for reengagement trackers."""
    story.install("ORGANIC", ago=25 * DAY, reason="NO_CANDIDATE")
    if story.number % 2:
        story.install("REPROCESSED_ORGANIC", reason="NO_CANDIDATE")
    else:
        story.click(_RETURN[ANDROID], ago=HOUR)
        story.install("REPROCESSED", tracker=_RETURN[ANDROID], by="DEVICE_ID")


# Events.


def reengaged(story: Story) -> None:
    """D1 to D6."""
    story.install("ORGANIC", ago=3 * DAY, reason="NO_CANDIDATE")
    story.click(_RETURN[story.app], ago=HOUR, sku="4711")
    # The event names the device by another id than the click did; the install tied them together.
    story.event(
        "Purchase", "REENGAGED", tracker=_RETURN[story.app], by="DEVICE_ID", only_other_id=story.number % 3 == 1
    )
    story.event("Registration", "CREDITED", reason="EVENT_NOT_SELECTED", tracker=_RETURN[story.app])


def too_early(story: Story) -> None:
    """D3, D8: inside the minimum time to reengagement the event still counts for the install's source."""
    story.click(_ACME[story.app], ago=6 * HOUR)
    story.install("ATTRIBUTED", ago=5 * HOUR, tracker=_ACME[story.app], by="DEVICE_ID")
    story.click(_RETURN[story.app], ago=HOUR)
    first = story.app == IOS and story.number == 0
    story.event(
        "Purchase",
        "CREDITED",
        record_id=EXPLAINED["one that came too early to reengage"][1] if first else "",
        reason="MTR_NOT_MET",
        tracker=_ACME[story.app],
    )


def too_early_organic(story: Story) -> None:
    """D3, D8: and for nobody, when the install was organic."""
    story.install("ORGANIC", ago=5 * HOUR, reason="NO_CANDIDATE")
    story.click(_RETURN[story.app], ago=HOUR)
    story.event("Purchase", "UNATTRIBUTED", reason="MTR_NOT_MET")


def no_minimum_time(story: Story) -> None:
    """D3: an MTR of 0 is off."""
    story.install("ORGANIC", ago=5 * HOUR, reason="NO_CANDIDATE")
    story.click("ios-acme-return", ago=10 * MINUTE)
    story.event("AddToCart", "REENGAGED", tracker="ios-acme-return", by="DEVICE_ID")


def spent(story: Story) -> None:
    """D5: one conversion a click on this tracker. B3: 2 hours, the tracker's layer."""
    story.install("ORGANIC", ago=3 * DAY, reason="NO_CANDIDATE")
    if story.number % 3 == 2:
        story.click("android-acme-flash", ago=3 * HOUR)
        story.event("AddToCart", "UNATTRIBUTED", reason="NO_WINNER")
        return
    story.click("android-acme-flash", ago=HOUR)
    story.event("AddToCart", "REENGAGED", ago=30 * MINUTE, tracker="android-acme-flash", by="DEVICE_ID")
    story.event("AddToCart", "CREDITED", reason="NO_WINNER", tracker="android-acme-flash")


def session(story: Story) -> None:
    """D4: a session start is SessionBegin; one reengagement by it in 24 hours."""
    story.install("ORGANIC", ago=3 * DAY, reason="NO_CANDIDATE")
    story.click("ios-bravo-return", ago=HOUR)
    story.session("start", "REENGAGED", tracker="ios-bravo-return", by="DEVICE_ID")
    story.session("stop")
    if story.number % 2:
        # Told once in 24 hours (networks: NETWORK_ONLY SessionBegin).
        story.event(
            "SessionBegin",
            "CREDITED",
            reason="SESSION_ALREADY_REENGAGED",
            tracker="ios-bravo-return",
            data={},
            told=False,
        )


def engaged_user(story: Story) -> None:
    """D1, D8: events that reengage nobody count for the install's source."""
    tracker = _ACME[story.app]
    story.click(tracker, ago=4 * HOUR)
    story.install("ATTRIBUTED", ago=3 * HOUR, tracker=tracker, by="DEVICE_ID")
    for name, ago in (("ViewContent", 2 * HOUR), ("Search", HOUR), ("Registration", 0)):
        story.event(
            name, "CREDITED", ago=ago, reason="EVENT_NOT_SELECTED", tracker=tracker, repeats=story.number % 6 == 0
        )


def organic_user(story: Story) -> None:
    """D8: and for nobody's, when that is organic."""
    story.sends_version = story.number % 4 == 2
    story.install("ORGANIC", ago=2 * DAY, reason="NO_CANDIDATE")
    story.event("Registration", "UNATTRIBUTED", ago=DAY, reason="EVENT_NOT_SELECTED")
    story.event("Search", "UNATTRIBUTED", reason="EVENT_NOT_SELECTED")


def unknown_device(story: Story) -> None:
    """D9: a device without a known install can be reengaged, and has no clock that forbids it."""
    if story.number % 2:
        story.click(_RETURN[story.app])
        story.event("Purchase", "REENGAGED", tracker=_RETURN[story.app], by="DEVICE_ID")
    else:
        story.event("Purchase", "UNATTRIBUTED", reason="NO_CANDIDATE")


def before_install(story: Story) -> None:
    """D10, at the time of the install. D12: at an earlier time, no install was known yet."""
    story.install("ORGANIC", ago=HOUR, reason="NO_CANDIDATE")
    at_once = story.number % 2 == 0
    story.event(
        "Purchase",
        "UNATTRIBUTED",
        ago=HOUR if at_once else 2 * HOUR,
        reason="EVENT_BEFORE_INSTALL" if at_once else "NO_CANDIDATE",
    )


def late_record(story: Story) -> None:
    """D6: a late event is credited to the source of its own time."""
    story.old_click("ios-acme-spring", ago=10 * DAY + HOUR)
    story.install("ATTRIBUTED", ago=10 * DAY, tracker="ios-acme-spring", by="DEVICE_ID")
    story.old_click("ios-bravo-return", ago=2 * DAY + HOUR)
    story.event("Purchase", "REENGAGED", ago=2 * DAY, tracker="ios-bravo-return", by="DEVICE_ID")
    story.event("Search", "CREDITED", ago=5 * DAY, reason="EVENT_NOT_SELECTED", tracker="ios-acme-spring")
    story.event("Search", "CREDITED", ago=DAY, reason="EVENT_NOT_SELECTED", tracker="ios-bravo-return")


def period_over(story: Story) -> None:
    """D6: LevelUp holds for 7 days."""
    story.install("ORGANIC", ago=20 * DAY, reason="NO_CANDIDATE")
    story.old_click("android-acme-return", ago=10 * DAY + HOUR)
    story.event("LevelUp", "REENGAGED", ago=10 * DAY, tracker="android-acme-return", by="DEVICE_ID")
    story.event("Search", "CREDITED", ago=4 * DAY, reason="EVENT_NOT_SELECTED", tracker="android-acme-return")
    story.event("Search", "UNATTRIBUTED", ago=2 * DAY, reason="EVENT_NOT_SELECTED")


def deep_link(story: Story) -> None:
    """A1: our click id comes back with the event."""
    story.click(_RETURN[story.app], keep=story.name, by_id=False, sku="1000")
    uri = f"sampleshop://product/1000?ko_click_id=<click {story.name}>"
    story.opened(uri, "UNATTRIBUTED", reason="EVENT_NOT_SELECTED")
    story.event(
        "Purchase",
        "REENGAGED",
        data={"ko_click_id": f"<click {story.name}>", "sum": "12.50", "currency": "EUR"},
        tracker=_RETURN[story.app],
        by="CLICK_ID",
    )


def universal_link(story: Story) -> None:
    """Opens the app by a link with no recorded click: the open itself is the click."""
    story.opened(
        "https://shop.example/product/7?campaign_id=ios-acme-return", "UNATTRIBUTED", reason="EVENT_NOT_SELECTED"
    )
    story.event("Purchase", "REENGAGED", tracker="ios-acme-return", by="DEVICE_ID")


def views_and_reengagement(story: Story) -> None:
    """B5: one network's views take part, the other's do not."""
    if story.app == ANDROID:
        story.view("android-viewly-return", ago=HOUR)
        story.event("Purchase", "REENGAGED", tracker="android-viewly-return", by="DEVICE_ID")
    else:
        story.view("ios-bravo-return", ago=HOUR)
        story.event("Purchase", "UNATTRIBUTED", reason="NO_WINNER")


def identity(story: Story) -> None:
    """F3."""
    if story.number % 3 == 0:
        story.identity_link("REFUSED", reason="DEVICE_NOT_KNOWN")
    else:
        story.install("ORGANIC", ago=DAY, reason="NO_CANDIDATE")
        story.identity_link("LINKED")


def new_ids(story: Story) -> None:
    """Tells that a device's ids changed."""
    story.install("ORGANIC", ago=DAY, reason="NO_CANDIDATE")
    story.update("UNATTRIBUTED", reason="EVENT_NOT_SELECTED")


# Claims.


def claimed(story: Story) -> None:
    """E1, E3: X says that it drove the event; its default tracker is credited."""
    story.install("ORGANIC", ago=3 * DAY, reason="NO_CANDIDATE")
    story.x_says(ago=HOUR)
    story.event("Subscribe", "REENGAGED", tracker="ios-x-return", by="CLAIM")


def claim_refused(story: Story) -> None:
    """E2: the person shares no granular data, so the next best wins."""
    story.install("ORGANIC", ago=3 * DAY, reason="NO_CANDIDATE")
    story.click("ios-acme-return", ago=2 * HOUR)
    story.x_says(ago=HOUR, is_granular_data_sharing_allowed=False)
    record_id = EXPLAINED["one that X claimed in vain"][1] if story.number == 0 else ""
    story.event("Subscribe", "REENGAGED", record_id=record_id, tracker="ios-acme-return", by="DEVICE_ID")


def claim_beaten(story: Story) -> None:
    """C3: a newer click of another network goes before a claim."""
    story.install("ORGANIC", ago=3 * DAY, reason="NO_CANDIDATE")
    story.x_says(ago=2 * HOUR)
    story.click("ios-acme-return", ago=HOUR)
    story.event("Subscribe", "REENGAGED", tracker="ios-acme-return", by="DEVICE_ID")


def not_claimed(story: Story) -> None:
    """E1: X says that it did not."""
    story.install("ORGANIC", ago=3 * DAY, reason="NO_CANDIDATE")
    story.event("Subscribe", "UNATTRIBUTED", reason="NO_CANDIDATE")


def no_answer(story: Story) -> None:
    """E4: X does not answer; the event is decided without."""
    story.install("ORGANIC", ago=3 * DAY, reason="NO_CANDIDATE")
    story.click("ios-acme-return", ago=HOUR)
    story.x_says(silent=True)
    record_id = EXPLAINED["one that X did not answer"][1] if story.number == 0 else ""
    story.event(
        "Subscribe", "REENGAGED", record_id=record_id, tracker="ios-acme-return", by="DEVICE_ID", asked="EXHAUSTED"
    )


# Broken ones.


def broken_json(story: Story) -> None:
    """Sends records that are refused, each with every reason that holds."""
    for action, change, reasons in _broken():
        story.refused(action, change, *reasons)
    story.refused_body('{"action": "event", "kochava_app_id": ', "INVALID_JSON")
    story.refused_body("action=event&kochava_app_id=shop-ios", "INVALID_JSON")
    story.refused_body('{"action": "event", "data": {"event_name": "Sea\\u0000rch"}}', "INVALID_TEXT", "REQUIRED")


def broken_links(story: Story) -> None:
    """Follows links of no tracker."""
    story.refused_link(f"/c/nobody-knows-{story.number}?idfa={story.ad_id}")
    story.refused_link(f"/v1/cpi/click?campaign_id={{campaign_id}}&site_id={story.number}")
    story.refused_link("/track/impression?event=view&campaign_id=")


def broken_records(story: Story) -> None:
    """Sends records that are refused over gRPC by themselves: the good ones of their batch are kept."""
    click: Json = {"click": {"tracker_id": "nobody-knows"}}
    story.refused_record(click, "UNKNOWN_TRACKER")
    story.refused_record({"event": {"event_name": ""}}, "REQUIRED")
    story.refused_record({"install": {}}, "EVENT_TIME_TOO_OLD", ago=40 * DAY)
    story.refused_record({"session": {}}, "REQUIRED", "UNKNOWN_APP", app_id="no-such-app")
    nobody = {"adid": "{adid}", "serial": "C02"}
    story.refused_record({"install": {}}, "UNKNOWN_DEVICE_ID", "REQUIRED", device_ids=nobody, ip_address="")


def _broken() -> Iterator[tuple[str, Callable[[Json], object], tuple[str, ...]]]:
    yield "event", lambda body: body.pop("action"), ("REQUIRED",)
    yield "purchase", _unchanged, ("UNKNOWN_ACTION",)
    yield "install", lambda body: body.update(kochava_app_id="no-such-app"), ("UNKNOWN_APP",)
    yield "install", _without_ids, ("REQUIRED",)
    yield "event", lambda body: _put(body, "usertime", f"@{3 * DAY}"), ("EVENT_TIME_IN_FUTURE",)
    yield "install", lambda body: _put(body, "usertime", f"@{-40 * DAY}"), ("EVENT_TIME_TOO_OLD",)
    yield "event", lambda body: _put(body, "event_name", ""), ("REQUIRED",)
    # What alone would cost that field is named with what refuses the record.
    for key, value, reason in (
        ("origination_ip", "300.1.2.3", "INVALID_IP_ADDRESS"),
        ("usertime", "yesterday", "INVALID_TIME"),
        ("event_data", {"network": "acme"}, "RESERVED_NAME"),
        ("event_data", {"items": [1, 2]}, "NOT_FLAT"),
        ("event_data", {"sum": "a lot"}, "INVALID_AMOUNT"),
    ):
        yield "event", partial(_put_without_name, key=key, value=value), (reason, "REQUIRED")


def _put(body: Json, key: str, value: object) -> None:
    body.get("data", body)[key] = value


def _unchanged(_body: Json) -> None:
    return


def _without_ids(body: Json) -> None:
    body.pop("kochava_device_id", None)
    _put(body, "device_ids", {"idfa": "00000000-0000-0000-0000-000000000000", "adid": "{adid}"})
    _put(body, "origination_ip", None)


def _put_without_name(body: Json, key: str, value: object) -> None:
    _put(body, "event_name", "")
    _put(body, key, value)


_BOTH = (IOS, ANDROID)
_STORIES: tuple[tuple[Callable[[Story], None], tuple[str, ...], int], ...] = (
    (click_then_install, _BOTH, 48),
    (click_hours_ago, _BOTH, 10),
    (ping_too_late, _BOTH, 4),
    (modeled, _BOTH, 18),
    (same_address, _BOTH, 10),
    (referrer, (ANDROID,), 20),
    (organic, _BOTH, 48),
    (click_a_month_ago, _BOTH, 8),
    (network_window, (IOS,), 10),
    (app_window, (IOS,), 5),
    (newer_wins, _BOTH, 16),
    (click_before_view, (ANDROID,), 10),
    (view_then_install, (ANDROID,), 20),
    (completed_view, (ANDROID,), 6),
    (repeated_click_id, _BOTH, 6),
    (archived_tracker, _BOTH, 6),
    (wrong_type, _BOTH, 6),
    (id_and_address, _BOTH, 6),
    (installed_twice, _BOTH, 8),
    (reprocessed, (ANDROID,), 8),
    (reengaged, _BOTH, 40),
    (too_early, _BOTH, 15),
    (too_early_organic, _BOTH, 8),
    (no_minimum_time, (IOS,), 10),
    (spent, (ANDROID,), 12),
    (session, (IOS,), 12),
    (engaged_user, _BOTH, 36),
    (organic_user, _BOTH, 24),
    (unknown_device, _BOTH, 12),
    (before_install, _BOTH, 6),
    (late_record, (IOS,), 8),
    (period_over, (ANDROID,), 8),
    (deep_link, _BOTH, 12),
    (universal_link, (IOS,), 8),
    (views_and_reengagement, _BOTH, 8),
    (identity, _BOTH, 12),
    (new_ids, _BOTH, 5),
    (broken_json, _BOTH, 3),
    (broken_links, (IOS,), 5),
    (broken_records, (ANDROID,), 5),
    (claimed, (IOS,), 6),
    (claim_refused, (IOS,), 4),
    (claim_beaten, (IOS,), 4),
    (not_claimed, (IOS,), 4),
    (no_answer, (IOS,), 3),
)
