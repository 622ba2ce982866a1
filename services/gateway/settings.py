"""The settings that the gateway needs, each built from tracker's message when it is first asked for."""

import re
from collections.abc import Sequence
from functools import cached_property
from urllib.parse import quote

from google.protobuf.message import Message

from libs.domain.setting_ranges import DEFAULT_RECORDS_PER_SECOND
from libs.domain.short_codes import short_code
from libs.domain.snapshots import Resources
from reengage.tracker.v1 import app_pb2, status_pb2, tracker_pb2
from services.gateway.model import URL_CHARACTERS, App, Destination, Platform, Template, Tracker

_BUNDLE_IDS = {
    Platform.ANDROID: re.compile(r"[A-Za-z]\w*(?:\.[A-Za-z]\w*)+", re.ASCII),
    Platform.IOS: re.compile(r"[A-Za-z0-9.-]+"),
}


class GatewaySettings:
    """One revision of the settings."""

    def __init__(self, resources: Resources, revision: int) -> None:
        self.revision = revision
        # A copy of the dicts: the messages themselves are replaced, never changed.
        self._messages: dict[str, dict[tuple[str, ...], Message]] = {
            kind: dict(resources[kind]) for kind in ("app", "network", "campaign", "tracker")
        }
        self._apps: dict[str, App | None] = {}
        self._trackers: dict[str, Tracker | None] = {}
        self._by_name: dict[str, str] | None = None
        self._by_domain: dict[str, list[App]] | None = None

    def app(self, app_id: str) -> App | None:
        """Returns the live app of this id."""
        try:
            app = self._apps[app_id]
        except KeyError:
            message = self._messages["app"].get((app_id,))
            if message is None:
                return None  # not remembered: anyone can ask for any id
            assert isinstance(message, app_pb2.App)
            app = self._apps[app_id] = _app(message)
        return app if app is not None and app.live else None

    def allows_origin(self, origin: str, apps: Sequence[App]) -> bool:
        """Returns whether pages of this origin may read what these apps are answered; with none, any app may say so."""
        allowed = [app.allowed_origins for app in apps] or [self._origins]
        return all(origin in origins or "*" in origins for origins in allowed)

    @cached_property
    def _origins(self) -> frozenset[str]:
        """Returns the origins that any live app allows."""
        apps = [message for message in self._messages["app"].values() if isinstance(message, app_pb2.App)]
        live = (app for app in apps if app.status != status_pb2.STATUS_ARCHIVED)
        return frozenset(origin for app in live for origin in app.settings.allowed_origins)

    def tracker(self, tracker_id: str) -> Tracker | None:
        """Returns the tracker of this id, archived ones too, if links can lead anywhere by it."""
        try:
            return self._trackers[tracker_id]
        except KeyError:
            pass
        message = self._messages["tracker"].get((tracker_id,))
        if message is None:
            return None
        assert isinstance(message, tracker_pb2.Tracker)
        app = self._messages["app"].get((message.app_id,))
        tracker = _tracker(message, app) if isinstance(app, app_pb2.App) else None
        self._trackers[tracker_id] = tracker
        return tracker

    def find_tracker(self, name: str) -> Tracker | None:
        """Returns the tracker that a link names by its id or its short code, in whatever letter case.

        None if that could be two.
        """
        if not name:
            return None
        if self._by_name is None:  # links that were changed on their way are few: others need none of it
            self._by_name = {}
            for (tracker_id,) in self._messages["tracker"]:
                for folded in (tracker_id.lower(), short_code(tracker_id).lower()):
                    self._by_name[folded] = "" if folded in self._by_name else tracker_id
        return self.tracker(name) or self.tracker(self._by_name.get(name.lower(), ""))

    def apps_on(self, domain: str) -> list[App]:
        """Returns the live apps whose links are on a host, in the order of their ids."""
        if self._by_domain is None:
            self._by_domain = {}
            for (app_id,), message in sorted(self._messages["app"].items()):
                assert isinstance(message, app_pb2.App)
                if message.link_domains and (app := self.app(app_id)) is not None:
                    for each in app.link_domains:
                        self._by_domain.setdefault(each, []).append(app)
        return self._by_domain.get(domain, [])

    def names_of(self, tracker_id: str) -> dict[str, str]:
        """Returns the names of the tracker, its network and its campaign; ids where a name is not known."""
        tracker = self._messages["tracker"].get((tracker_id,))
        if not isinstance(tracker, tracker_pb2.Tracker):
            return {"tracker": tracker_id}
        return {
            "tracker": tracker.name or tracker_id,
            "network": self._name("network", tracker.network_id),
            "campaign": self._name("campaign", tracker.campaign_id),
        }

    def _name(self, kind: str, resource_id: str) -> str:
        message = self._messages[kind].get((resource_id,))
        return (message is not None and str(getattr(message, "name", ""))) or resource_id


def _app(message: app_pb2.App) -> App:
    platform = Platform.IOS if message.platform == app_pb2.PLATFORM_IOS else Platform.ANDROID
    has_rate = message.settings.HasField("records_per_second")
    return App(
        app_id=message.app_id,
        platform=platform,
        bundle_id=message.bundle_id if _BUNDLE_IDS[platform].fullmatch(message.bundle_id) else "",
        fallback_url=quote(message.fallback_url, safe=URL_CHARACTERS),
        link_domains=frozenset(message.link_domains),
        apple_team_id=message.apple_team_id,
        certificate_fingerprints=tuple(message.certificate_fingerprints),
        url_schemes=frozenset(scheme.lower() for scheme in message.url_schemes),
        records_per_second=message.settings.records_per_second if has_rate else DEFAULT_RECORDS_PER_SECOND,
        currency_code=message.currency_code or "USD",
        live=message.status != status_pb2.STATUS_ARCHIVED,
        is_strict=message.settings.strict_authentication,
        auth_keys=tuple((key.encode(), secret.encode()) for key, secret in message.auth_keys.items()),
        allowed_origins=frozenset(message.settings.allowed_origins),
        keeps_push_tokens=message.settings.keep_push_tokens,
    )


def _tracker(message: tracker_pb2.Tracker, app: app_pb2.App) -> Tracker:
    has_referrer = message.destination_type == tracker_pb2.Tracker.DESTINATION_TYPE_GOOGLE_REFERRER
    return Tracker(
        tracker_id=message.tracker_id,
        app=_app(app),
        network_id=message.network_id,
        destination=Destination.GOOGLE_REFERRER if has_referrer else Destination.CUSTOM,
        install_url=Template(message.install_url),
        deep_link=Template(message.deep_link) if message.deep_link else None,
        custom_parameters=dict(message.custom_parameters),
        validation_key=message.click_validation_key.encode(),
        live=message.status != status_pb2.STATUS_ARCHIVED,
    )
