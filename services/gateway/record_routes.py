"""The routes that take records: `/track/json` and `/v1/cpi/identityLink.php`."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from libs.errors import InvalidArgument, ServiceError, Violation
from reengage.ingest.v1 import record_batch_pb2
from services.gateway.attribution_route import AttributionRoute
from services.gateway.batches import Batches, Outcome
from services.gateway.bodies import body_of, parse_json
from services.gateway.errors import Refused
from services.gateway.model import App
from services.gateway.rates import Rates
from services.gateway.refusals import RefusalTrace
from services.gateway.requests import JSON, Request, Response, Route, json_response
from services.gateway.settings import GatewaySettings
from services.gateway.translation.record import translate
from services.gateway.translation.violations import in_senders_words, nul_fields

MAX_RECORDS = 1_000
_REJECTED = record_batch_pb2.RecordResult.STATUS_REJECTED
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
    ) -> None:
        self._settings, self._records, self._rates, self._attribution = settings, records, rates, attribution
        self._refusals = RefusalTrace()
        self.routes = {
            "/track/json": Route(("POST",), self._track),
            "/v1/cpi/identityLink.php": Route(("POST",), self._identity_link),
        }

    async def _track(self, request: Request) -> Response:
        value, may_hold_nul = self._read_json(request)
        if isinstance(value, list):
            return await self._track_array(value, request, may_hold_nul=may_hold_nul)
        if value.get("action") == "get_attribution":
            device_id = value.get("kochava_device_id") or _data_of(value).get("kochava_device_id")
            return await self._attribution.respond_for(value.get("kochava_app_id"), device_id, request)
        return await self._track_one(value, request, may_hold_nul=may_hold_nul)

    async def _identity_link(self, request: Request) -> Response:
        value, may_hold_nul = self._read_json(request)
        if isinstance(value, list):
            refused = Refused(400, "INVALID_RECORD", "must be a JSON object")
            self._refusals.note(refused, len(value))
            raise refused
        return await self._track_one({**value, "action": "identityLink"}, request, may_hold_nul=may_hold_nul)

    def _read_json(self, request: Request) -> tuple[dict[str, Any] | list[Any], bool]:
        """Returns the body, and whether there may be a NUL in its texts."""
        try:
            body = body_of(request)
            return parse_json(body), rb"\u0000" in body
        except Refused as refused:
            self._refusals.note(refused)
            raise

    async def _track_one(self, value: Mapping[str, Any], request: Request, *, may_hold_nul: bool) -> Response:
        try:
            settings = self._settings()
            app = _app_of(value, settings)
            if app is not None:
                self._rates.take(app)
            record = _translated(value, settings, may_hold_nul=may_hold_nul)
            result = _result(await self._records.add(record, request.request_id))
        except (Refused, ServiceError) as error:
            self._refusals.note(error)
            raise
        refused = _refusal(value, result)
        if refused is not None:
            raise refused
        return _SUCCESS

    async def _track_array(self, values: list[Any], request: Request, *, may_hold_nul: bool) -> Response:
        """Returns 200 with a result an element once each has one; an error for all when they could not be stored.

        Then the whole array is to be sent again: what was stored of it is known as a repeat.
        """
        try:
            results = await self._results(values, request, may_hold_nul=may_hold_nul)
        except (Refused, ServiceError) as error:
            self._refusals.note(error, len(values))
            raise
        return json_response([{"success": 1} if refused is None else refused.as_json() for refused in results])

    async def _results(self, values: list[Any], request: Request, *, may_hold_nul: bool) -> list[Refused | None]:
        if len(values) > MAX_RECORDS:
            raise Refused(400, "BATCH_TOO_LARGE", f"at most {MAX_RECORDS} records at once")
        settings = self._settings()
        self._take_rates(values, settings)
        outcomes: list[asyncio.Future[Outcome] | Refused] = []
        for value in values:
            try:
                record = _translated(value, settings, may_hold_nul=may_hold_nul)
                outcomes.append(self._records.add(record, request.request_id))
            except Refused as wrong:
                self._refusals.note(wrong)
                outcomes.append(wrong)
        return [
            outcome if isinstance(outcome, Refused) else _refusal(value, _result(await outcome))
            for value, outcome in zip(values, outcomes, strict=True)
        ]

    def _take_rates(self, values: list[Any], settings: GatewaySettings) -> None:
        by_app: dict[str, tuple[App, int]] = {}
        for value in values:
            if (app := _app_of(value, settings)) is not None:
                by_app[app.app_id] = app, by_app.get(app.app_id, (app, 0))[1] + 1
        for app, count in by_app.values():
            self._rates.take(app, count)


def _data_of(value: Mapping[str, Any]) -> Mapping[str, Any]:
    data = value.get("data")
    return data if isinstance(data, dict) else {}


def _app_of(value: Any, settings: GatewaySettings) -> App | None:
    app_id = value.get("kochava_app_id") if isinstance(value, dict) else None
    if app_id is None and isinstance(value, dict):
        app_id = _data_of(value).get("kochava_app_id")
    return settings.app(app_id) if isinstance(app_id, str) else None


def _translated(value: Any, settings: GatewaySettings, *, may_hold_nul: bool) -> bytes:
    """Returns the record, serialised. Raises Refused with every wrong field that can be known here."""
    if not isinstance(value, dict):
        raise Refused(400, "INVALID_RECORD", "must be an object")
    paths = nul_fields(value) if may_hold_nul else ()
    wrong = [Violation(field=path, reason="INVALID_TEXT", description="must not contain NUL") for path in paths]
    try:
        return translate(value, settings.app, wrong).SerializeToString()
    except InvalidArgument as error:
        raise Refused.by(error) from None


def _result(outcome: Outcome) -> record_batch_pb2.RecordResult:
    if isinstance(outcome, ServiceError):
        raise outcome
    return outcome


def _refusal(value: Mapping[str, Any], result: record_batch_pb2.RecordResult) -> Refused | None:
    """Returns what ingest refused a record with, in its sender's words; None for one that is stored."""
    if result.status != _REJECTED:
        return None
    found = in_senders_words(
        value, (Violation(field=v.field, reason=v.reason, description=v.description) for v in result.violations)
    )
    return Refused.for_fields(found)
