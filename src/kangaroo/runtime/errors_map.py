"""The one table from Kangaroo's errors to ttrpc codes, for the Task API.

The text goes along whole: it is what `kubectl describe pod` shows.
"""

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
from kangaroo.wire.aio import RpcError
from kangaroo.wire.status import Code

# UNAVAILABLE would make containerd believe that the shim itself is gone, so a lost guest is
# ABORTED.
_CODES: tuple[tuple[type[BaseException], Code], ...] = (
    (InvalidRequest, Code.INVALID_ARGUMENT),
    (NotFound, Code.NOT_FOUND),
    (AlreadyExists, Code.ALREADY_EXISTS),
    (FailedPrecondition, Code.FAILED_PRECONDITION),
    (Unsupported, Code.UNIMPLEMENTED),
    (DeadlineExceeded, Code.DEADLINE_EXCEEDED),
    (Unavailable, Code.ABORTED),
    (MountFailed, Code.UNKNOWN),
    (CommandFailed, Code.UNKNOWN),
    (KangarooError, Code.UNKNOWN),
    (OSError, Code.UNKNOWN),
)


def to_rpc(error: KangarooError | OSError) -> RpcError:
    """Return the failure that containerd gets for `error`."""
    code = next(code for kind, code in _CODES if isinstance(error, kind))
    return RpcError(code, str(error))
