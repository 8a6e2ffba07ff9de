"""mount(2) and umount2(2); open_tree(2), mount_setattr(2) and move_mount(2) for read-only binds.

Every function raises OSError that names the path.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os

from kangaroo.linux import libc

# The same numbers on every architecture; Linux 5.2 and 5.12.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 0x1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOUNT_ATTR_RDONLY = 0x1
# A page and its end (copy_mount_options in fs/namespace.c).
DATA_LIMIT = 4095
# umount(8) that neither looks the path up nor runs a helper: umount.nfs talks to the server.
UMOUNT_COMMAND = ("umount", "--no-canonicalize", "--internal-only")


class MountFlag(enum.IntFlag):
    """Those flags of mount(2) that are used here, include/uapi/linux/mount.h."""

    NONE = 0
    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    NOATIME = 1024
    NODIRATIME = 2048
    BIND = 4096
    REC = 16384
    UNBINDABLE = 1 << 17
    PRIVATE = 1 << 18
    SLAVE = 1 << 19
    SHARED = 1 << 20
    RELATIME = 1 << 21


class UmountFlag(enum.IntFlag):
    """Those flags of umount2(2) that are used here."""

    NONE = 0
    DETACH = 2
    NOFOLLOW = 8


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount(
    source: str,
    target: str | os.PathLike[str],
    fstype: str = "",
    flags: MountFlag = MountFlag.NONE,
    data: str = "",
) -> None:
    """Mount a file system. An empty `fstype` or `data` is passed to the kernel as NULL.

    Raises OSError, E2BIG for more than DATA_LIMIT bytes of `data`, which the kernel would cut.
    """
    options = os.fsencode(data)
    if len(options) > DATA_LIMIT:
        raise OSError(errno.E2BIG, f"{len(options)} bytes of options", os.fsdecode(target))
    libc.call(
        "mount",
        os.fsencode(source),
        os.fsencode(target),
        os.fsencode(fstype) if fstype else None,
        ctypes.c_ulong(int(flags)),
        options or None,
        named=target,
    )


def umount(target: str | os.PathLike[str], flags: UmountFlag = UmountFlag.NONE) -> None:
    """umount2(2). Takes the topmost mount at `target` away."""
    libc.call("umount2", os.fsencode(target), int(flags), named=target)


def bind(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    recursive: bool = False,
    read_only: bool = False,
) -> None:
    """Mount `source` on `target` once more; with `recursive` the mounts beneath it too.

    A read-only bind is read-only from the moment it is there, and so are the copies of it that
    propagation makes: later changes of its flags would not reach those. Its other flags are kept.
    """
    if not read_only:
        flags = MountFlag.BIND | (MountFlag.REC if recursive else MountFlag.NONE)
        mount(os.fsdecode(source), target, flags=flags)
        return
    depth = _AT_RECURSIVE if recursive else 0
    tree = _open_tree(source, depth)
    try:
        _set_read_only(tree, target, depth)
        _attach(tree, target)
    finally:
        os.close(tree)


def _open_tree(source: str | os.PathLike[str], depth: int) -> int:
    """A copy of the mount at `source`, attached nowhere."""
    return libc.call(
        "syscall",
        ctypes.c_long(_SYS_OPEN_TREE),
        _AT_FDCWD,
        os.fsencode(source),
        _OPEN_TREE_CLONE | os.O_CLOEXEC | depth,
        named=source,
    )


def _set_read_only(tree: int, target: str | os.PathLike[str], depth: int) -> None:
    attributes = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY)
    libc.call(
        "syscall",
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        tree,
        b"",
        _AT_EMPTY_PATH | depth,
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
        named=target,
    )


def _attach(tree: int, target: str | os.PathLike[str]) -> None:
    libc.call(
        "syscall",
        ctypes.c_long(_SYS_MOVE_MOUNT),
        tree,
        b"",
        _AT_FDCWD,
        os.fsencode(target),
        _MOVE_MOUNT_F_EMPTY_PATH,
        named=target,
    )


def make_shared(target: str | os.PathLike[str]) -> None:
    """Mounts made beneath appear in the peers, and theirs here (mount_namespaces(7))."""
    _set_propagation(target, MountFlag.SHARED, False)


def make_slave(target: str | os.PathLike[str], *, recursive: bool = False) -> None:
    """Mounts of the master appear here; what is mounted here does not go back."""
    _set_propagation(target, MountFlag.SLAVE, recursive)


def make_unbindable(target: str | os.PathLike[str]) -> None:
    """Private, and left out with all beneath when a tree above is bound recursively."""
    _set_propagation(target, MountFlag.UNBINDABLE, False)


def make_private(target: str | os.PathLike[str], *, recursive: bool = False) -> None:
    """Mounts neither come nor go."""
    _set_propagation(target, MountFlag.PRIVATE, recursive)


def _set_propagation(target: str | os.PathLike[str], kind: MountFlag, recursive: bool) -> None:
    mount("none", target, flags=kind | (MountFlag.REC if recursive else MountFlag.NONE))
