"""What passthrough does to the node's mount table: read, unmount in bounded time, placeholders."""

from __future__ import annotations

import logging
from pathlib import Path

from kangaroo.errors import CommandFailed, DeadlineExceeded
from kangaroo.linux import mountinfo
from kangaroo.linux.mount import UMOUNT_COMMAND
from kangaroo.linux.mountinfo import MountEntry
from kangaroo.linux.process import run
from kangaroo.runtime import placeholder
from kangaroo.runtime.state import PlaceholderState, VolumeState

_BDI = Path("/sys/class/bdi")

_LOG = logging.getLogger(__name__)


class NodeMounts:
    """The node's mounts. Nothing here waits for a server that may be dead: what could, unmounting,
    is done by a child process with a deadline.
    """

    def __init__(self, *, unmount_timeout_s: float) -> None:
        self._unmount_timeout_s = unmount_timeout_s

    def table(self) -> tuple[MountEntry, ...]:
        """The mount table now."""
        return mountinfo.read()

    def read_ahead_kib(self, device: str) -> int | None:
        """How far ahead the kernel reads files of the mount with that st_dev ("MAJOR:MINOR"), as an
        administrator or udev has set it (Documentation/ABI/testing/sysfs-class-bdi).
        """
        try:
            return int((_BDI / device / "read_ahead_kb").read_text())
        except (OSError, ValueError):
            return None

    async def unmount(self, path: str) -> None:
        """Unmount `path`; detach it when it is busy or its server is dead. Nothing there is fine.

        No helper program: umount.nfs would talk to the server. Raises CommandFailed or
        DeadlineExceeded when even detaching fails.
        """
        try:
            await run((*UMOUNT_COMMAND, path), timeout_s=self._unmount_timeout_s)
            return
        except (CommandFailed, DeadlineExceeded) as error:
            if mountinfo.at(path, mountinfo.read()) is None:
                return
            _LOG.warning("unmount failed, detaching path=%s error=%s", path, error)
        await run((*UMOUNT_COMMAND, "--lazy", path), timeout_s=self._unmount_timeout_s)

    def remove_mount_point(self, path: str) -> None:
        """Remove the empty directory or file that kubelet mounted a subPath on.

        It was made for what lay on the NAS. When kubelet prepares the subPath again, on the
        placeholder, it may be a directory where there was a file, and does not fit on it.
        """
        try:
            try:
                Path(path).rmdir()  # no stat: what may still be mounted there may be dead
            except NotADirectoryError:
                Path(path).unlink()
        except OSError as error:
            _LOG.warning("mount point stays path=%s error=%s", path, error)

    def put_placeholder(self, path: str, record: VolumeState) -> PlaceholderState:
        """Mount a placeholder for `record` on `path`; one that stands is left. Raises OSError."""
        return placeholder.put_placeholder(path, record)

    def read_record(self, path: str) -> VolumeState:
        """The record in the placeholder at `path`. Raises FailedPrecondition."""
        return placeholder.read_record(path)
