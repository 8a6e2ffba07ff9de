"""Operations on a share, each in a child process with a deadline. Knows no gRPC."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import kangaroo
from kangaroo.csi import mount_errors, mount_helper, share_worker
from kangaroo.csi.share_worker import Record
from kangaroo.csi.volume_id import token_of
from kangaroo.errors import (
    CommandFailed,
    DeadlineExceeded,
    FailedPrecondition,
    KangarooError,
    Unavailable,
)
from kangaroo.linux import process
from kangaroo.nas.volume import NasVolume

# Umounts of the node reach the namespace, so a worker keeps no volume mounted that the node let go.
_NAMESPACE = ("unshare", "--mount", "--propagation", "slave")
_MODULE = ("-P", "-S", "-m", share_worker.__name__)
_GONE = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ECONNREFUSED)


@dataclass(frozen=True, slots=True)
class Worker:
    """Runs operations. `directory` gets an empty directory, on which every child mounts in its own
    mount namespace, and a lock file for each share.

    All methods raise MountFailed, DeadlineExceeded, Unavailable and FailedPrecondition, naming the
    share.
    """

    directory: Path
    timeout_s: float

    async def create(
        self, share: NasVolume, token: str, record: Record, permissions: int
    ) -> Record:
        """See `share_worker.create`."""
        details = {"token": token, "record": asdict(record), "permissions": permissions}
        found = _record(await self._run(share, "create", details))
        assert found is not None, "create answers a record"
        return found

    async def read(self, share: NasVolume, token: str) -> Record | None:
        """The record of a volume, None when there is none."""
        return _record(await self._run(share, "read", {"token": token}))

    async def resize(self, share: NasVolume, token: str, capacity: int) -> Record | None:
        """See `share_worker.resize`."""
        return _record(await self._run(share, "resize", {"token": token, "capacity": capacity}))

    async def delete(self, share: NasVolume, token: str) -> None:
        """See `share_worker.delete`. What a deadline cut off is gone on with by the next call."""
        await self._run(share, "delete", {"token": token})

    async def capacity(self, share: NasVolume) -> tuple[int, int]:
        """Total and available bytes."""
        total, available = await self._run(share, "capacity", {})
        return total, available

    async def ensure_directory(self, share: NasVolume, path: str, permissions: int) -> bool:
        """See `share_directory.ensure`."""
        details = {"path": path, "permissions": permissions}
        return bool(await self._run(share, "ensure_directory", details))

    async def _run(self, share: NasVolume, operation: str, details: Mapping[str, Any]) -> Any:
        mount_point = self.directory / "share"
        lock = self.directory / "lock" / token_of(share.source)
        for directory in (mount_point, lock.parent):
            directory.mkdir(parents=True, exist_ok=True)
        mount = mount_helper.command(share, str(mount_point))
        argv = (*_NAMESPACE, sys.executable, *_MODULE, str(lock), str(mount_point), *mount)
        library = str(Path(kangaroo.__file__).parent.parent)
        try:
            output = await process.run(
                argv,
                timeout_s=self.timeout_s,
                input=json.dumps({"operation": operation, **details}),
                env={**os.environ, "LC_ALL": "C", "PYTHONPATH": library},
            )
        except DeadlineExceeded as error:
            raise DeadlineExceeded(
                f"{operation} on {share.source}: not done within {self.timeout_s:g} s",
                hint=error.hint or "a call that is repeated goes on where this one was",
            ) from error
        return _result(share, operation, mount, json.loads(output))


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
            raise _failure(f"{operation} on {share.source}: {answer['reason']}", answer["errno"])


def _failure(text: str, number: int) -> KangarooError:
    if number in _GONE:
        return Unavailable(text)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FailedPrecondition(text, hint="the export must let this node write as root")
    if number in (errno.ELOOP, errno.EXDEV, errno.ENOTDIR):
        return FailedPrecondition(text, hint="a link or a file stands where a directory should")
    return FailedPrecondition(text)


def _record(raw: Mapping[str, Any] | None) -> Record | None:
    return None if raw is None else Record.of(raw)
