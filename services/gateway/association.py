"""The association files of link domains: by these, links of their hosts open the app without a way over the browser."""

from collections.abc import Callable

from services.gateway.errors import Refused
from services.gateway.model import App, Platform
from services.gateway.requests import Request, Response, Route, json_response
from services.gateway.settings import GatewaySettings

_COMPONENTS = [{"/": "/c/*", "caseSensitive": False}, {"/": "/v1/cpi/click*", "caseSensitive": False}]
_PATHS = ["/c/*", "/C/*", "/v1/cpi/click*"]
"""The same, as iOS 12 and older read it."""


class AssociationRoutes:
    """The routes of association files. `settings` returns the newest settings or raises `Unavailable`."""

    def __init__(self, settings: Callable[[], GatewaySettings]) -> None:
        self._settings = settings
        apple, android = Route(("GET", "HEAD"), self._apple), Route(("GET", "HEAD"), self._android)
        self.routes = {
            "/.well-known/apple-app-site-association": apple,
            "/apple-app-site-association": apple,
            "/.well-known/assetlinks.json": android,
        }

    async def _apple(self, request: Request) -> Response:
        apps = [app for app in self._apps(request, Platform.IOS) if app.apple_team_id]
        return _file({"applinks": {"apps": [], "details": [_detail(app) for app in apps]}} if apps else None)

    async def _android(self, request: Request) -> Response:
        return _file([_statement(app) for app in self._apps(request, Platform.ANDROID) if app.certificate_fingerprints])

    def _apps(self, request: Request, platform: Platform) -> list[App]:
        return [app for app in self._settings().apps_on(request.host) if app.platform is platform and app.bundle_id]


def _detail(app: App) -> dict[str, object]:
    name = f"{app.apple_team_id}.{app.bundle_id}"
    return {"appIDs": [name], "components": _COMPONENTS, "appID": name, "paths": _PATHS}


def _statement(app: App) -> dict[str, object]:
    return {
        "relation": ["delegate_permission/common.handle_all_urls"],
        "target": {
            "namespace": "android_app",
            "package_name": app.bundle_id,
            "sha256_cert_fingerprints": list(app.certificate_fingerprints),
        },
    }


def _file(value: object) -> Response:
    if not value:
        raise Refused(404, "NOT_FOUND", "no app whose links are on this host says what this file needs")
    return json_response(value)
