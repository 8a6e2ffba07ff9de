"""The errors of Kangaroo.

One root, `KangarooError`. A leaf names a cause, not a place, and carries the facts that a reader
needs to act: what, why, and a hint where there is one. Domain code raises these; each adapter (CSI
gRPC, Task ttrpc, agent, command line) has one table that maps them to its own codes. Nothing here
knows about RPC codes.

    KangarooError
    ├── InvalidRequest         the caller's input cannot be accepted; names the field
    ├── NotFound               the thing named does not exist
    ├── AlreadyExists          it exists, and differs from what was asked for
    ├── FailedPrecondition     not in the state this needs
    ├── Aborted                cannot go on now; ask again, or begin again
    ├── OutOfRange             a size that cannot be had
    ├── Exhausted              there is no room left
    ├── Unsupported            Kangaroo does not do this, by decision
    ├── DeadlineExceeded       not done within its deadline
    ├── CommandFailed          a child process failed; carries argv, exit status and output
    ├── MountFailed            mount(2) or a mount helper failed; carries source, options, errno
    └── Unavailable            a peer (guest, server, daemon) is not there
"""

from __future__ import annotations


class KangarooError(Exception):
    """Root of all errors that Kangaroo raises on purpose.

    `hint` says what the reader can do; it is part of `str(error)` when given.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidRequest(KangarooError):
    """Input that cannot be accepted. `field` names where it stands, `reason` why."""

    def __init__(self, field: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{field}: {reason}", hint=hint)
        self.field = field
        self.reason = reason


class NotFound(KangarooError):
    """The thing named does not exist."""


class AlreadyExists(KangarooError):
    """It exists, and differs from what was asked for."""


class FailedPrecondition(KangarooError):
    """Not in the state that this needs."""


class Aborted(KangarooError):
    """It cannot go on now: another call is at it, or what it goes on from is not known."""


class OutOfRange(KangarooError):
    """A size that cannot be had."""


class Exhausted(KangarooError):
    """There is no room left."""


class Unsupported(KangarooError):
    """Kangaroo does not do this, by decision."""


class DeadlineExceeded(KangarooError):
    """Not done within its deadline."""


class Unavailable(KangarooError):
    """A peer (guest, server, daemon) is not there."""


class CommandFailed(KangarooError):
    """A child process ended with a failure. `status` is its exit code, or minus the signal."""

    def __init__(
        self, argv: tuple[str, ...], status: int, output: str, *, hint: str | None = None
    ) -> None:
        how = f"exited with {status}" if status >= 0 else f"was killed by signal {-status}"
        text = output.strip()
        super().__init__(f"{argv[0]} {how}{': ' + text if text else ''}", hint=hint)
        self.argv = argv
        self.status = status
        self.output = output


class MountFailed(KangarooError):
    """A file system could not be mounted. `errno` is None when a helper gave no number."""

    def __init__(
        self,
        source: str,
        options: str,
        reason: str,
        *,
        errno: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(f"mount {source} with options {options!r}: {reason}", hint=hint)
        self.source = source
        self.options = options
        self.reason = reason
        self.errno = errno
