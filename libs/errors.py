"""The one error type of the services, and how it crosses the wire.

A method raises a `ServiceError`; the server's interceptor turns it into a status with `ErrorInfo` (a stable reason and
metadata), `BadRequest` (every wrong field) and `RetryInfo`. Nothing else of an exception ever reaches a caller.

Whatever a caller sent may come back in an error: its texts are printable and cut, and a status is never larger than
what every gRPC client takes. Of more than 50 wrong fields the last is `MORE`, which says how many others there are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "reengage"

MAX_VIOLATIONS = 50
MORE = "MORE"
"""The reason of the violation that stands for others."""
MAX_STATUS_BYTES = 7_000
"""The bytes of a status in metadata: clients take 8 KB by default."""
_MAX_MESSAGE_BYTES, _MAX_DESCRIPTION_BYTES, _MAX_FIELD_BYTES, _MAX_FACT_BYTES = 1_024, 256, 160, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One wrong field: its path, a stable reason in capitals, and what to change, for people."""

    field: str
    reason: str
    description: str

    def __post_init__(self) -> None:
        """Cuts what is long and marks what is not printable, as both texts may hold what a caller sent."""
        object.__setattr__(self, "field", shown(self.field, _MAX_FIELD_BYTES))
        object.__setattr__(self, "description", shown(self.description, _MAX_DESCRIPTION_BYTES))


class ServiceError(Exception):
    """A failed call, for its caller: a stable reason in capitals, a sentence for people, and facts as text."""

    code = grpc.StatusCode.INTERNAL

    def __init__(self, reason: str, message: str, *, retry_after_s: float | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = shown(message, _MAX_MESSAGE_BYTES)
        self.retry_after_s = retry_after_s
        self.metadata = {name: shown(fact, _MAX_FACT_BYTES) for name, fact in metadata.items()}
        self.violations: tuple[Violation, ...] = ()


class InvalidArgument(ServiceError):
    """A request that is wrong in itself; `violations` names every wrong field, the first of them where `count` is more.

    `count` is that of all, if `violations` are the first of them.
    """

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(
        self, violations: Iterable[Violation], reason: str = "INVALID_ARGUMENT", *, count: int | None = None
    ) -> None:
        found = list(violations)
        self.count = len(found) if count is None else count
        super().__init__(reason, _summary(found, self.count))
        self.violations = first_of(found, self.count)


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
        """The first of them."""
        self.count = 0

    def add(self, field: str, reason: str, description: str) -> None:
        """Notes a wrong field."""
        self.count += 1
        if len(self.found) < MAX_VIOLATIONS:  # a request of a million wrong fields must not become as many objects
            self.found.append(Violation(field=field, reason=reason, description=description))

    def extend(self, others: Iterable[Violation]) -> None:
        """Notes wrong fields that were found elsewhere."""
        for one in others:
            self.add(one.field, one.reason, one.description)

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
            raise InvalidArgument(self.found, count=self.count)


def first_of(found: Sequence[Violation], count: int, room: int = MAX_VIOLATIONS) -> tuple[Violation, ...]:
    """Returns at most `room` violations of `count`; where there are more, the last one is `MORE` and says how many."""
    if count <= room:
        return tuple(found)
    kept = found[: room - 1]
    return (*kept, Violation(field="", reason=MORE, description=f"… and {count - len(kept):,} more"))


def shown(text: str, max_bytes: int) -> str:
    """Returns a text as it may stand in an error, whoever wrote it: printable, valid, and of so many bytes at most."""
    if len(text) > max_bytes or len(text.encode(errors="replace")) > max_bytes:
        cut = text[:max_bytes].encode(errors="replace")[: max_bytes - len("…".encode())]
        text = f"{cut.decode(errors='ignore')}…"
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)


def _summary(found: Sequence[Violation], count: int) -> str:
    """Returns wrong fields as a sentence, as far as there is room."""
    parts, left = list[str](), _MAX_MESSAGE_BYTES - 32
    for one in found:
        part = f"{one.field}: {one.description}" if one.field else one.description
        left -= len(part.encode()) + len("; ")
        if left < 0:
            break
        parts.append(part)
    hidden = count - len(parts)
    return "; ".join([*parts, f"… and {hidden:,} more"] if hidden else parts)


def to_status(error: ServiceError) -> status_pb2.Status:
    """Returns the error as a `google.rpc.Status` with its details, cut to what every client takes."""
    message = f"{error.reason}: {error.message}"
    details: list[any_pb2.Any] = []

    def attach(
        detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
    ) -> None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        details.append(packed)

    attach(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    if isinstance(error, InvalidArgument):
        taken = sum(detail.ByteSize() for detail in details) + len(message.encode())
        attach(_bad_request(error, (MAX_STATUS_BYTES - _encoded_size(message)) * 3 // 4 - taken))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        attach(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=code_pb2.Code.Value(error.code.name), message=message, details=details)


def _bad_request(error: InvalidArgument, max_bytes: int) -> error_details_pb2.BadRequest:
    """Returns the wrong fields, as many as there is room for."""

    def message(violations: Iterable[Violation]) -> error_details_pb2.BadRequest:
        return error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description, reason=v.reason)
                for v in violations
            ]
        )

    room = len(error.violations)
    while (made := message(first_of(error.violations, error.count, room))).ByteSize() > max_bytes and room > 1:
        room = min(room - 1, room * max_bytes // made.ByteSize())
    return made


def _encoded_size(text: str) -> int:
    """Returns the bytes of a text in `grpc-message`, which percent-encodes all but printable ASCII."""
    return sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in text.encode())


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
