"""Domain errors as ttrpc statuses: the agent's one table."""

from __future__ import annotations

from kangaroo.errors import (
    AlreadyExists,
    CommandFailed,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    KangarooError,
    MountFailed,
    NotFound,
    Unavailable,
    Unsupported,
)
from kangaroo.wire.agent_protocol import error_detail
from kangaroo.wire.envelope import Status
from kangaroo.wire.status import Code

_CODES: dict[type[KangarooError], Code] = {
    InvalidRequest: Code.INVALID_ARGUMENT,
    NotFound: Code.NOT_FOUND,
    AlreadyExists: Code.ALREADY_EXISTS,
    FailedPrecondition: Code.FAILED_PRECONDITION,
    Unsupported: Code.UNIMPLEMENTED,
    DeadlineExceeded: Code.DEADLINE_EXCEEDED,
    CommandFailed: Code.INTERNAL,
    MountFailed: Code.INTERNAL,
    Unavailable: Code.UNAVAILABLE,
}


def status(error: Exception) -> Status:
    """The status of a failed call. The hint stays out of the message and goes into the detail, and
    with it the reason of a failed mount, without the source and options that the message names.
    """
    if isinstance(error, KangarooError):
        code, message, hint = _CODES.get(type(error), Code.UNKNOWN), error.message, error.hint
    else:
        code, message, hint = Code.INTERNAL, str(error) or repr(error), None
    number = getattr(error, "errno", None)
    reason = error.reason if isinstance(error, MountFailed) else None
    detail = error_detail(type(error).__name__, number, hint=hint, reason=reason)
    return Status(code, message, (detail,))
