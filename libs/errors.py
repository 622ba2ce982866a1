"""The one error type of the services, and how it crosses the wire.

A method raises a `ServiceError`; the server's interceptor turns it into a status with `ErrorInfo` (a stable reason and
metadata), `BadRequest` (every wrong field) and `RetryInfo`. Nothing else of an exception ever reaches a caller.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "reengage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One wrong field: its path, a stable reason in capitals, and what to change, for people."""

    field: str
    reason: str
    description: str


class ServiceError(Exception):
    """A failed call, for its caller: a stable reason in capitals, a sentence for people, and facts as text."""

    code = grpc.StatusCode.INTERNAL

    def __init__(self, reason: str, message: str, *, retry_after_s: float | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.metadata = metadata
        self.violations: tuple[Violation, ...] = ()


class InvalidArgument(ServiceError):
    """A request that is wrong in itself; `violations` names every wrong field."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, violations: Iterable[Violation], reason: str = "INVALID_ARGUMENT") -> None:
        found = tuple(violations)
        super().__init__(reason, "; ".join(f"{v.field}: {v.description}" for v in found))
        self.violations = found


class NotFound(ServiceError):
    """A name of something that does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(ServiceError):
    """An id or name that something else has taken."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(ServiceError):
    """A request that is right, but not in the present state."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Aborted(ServiceError):
    """A race that was lost; read again and repeat."""

    code = grpc.StatusCode.ABORTED


class Unauthenticated(ServiceError):
    """A caller whom nobody knows."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ServiceError):
    """A caller who may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhausted(ServiceError):
    """Too much at once; repeat after `retry_after_s`."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(ServiceError):
    """A service that cannot do it right now; repeat after `retry_after_s`."""

    code = grpc.StatusCode.UNAVAILABLE


class Violations:
    """Collection of every wrong field of a request, so that all are reported at once."""

    def __init__(self) -> None:
        self.found: list[Violation] = []

    def add(self, field: str, reason: str, description: str) -> None:
        """Notes a wrong field."""
        self.found.append(Violation(field=field, reason=reason, description=description))

    def check_text(self, field: str, text: str, *, max_characters: int, required: bool = False) -> None:
        """Notes a text that is missing though required, too long, or holds NUL, which PostgreSQL cannot keep."""
        if required and not text:
            self.add(field, "REQUIRED", "must be set")
        if "\0" in text:
            self.add(field, "INVALID_TEXT", "must not contain NUL")
        if len(text) > max_characters:
            self.add(field, "TOO_LONG", f"must be at most {max_characters:,} characters")

    def check(self) -> None:
        """Raises `InvalidArgument` if any was noted."""
        if self.found:
            raise InvalidArgument(self.found)


def to_status(error: ServiceError) -> status_pb2.Status:
    """Returns the error as a `google.rpc.Status` with its details."""
    details: list[any_pb2.Any] = []

    def attach(
        detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
    ) -> None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        details.append(packed)

    attach(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    if error.violations:
        attach(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=v.field, description=v.description, reason=v.reason
                    )
                    for v in error.violations
                ]
            )
        )
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        attach(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(
        code=code_pb2.Code.Value(error.code.name), message=f"{error.reason}: {error.message}", details=details
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDetails:
    """Details of a failed call, read back by its caller."""

    code: grpc.StatusCode
    reason: str
    message: str
    violations: tuple[Violation, ...]
    retry_after_s: float | None


def from_rpc_error(error: grpc.aio.AioRpcError) -> ErrorDetails:
    """Returns the details of a failed call; a bare status gives its code's name as the reason."""
    reason = error.code().name
    found: tuple[Violation, ...] = ()
    retry_after_s = None
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        for packed in status_pb2.Status.FromString(value).details:
            info, bad, retry = (
                error_details_pb2.ErrorInfo(),
                error_details_pb2.BadRequest(),
                error_details_pb2.RetryInfo(),
            )
            if packed.Unpack(info):
                reason = info.reason
            elif packed.Unpack(bad):
                found = tuple(
                    Violation(field=v.field, reason=v.reason, description=v.description) for v in bad.field_violations
                )
            elif packed.Unpack(retry):
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return ErrorDetails(
        code=error.code(),
        reason=reason,
        message=error.details() or "",
        violations=found,
        retry_after_s=retry_after_s,
    )
