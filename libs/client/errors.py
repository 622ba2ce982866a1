"""Failed calls as exceptions of the type that the service raised."""

import grpc

from libs.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServiceError,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
)

_TYPES: dict[grpc.StatusCode, type[ServiceError]] = {
    each.code: each
    for each in (
        Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, ResourceExhausted,
        Unauthenticated, Unavailable,
    )
}  # fmt: skip


def to_service_error(error: grpc.aio.AioRpcError) -> ServiceError:
    """Returns a failed call as the error that the service raised: of a code without a type, a plain `ServiceError`.

    One that no service of ours answered has the name of its code as the reason.
    """
    details = from_rpc_error(error)
    kind = _TYPES.get(details.code, ServiceError)
    made = kind.__new__(kind)
    # Not by its own constructor: that of InvalidArgument makes the message itself.
    ServiceError.__init__(
        made,
        details.reason,
        details.message.removeprefix(f"{details.reason}: "),
        retry_after_s=details.retry_after_s,
    )
    made.code = details.code
    made.violations = details.violations
    return made
