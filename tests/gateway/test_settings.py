"""The effect of an app's and a tracker's settings on the gateway, from tracker's message to where a click leads."""

from typing import Any

import pytest

from reengage.tracker.v1.app_pb2 import PLATFORM_ANDROID, PLATFORM_IOS, App, AppSettings
from reengage.tracker.v1.campaign_pb2 import Campaign
from reengage.tracker.v1.network_pb2 import Network
from reengage.tracker.v1.status_pb2 import STATUS_ARCHIVED
from reengage.tracker.v1.tracker_pb2 import Tracker
from services.gateway.redirect import lead, signature_holds
from services.gateway.settings import GatewaySettings

ANDROID = "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36"
PLAY = "https://play.example/shop"
DEEP = {"deep_link": "shop://p/{sku}"}
SHOP = {"url_schemes": ["shop"]}


def settings_of(app: dict[str, Any] | None = None, tracker: dict[str, Any] | None = None) -> GatewaySettings:
    of_app = {"app_id": "app", "platform": PLATFORM_ANDROID, **(app or {})}
    of_tracker = {"tracker_id": "t", "app_id": "app", "network_id": "n", "install_url": PLAY, **(tracker or {})}
    return GatewaySettings(
        {
            "app": {("app",): App(**of_app)},
            "network": {("n",): Network(network_id="n", name="Acme")},
            "campaign": {("c",): Campaign(campaign_id="c", name="Spring")},
            "tracker": {("t",): Tracker(**of_tracker)},
        },
        1,
    )


@pytest.mark.parametrize(
    ("app", "tracker", "wanted"),
    [
        pytest.param({}, {}, f"{PLAY}?ko_click_id=ID", id="install_url"),
        pytest.param(
            {}, {"install_url": f"{PLAY}?n={{network_id}}"}, f"{PLAY}?n=n&ko_click_id=ID", id="network_id in the URL"
        ),
        pytest.param(SHOP, DEEP, "shop://p/?ko_click_id=ID", id="deep_link"),
        pytest.param({}, DEEP, f"{PLAY}?ko_click_id=ID", id="url_schemes: not the app's"),
        pytest.param({"platform": PLATFORM_IOS, **SHOP}, DEEP, f"{PLAY}?ko_click_id=ID", id="platform: another"),
        pytest.param(
            SHOP, {**DEEP, "custom_parameters": {"sku": "42"}}, "shop://p/42?ko_click_id=ID", id="custom_parameters"
        ),
        pytest.param(
            {},
            {"destination_type": Tracker.DESTINATION_TYPE_GOOGLE_REFERRER},
            f"{PLAY}?referrer=ko_click_id%3DID",
            id="destination_type=GOOGLE_REFERRER",
        ),
        pytest.param(
            {},
            {"destination_type": Tracker.DESTINATION_TYPE_LANDING_PAGE},
            f"{PLAY}?ko_click_id=ID",
            id="destination_type=LANDING_PAGE",
        ),
    ],
)
def test_where_a_click_leads(app: dict[str, Any], tracker: dict[str, Any], wanted: str) -> None:
    found = settings_of(app, tracker).tracker("t")
    assert found is not None
    led = lead(found, "ID", {}, ANDROID)
    assert led is not None
    assert led.url == wanted


@pytest.mark.parametrize("key", ["", "k" * 16])
def test_clicks_are_checked_where_the_tracker_has_a_key(key: str) -> None:
    found = settings_of(tracker={"click_validation_key": key}).tracker("t")
    assert found is not None
    assert signature_holds(found, b"/c/t", b"/c/t", b"", now_s=0.0) is not bool(key)


def test_limits_and_currency_are_those_of_the_app() -> None:
    app = settings_of({"currency_code": "EUR", "settings": AppSettings(records_per_second=5)}).app("app")
    assert app is not None
    assert (app.currency_code, app.records_per_second) == ("EUR", 5)


def test_an_archived_app_takes_nothing_though_its_links_lead_on() -> None:
    settings = settings_of({"status": STATUS_ARCHIVED})
    assert settings.app("app") is None
    assert settings.tracker("t") is not None


def test_sources_go_by_the_names_of_tracker_network_and_campaign() -> None:
    settings = settings_of(tracker={"name": "Come back", "campaign_id": "c"})
    assert settings.names_of("t") == {"tracker": "Come back", "network": "Acme", "campaign": "Spring"}
