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

    `hint` says what the reader can do; it is part of `str(error)` when given. `shown` is set by
    who has shown all of it to a person already: what is left to say is `brief`.
    """

    shown = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self._with_hint(self.message)

    @property
    def brief(self) -> str:
        """The error in one line."""
        return self._with_hint(self.message.partition("\n")[0])

    def _with_hint(self, text: str) -> str:
        return f"{text} ({self.hint})" if self.hint else text


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
    """A child process ended with a failure. `status` is its exit code, or minus the signal.

    `stderr` is all that it said where its streams are one. `output` is both, standard error first.
    """

    def __init__(self, argv: tuple[str, ...], status: int, stderr: str, stdout: str = "") -> None:
        how = f"exited with {status}" if status >= 0 else f"was killed by signal {-status}"
        self.argv = argv
        self.status = status
        self.stderr = stderr
        self.stdout = stdout
        self.output = stderr + stdout
        self._outcome = f"{argv[0]} {how}"
        super().__init__(_told(self._outcome, self.output.strip()))

    @property
    def log(self) -> str:
        """What it said, its errors at the end."""
        return "\n".join(text for text in (self.stdout.rstrip(), self.stderr.rstrip()) if text)

    @property
    def brief(self) -> str:
        """How it ended, and the last line of its errors."""
        return _told(self._outcome, self.log.rpartition("\n")[2].strip())


def _told(outcome: str, text: str) -> str:
    return f"{outcome}: {text}" if text else outcome


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
