"""Write a file system back, and unmount it. In a forked child only: these calls wait for a server,
and change the ids of the process meanwhile.
"""

from __future__ import annotations

import os

from kangaroo.linux import libc
from kangaroo.linux.mount import umount

_OPEN = os.O_RDONLY | os.O_DIRECTORY
_NOBODY = 65534


def flush_and_unmount(mount_point: str) -> None:
    """Write back (syncfs(2)) and unmount. Raises OSError, the error of an earlier write among them;
    the mount then stays.

    A server may deny it to root (`root_squash`) to open the volume: then it is opened as its owner,
    or with its group. Where nobody may, umount(2) alone writes back, which tells of no error.
    """
    fd = _opened_as_who_may(mount_point)
    if fd is not None:
        try:
            libc.call("syncfs", fd, named=mount_point)
        finally:
            os.close(fd)
    umount(mount_point)


def _opened_as_who_may(path: str) -> int | None:
    there = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        owner = os.fstat(there)
        for uid, gid in ((0, 0), (owner.st_uid or _NOBODY, owner.st_gid)):
            try:
                os.setegid(gid)
                os.seteuid(uid)
                # Not by its path, which leads through directories of root's own.
                return os.open(f"/proc/self/fd/{there}", _OPEN)
            except PermissionError:
                pass
            finally:
                os.seteuid(0)
                os.setegid(0)
    finally:
        os.close(there)
    return None
