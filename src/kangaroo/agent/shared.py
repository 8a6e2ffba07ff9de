"""The volumes that the node shares by virtio-fs, as the containers of this guest have them.

Each is a file system of its own (virtiofsd announces submounts), which the kernel mounts when
somebody looks into it, in the mount namespace of whoever looks (fs/fuse/dir.c,
fuse_dentry_automount). So the agent looks first: containers then find the one mount of its
namespace, where two of them have a socket, a pipe, a lock or a page of a file in common.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable

from kangaroo.agent import log
from kangaroo.agent.children import Children
from kangaroo.agent.loop import Future
from kangaroo.errors import CommandFailed, DeadlineExceeded
from kangaroo.linux.mount import UmountFlag, umount


class SharedVolumes:
    """Which of them are mounted for whom, by path."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._holders: Counter[str] = Counter()
        self._leaving: dict[str, Future] = {}

    async def hold(self, paths: Iterable[str], timeout_s: float) -> None:
        """Have `paths` mounted, until each has been released as often as held.

        Counts as held also on failure: OSError, CommandFailed, or DeadlineExceeded where the node
        does not answer.
        """
        wanted = tuple(paths)
        self._holders.update(wanted)
        for path in wanted:
            if leaving := self._leaving.get(path):
                await leaving
        if wanted:
            await self._children.call(
                lambda: _look_into(wanted), what="shared volumes", timeout_s=timeout_s
            )

    async def release(self, paths: Iterable[str], timeout_s: float) -> None:
        """Unmount what nobody holds any more; a file is none. A failure is logged."""
        self._holders.subtract(released := tuple(paths))
        self._holders = +self._holders
        over = tuple(path for path in dict.fromkeys(released) if not self._holders[path])
        if not over:
            return
        done = Future()
        self._leaving.update(dict.fromkeys(over, done))
        try:
            # What is unmounted is written back, and the node may have to wait for a server.
            await self._children.call(
                lambda: _unmount(over), what="shared volumes", timeout_s=timeout_s
            )
        except (OSError, CommandFailed, DeadlineExceeded) as error:
            log.info("shared volumes stay", paths=", ".join(over), error=error)
        finally:
            for path in over:
                if self._leaving.get(path) is done:
                    del self._leaving[path]
            done.set()


def _look_into(paths: tuple[str, ...]) -> None:
    for path in paths:
        try:
            # stat(2) would mount nothing (fs/stat.c, vfs_fstatat), nor need this a right to enter.
            os.close(os.open(path, os.O_PATH | os.O_DIRECTORY))
        except NotADirectoryError:  # a file is of the tree's own file system
            pass


def _unmount(paths: tuple[str, ...]) -> None:
    for path in paths:
        try:
            umount(path, UmountFlag.DETACH | UmountFlag.NOFOLLOW)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):  # a file, or never looked into
                raise
