"""Refused requests: the one shape of errors over HTTP."""

import math
from collections.abc import Iterable
from typing import Any

import grpc
import orjson

from libs.errors import InvalidArgument, ServiceError, Violation
from services.gateway.requests import JSON, Response

UNKNOWN_APP = "UNKNOWN_APP"

_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.UNAVAILABLE: 503,
}


class Refused(Exception):  # noqa: N818 - named as the errors of libs are
    """A request that gets an error: a status, a stable code in capitals, a sentence, and the wrong fields."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        fields: Iterable[Violation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after_s = status, code, message, retry_after_s
        self.fields = list(fields)

    @classmethod
    def by(cls, error: ServiceError) -> "Refused":
        """Returns the same error for HTTP: 400, 404, 429 over an app's rate, 503 when it is us who cannot."""
        status = 429 if error.reason == "RATE_LIMITED" else _STATUSES.get(error.code, 500)
        return cls(status, error.reason, error.message, fields=error.violations, retry_after_s=error.retry_after_s)

    @classmethod
    def for_fields(cls, wrong: list[Violation]) -> "Refused":
        """Returns 404 when an unknown app is all that is wrong, else 400."""
        error = InvalidArgument(wrong)
        if all(violation.reason == UNKNOWN_APP for violation in wrong):
            return cls(404, UNKNOWN_APP, error.message, fields=wrong)
        return cls.by(error)

    def as_json(self) -> dict[str, Any]:
        """Returns `{"success":0,"error":{"code","message","fields":[{"field","reason","description"}]}}`.

        Where repeating may help, the error has `retry_after_s`: in an array no header can say it.
        """
        fields = [{"field": v.field, "reason": v.reason, "description": v.description} for v in self.fields]
        error: dict[str, Any] = {"code": self.code, "message": self.message, "fields": fields}
        if self.retry_after_s is not None:
            error["retry_after_s"] = self._wait_s
        return {"success": 0, "error": error}

    def response(self) -> Response:
        """Returns the response, with `Retry-After` in whole seconds where repeating may help."""
        headers = list(JSON)
        if self.status == 401:
            headers.append((b"www-authenticate", b"Kochava-Auth-Token"))
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(self._wait_s).encode()))
        return self.status, headers, orjson.dumps(self.as_json())

    @property
    def _wait_s(self) -> int:
        return max(1, math.ceil(self.retry_after_s or 0))


def unknown_app(path: str) -> Violation:
    """Returns what is wrong with the id of an app that is not there, or no longer; worded as ingest words it."""
    return Violation(field=path, reason=UNKNOWN_APP, description="no live app has this id")
