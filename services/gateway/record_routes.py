"""The routes that take records: `/track/json`, `/v1/cpi/identityLink.php` and those of SDKs."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from libs.errors import ResourceExhausted, ServiceError, Violation
from libs.rates import Rates
from reengage.ingest.v1 import record_batch_pb2
from services.gateway import sdk
from services.gateway.addresses import ClientAddresses
from services.gateway.attribution_route import AttributionRoute
from services.gateway.authentication import check
from services.gateway.batches import Batches, Outcome
from services.gateway.bodies import body_of, parse_json
from services.gateway.errors import Refused
from services.gateway.model import App
from services.gateway.refusals import RefusalTrace
from services.gateway.requests import JSON, Request, Response, Route, json_response
from services.gateway.settings import GatewaySettings
from services.gateway.translation.device import Peer
from services.gateway.translation.record import Translated, app_id_of, translate
from services.gateway.translation.violations import in_senders_words

MAX_RECORDS = 1_000
_TRACK_PATHS = ("/track/json", "/track/kvTracker", "/token/add", "/token/remove", "/v1/links-sdk")
"""The paths of records, as SDKs write them; what an object is, its action says."""
_ACCEPTED, _REPEATED = record_batch_pb2.RecordResult.STATUS_ACCEPTED, record_batch_pb2.RecordResult.STATUS_REPEATED
_STORED = {"success": 1}
_SUCCESS: Response = (200, JSON, b'{"success":1}')


class RecordRoutes:
    """The routes of records: these go to ingest over `records`, and what became of them is returned.

    `settings` returns the newest settings or raises `Unavailable`.
    """

    def __init__(
        self,
        *,
        settings: Callable[[], GatewaySettings],
        records: Batches,
        rates: Rates,
        attribution: AttributionRoute,
        addresses: ClientAddresses,
        public_url: str = "",
    ) -> None:
        self._public_url = public_url.rstrip("/")
        self._settings, self._records, self._rates = settings, records, rates
        self._attribution, self._addresses = attribution, addresses
        self._refusals = RefusalTrace()
        self.routes = {
            "/v1/cpi/identityLink.php": self._route("identityLink"),
            "/track/kvinit": self._route(sdk.INIT),
            "/track/kvquery": self._route("get_attribution"),
            **{path: self._route() for path in _TRACK_PATHS},
        }

    def _route(self, action: str = "") -> Route:
        """Returns a route of records; where it has an action, it takes one object at a time, which is of that."""

        async def respond(request: Request) -> Response:
            value, is_odd = self._read_json(request)
            if action and isinstance(value, dict):
                value = {**value, "action": action}
            elif action:
                refused = Refused(400, "INVALID_RECORD", "must be a JSON object")
                self._refusals.note(refused, len(value))
                raise refused
            status, headers, body = await self._track(value, request, is_odd=is_odd)
            return status, headers, sdk.with_text(body) if sdk.wants_text(value) else body

        return Route(("POST",), respond, for_pages=True)

    async def _track(self, value: dict[str, Any] | list[Any], request: Request, *, is_odd: bool) -> Response:
        value = self._admitted(value, request, is_odd=is_odd)
        if isinstance(value, sdk.Answered):
            return json_response(value)
        if isinstance(value, list):
            return await self._track_array(value, request, is_odd=is_odd)
        if value.get("action") == "get_attribution":
            device_id = value.get("kochava_device_id") or _data_of(value).get("kochava_device_id")
            return await self._attribution.respond_for(value.get("kochava_app_id"), device_id, request)
        response = await self._track_one(value, request, is_odd=is_odd)
        if (link := sdk.identity_link_in(value, is_odd=is_odd)) is not None:
            with suppress(Refused):  # the install is stored, and it is the answer
                await self._track_one(link, request, is_odd=is_odd, is_counted=False)
        return response

    def _admitted(self, value: Any, request: Request, *, is_odd: bool) -> Any:
        """Returns the value, with what is answered already in place of what makes no record.

        In an array that is also why an element was refused. Raises Refused: 401 for a single one, 400 for too many.
        """
        values = value if isinstance(value, list) else [value]
        try:
            if len(values) > MAX_RECORDS:
                raise Refused(400, "BATCH_TOO_LARGE", f"at most {MAX_RECORDS} records at once")  # noqa: TRY301
            settings = self._settings()
        except (Refused, ServiceError) as error:
            self._refusals.note(error, len(values))
            raise
        apps = [_app_of(each, settings, is_odd=is_odd) for each in values]
        by_id = {app.app_id: app for app in apps if app is not None}
        request.apps = list(by_id.values())
        refused = _refusals_of(by_id, request)  # once an app: a body may be large
        found: list[Any] = []
        for each, app in zip(values, apps, strict=True):
            if app is not None and app.app_id in refused:
                self._refusals.note(refused[app.app_id])
                if each is value:
                    raise refused[app.app_id]
                found.append(refused[app.app_id])
            else:
                found.append((sdk.answer(each, app, self._public_url) if isinstance(each, dict) else None) or each)
        return found if isinstance(value, list) else found[0]

    def _read_json(self, request: Request) -> tuple[dict[str, Any] | list[Any], bool]:
        """Returns the body, and whether some of it may be unreadable."""
        try:
            return parse_json(body_of(request))
        except Refused as refused:
            self._refusals.note(refused)
            raise

    def _translated(self, value: Any, settings: GatewaySettings, request: Request, *, is_odd: bool) -> Translated:
        if not isinstance(value, dict):
            raise Refused(400, "INVALID_RECORD", "must be an object")

        def find_peer() -> Peer:
            address = self._addresses.client(request.peer, request.header(b"x-forwarded-for"))
            return Peer(address, request.header(b"user-agent"))

        return translate(value, settings.app, find_peer, is_odd=is_odd)

    async def _track_one(
        self, value: Mapping[str, Any], request: Request, *, is_odd: bool, is_counted: bool = True
    ) -> Response:
        """Returns the answer to a record. `is_counted`: it is taken from the rate of its app."""
        try:
            settings = self._settings()
            app = _app_of(value, settings, is_odd=is_odd)
            if app is not None and is_counted:
                self._rates.take(app.app_id, app.records_per_second)
            translated = self._translated(value, settings, request, is_odd=is_odd)
            result = _result(await self._records.add(translated.record.SerializeToString(), request.request_id))
        except (Refused, ServiceError) as error:
            self._refusals.note(error)
            raise
        answer = _answer(value, translated.warnings, result)
        if isinstance(answer, Refused):
            raise answer
        return _SUCCESS if answer is _STORED else json_response(answer)

    async def _track_array(self, values: list[Any], request: Request, *, is_odd: bool) -> Response:
        """Returns 200 with a result an element once each has one; an error for all when they could not be stored.

        Then the whole array is to be sent again: what was stored of it is known as a repeat. An array of records that
        are all over the rates of their apps has one error, too.
        """
        try:
            answers = await self._answers(values, request, is_odd=is_odd)
        except (Refused, ServiceError) as error:
            self._refusals.note(error, len(values))
            raise
        results = [answer.as_json() if isinstance(answer, Refused) else answer for answer in answers]
        return json_response({"success": int(all(result["success"] for result in results)), "results": results})

    async def _answers(self, values: list[Any], request: Request, *, is_odd: bool) -> list[Mapping[str, Any] | Refused]:
        """Returns what became of each value; identity links in installs come after them, and have no answer."""
        settings = self._settings()
        taken: list[Any] = []
        for value, limited in zip(values, self._over_rate(values, settings, is_odd=is_odd), strict=True):
            if limited is not None:
                self._refusals.note(limited)
            taken.append(value if limited is None else limited)
        links = [link for value in taken if (link := sdk.identity_link_in(value, is_odd=is_odd)) is not None]
        outcomes: list[tuple[asyncio.Future[Outcome], Sequence[Violation]] | Refused | sdk.Answered] = []
        for value in (*taken, *links):
            if isinstance(value, Refused | sdk.Answered):
                outcomes.append(value)
                continue
            try:
                translated = self._translated(value, settings, request, is_odd=is_odd)
                outcome = self._records.add(translated.record.SerializeToString(), request.request_id)
                outcomes.append((outcome, translated.warnings))
            except Refused as wrong:
                self._refusals.note(wrong)
                outcomes.append(wrong)
        return [
            _answer(value, outcome[1], _result(await outcome[0])) if isinstance(outcome, tuple) else outcome
            for value, outcome in zip((*taken, *links), outcomes, strict=True)
        ][: len(values)]

    def _over_rate(self, values: list[Any], settings: GatewaySettings, *, is_odd: bool) -> list[Refused | None]:
        """Takes elements from the rates of their apps; returns what refuses each, or None. Raises it if all are."""
        apps = [_app_of(value, settings, is_odd=is_odd) for value in values]
        counts = Counter(app.app_id for app in apps if app is not None)
        over: dict[str, Refused] = {}
        for app_id, app in {app.app_id: app for app in apps if app is not None}.items():
            try:
                self._rates.take(app_id, app.records_per_second, counts[app_id])
            except ResourceExhausted as error:
                over[app_id] = Refused.by(error)
        limited = [over.get(app.app_id) if app is not None else None for app in apps]
        if over and None not in limited:
            raise max(over.values(), key=lambda refused: refused.retry_after_s or 0)
        return limited


def _data_of(value: Mapping[str, Any]) -> Mapping[str, Any]:
    data = value.get("data")
    return data if isinstance(data, dict) else {}


def _app_of(value: Any, settings: GatewaySettings, *, is_odd: bool) -> App | None:
    """Returns the app that the record in a value is of: whose key it needs, and whose rate it takes of."""
    return settings.app(app_id_of(value, is_odd=is_odd)) if isinstance(value, dict) else None


def _refusals_of(apps: Mapping[str, App], request: Request) -> dict[str, Refused]:
    """Returns by app why it takes nothing of this request."""
    found = {}
    for app_id, app in apps.items():
        try:
            check(app, request)
        except Refused as refused:
            found[app_id] = refused
    return found


def _result(outcome: Outcome) -> record_batch_pb2.RecordResult:
    if isinstance(outcome, ServiceError):
        raise outcome
    return outcome


def _answer(
    value: Mapping[str, Any], warnings: Sequence[Violation], result: record_batch_pb2.RecordResult
) -> Mapping[str, Any] | Refused:
    """Returns the answer to a record, in its sender's words: `warnings` are those that the gateway has found."""
    if result.status not in (_ACCEPTED, _REPEATED):
        found = (Violation(field=v.field, reason=v.reason, description=v.description) for v in result.violations)
        return Refused.for_fields(_united(value, warnings, found))
    if not warnings and not result.warnings and result.status != _REPEATED:
        return _STORED
    answer: dict[str, Any] = {"success": 1}
    if result.status == _REPEATED:
        answer["repeated"] = 1
    own = (Violation(field=w.field, reason=w.code, description=w.message) for w in result.warnings)
    if named := _united(value, warnings, own):
        answer["warnings"] = [{"field": w.field, "code": w.reason, "message": w.description} for w in named]
    return answer


def _united(value: Mapping[str, Any], warnings: Sequence[Violation], found: Iterable[Violation]) -> list[Violation]:
    """Returns what the gateway and then ingest found wrong: of one field, whoever knows better."""
    named = {each.field for each in warnings}
    return [*warnings, *(each for each in in_senders_words(value, found) if each.field not in named)]
