"""Operations on a share, each in a child process with a deadline. Knows no gRPC."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from kangaroo.csi import mount_errors, mount_helper, share_worker
from kangaroo.csi.share_records import Absent, Busy, Record, Snapshot, TooSmall
from kangaroo.csi.volume_id import token_of
from kangaroo.errors import (
    Aborted,
    CommandFailed,
    DeadlineExceeded,
    Exhausted,
    FailedPrecondition,
    KangarooError,
    NotFound,
    OutOfRange,
    Unavailable,
)
from kangaroo.linux import process, python_child
from kangaroo.nas.volume import NasVolume

_log = logging.getLogger(__name__)

# Umounts of the node reach the namespace, so a worker keeps no volume mounted that the node let go.
_NAMESPACE = ("unshare", "--mount", "--propagation", "slave")
_GONE = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ECONNREFUSED)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_KINDS: Mapping[str, type[KangarooError]] = {
    Absent.kind: NotFound,
    TooSmall.kind: OutOfRange,
    Busy.kind: Aborted,
}
_LOG_EVERY_S = 10.0

_R = TypeVar("_R", Record, Snapshot)


@dataclass(frozen=True, slots=True)
class Look(Generic[_R]):
    """A record as it was found. It is None when it cannot be understood; `problem` says why, or
    what else is wrong, and is empty when nothing is.
    """

    token: str
    record: _R | None
    problem: str


@dataclass(frozen=True, slots=True)
class Page(Generic[_R]):
    """Some of a share, in the order of their tokens, and whether there are more after them."""

    looks: list[Look[_R]]
    more: bool


@dataclass(frozen=True, slots=True)
class Worker:
    """Runs operations. `directory` gets an empty directory, on which every child mounts in its own
    mount namespace, and a lock file for each share. An operation has `timeout_s`, a copy any time
    while it does not stand still for `stall_timeout_s`.

    All methods raise MountFailed, DeadlineExceeded, Unavailable, Exhausted, FailedPrecondition and
    Aborted, naming the share.
    """

    directory: Path
    timeout_s: float
    stall_timeout_s: float = 120.0

    async def create(
        self, share: NasVolume, token: str, record: Record, permissions: int
    ) -> Record:
        """See `share_volumes.create`. Raises NotFound and OutOfRange for what the source lacks."""
        details = {"token": token, "record": asdict(record), "permissions": permissions}
        found = _record(await self._run(share, "create", details))
        assert found is not None, "create answers a record"
        return found

    async def fill(self, share: NasVolume, token: str, permissions: int) -> None:
        """See `share_volumes.fill`. Progress goes to the log."""
        await self._copy(share, "fill", {"token": token, "permissions": permissions})

    async def read(self, share: NasVolume, token: str) -> Record | None:
        """The record of a volume, None when there is none."""
        return _record(await self._run(share, "read", {"token": token}))

    async def resize(self, share: NasVolume, token: str, capacity: int) -> Record | None:
        """See `share_volumes.resize`."""
        return _record(await self._run(share, "resize", {"token": token, "capacity": capacity}))

    async def delete(self, share: NasVolume, token: str) -> None:
        """See `share_volumes.delete`. What a deadline cut off is gone on with by the next call."""
        await self._run(share, "delete", {"token": token})

    async def begin_snapshot(self, share: NasVolume, token: str, snapshot: Snapshot) -> Snapshot:
        """See `share_snapshots.begin`. Raises NotFound without the volume."""
        details = {"token": token, "snapshot": asdict(snapshot)}
        return Snapshot.of(await self._run(share, "begin-snapshot", details))

    async def fill_snapshot(self, share: NasVolume, token: str) -> None:
        """See `share_snapshots.fill`. Progress goes to the log."""
        await self._copy(share, "fill-snapshot", {"token": token})

    async def delete_snapshot(self, share: NasVolume, token: str) -> None:
        """See `share_snapshots.delete`."""
        await self._run(share, "delete-snapshot", {"token": token})

    async def look(self, share: NasVolume, token: str) -> Look[Record] | None:
        """A volume and its condition, None when there is none."""
        return _look(await self._run(share, "look", {"token": token}), Record.of)

    async def look_snapshot(self, share: NasVolume, token: str) -> Look[Snapshot] | None:
        """A snapshot, likewise."""
        return _look(await self._run(share, "look-snapshot", {"token": token}), Snapshot.of)

    async def volumes(self, share: NasVolume, after: str, limit: int) -> Page[Record]:
        """Volumes whose token is greater than `after`: at most `limit`, unless it is 0, and no more
        than an answer holds.
        """
        details = {"token": after, "limit": limit}
        return _page(await self._run(share, "list", details), Record.of)

    async def snapshots(self, share: NasVolume, after: str, limit: int) -> Page[Snapshot]:
        """Snapshots, likewise."""
        details = {"token": after, "limit": limit}
        return _page(await self._run(share, "list-snapshots", details), Snapshot.of)

    async def capacity(self, share: NasVolume) -> tuple[int, int]:
        """Total and available bytes."""
        total, available = await self._run(share, "capacity", {})
        return total, available

    async def ensure_directory(self, share: NasVolume, path: str, permissions: int) -> bool:
        """See `share_directory.ensure`."""
        details = {"path": path, "permissions": permissions}
        return bool(await self._run(share, "ensure_directory", details))

    async def _run(self, share: NasVolume, operation: str, details: Mapping[str, Any]) -> Any:
        argv, mount = self._command(share)
        try:
            with _killed(share, operation):
                output = await process.run(
                    argv,
                    timeout_s=self.timeout_s,
                    input=json.dumps({"operation": operation, **details}),
                    env=python_child.environment(),
                )
        except DeadlineExceeded as error:
            raise DeadlineExceeded(
                f"{operation} on {share.source}: not done within {self.timeout_s:g} s",
                hint=error.hint or "a call that is repeated goes on where this one was",
            ) from error
        return _result(share, operation, mount, json.loads(output))

    async def _copy(self, share: NasVolume, operation: str, details: Mapping[str, Any]) -> None:
        argv, mount = self._command(share)
        heard = _Heard(f"{share.source} {details['token']}")
        try:
            with _killed(share, operation):
                await process.run(
                    argv,
                    timeout_s=self.stall_timeout_s,
                    input=json.dumps({"operation": operation, **details}),
                    env=python_child.environment(),
                    on_line=heard.line,
                )
        except DeadlineExceeded as error:
            raise DeadlineExceeded(
                f"{operation} on {share.source}: no progress within {self.stall_timeout_s:g} s"
                f" after {heard.files} files, {heard.bytes} bytes",
                hint=error.hint or "a call that is repeated begins again",
            ) from error
        heard.log(logging.INFO)
        _result(share, operation, mount, heard.answer)

    def _command(self, share: NasVolume) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The argv of a child, and of the mount in it."""
        mount_point = self.directory / "share"
        lock = self.directory / "lock" / token_of(share.source)
        for directory in (mount_point, lock.parent):
            directory.mkdir(parents=True, exist_ok=True)
        mount = mount_helper.command(share, str(mount_point))
        worker = python_child.command(share_worker.__name__, str(lock), str(mount_point), *mount)
        return (*_NAMESPACE, *worker), mount


@contextlib.contextmanager
def _killed(share: NasVolume, operation: str) -> Iterator[None]:
    """A child that somebody killed, such as the kernel for want of memory, has left its work
    undone: by any code that is final the provisioner would take it that nothing was begun.
    """
    try:
        yield
    except CommandFailed as error:
        if error.status >= 0:
            raise
        raise Unavailable(
            f"{operation} on {share.source}: its process was killed by signal {-error.status}",
            hint="a call that is repeated goes on or begins again",
        ) from error


@dataclass(slots=True)
class _Heard:
    """What a copying child said."""

    what: str
    files: int = 0
    bytes: int = 0
    vanished: int = 0
    vanished_names: list[str] = field(default_factory=list)
    answer: Mapping[str, Any] = field(default_factory=dict)
    logged_s: float = field(default_factory=time.monotonic)

    def line(self, text: str) -> None:
        document = json.loads(text)
        if "progress" not in document:
            self.answer = document
            return
        for name, value in document["progress"].items():
            setattr(self, name, value)
        if time.monotonic() - self.logged_s >= _LOG_EVERY_S:
            self.log(logging.INFO)

    def log(self, level: int) -> None:
        self.logged_s = time.monotonic()
        _log.log(level, "copied what=%s files=%d bytes=%d", self.what, self.files, self.bytes)
        if self.answer and self.vanished:
            _log.warning(
                "vanished while it was copied, and left out what=%s files=%d first=%s",
                self.what,
                self.vanished,
                self.vanished_names,
            )


def _result(
    share: NasVolume, operation: str, mount: tuple[str, ...], answer: Mapping[str, Any]
) -> Any:
    match answer.get("failed"):
        case None:
            return answer["result"]
        case "mount":
            failure = CommandFailed(mount, answer["status"], answer["output"])
            raise mount_errors.from_command(share, failure)
        case _:
            text = f"{operation} on {share.source}: {answer['reason']}"
            raise _failure(text, answer["errno"], answer["kind"])


def _failure(text: str, number: int, kind: str) -> KangarooError:
    if kind in _KINDS:
        return _KINDS[kind](text)
    if number in _GONE:
        return Unavailable(text)
    if number in _FULL:
        return Exhausted(text)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FailedPrecondition(text, hint="the export must let this node write as root")
    if number in (errno.ELOOP, errno.EXDEV, errno.ENOTDIR):
        return FailedPrecondition(text, hint="a link or a file stands where a directory should")
    return FailedPrecondition(text)


def _record(raw: Mapping[str, Any] | None) -> Record | None:
    return None if raw is None else Record.of(raw)


def _look(raw: Mapping[str, Any] | None, of: Callable[[Any], _R]) -> Look[_R] | None:
    if raw is None:
        return None
    record = None if raw["record"] is None else of(raw["record"])
    return Look(raw["token"], record, raw["problem"])


def _page(raw: Mapping[str, Any], of: Callable[[Any], _R]) -> Page[_R]:
    looks = (_look(entry, of) for entry in raw["entries"])
    return Page([look for look in looks if look is not None], more=raw["more"])
