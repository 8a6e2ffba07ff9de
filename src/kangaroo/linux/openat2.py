"""openat2(2): open what lies beneath a directory, and nothing else, whoever changes the tree
meanwhile.
"""

from __future__ import annotations

import ctypes
import os

from kangaroo.linux import libc

_SYS_OPENAT2 = 437  # the same number on every architecture; Linux 5.6
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08

# A `..` on the way is EAGAIN when anything at all was renamed meanwhile; a try takes microseconds.
_TRIES = 1000


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def open_beneath(dirfd: int, relative: str, flags: int, *, follow: bool = True) -> int:
    """Open `relative` beneath the directory `dirfd`; the descriptor is close-on-exec.

    Symbolic links are followed while they stay beneath; an absolute one, or `..` that leaves, is
    EXDEV. Without `follow`, any is ELOOP. "" and "." are the directory itself. Renames elsewhere
    that make the kernel unsure of a `..` are waited out. Raises OSError naming `relative`.
    """
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS | (0 if follow else _RESOLVE_NO_SYMLINKS)
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    for _ in range(_TRIES):
        try:
            return libc.call(
                "syscall",
                ctypes.c_long(_SYS_OPENAT2),
                dirfd,
                os.fsencode(relative or "."),
                ctypes.byref(how),
                ctypes.c_size_t(ctypes.sizeof(how)),
                named=relative,
            )
        except BlockingIOError as error:  # EAGAIN
            unsure = error
    raise unsure


def ensure_directory_beneath(dirfd: int, relative: str, mode: int, *, follow: bool = True) -> int:
    """Open the directory `relative` beneath `dirfd` (O_PATH), creating what is missing of it with
    `mode`.

    The mode holds whatever the umask is. Components are created one by one, each in a directory
    that was itself opened beneath `dirfd`; `..` is not accepted in what has to be created. `follow`
    as in `open_beneath`. Raises OSError.
    """
    flags = os.O_PATH | os.O_DIRECTORY
    parts = [part for part in relative.split("/") if part not in ("", ".")]
    current = open_beneath(dirfd, ".", flags)
    for depth, part in enumerate(parts, 1):
        try:
            following = _enter(dirfd, current, "/".join(parts[:depth]), part, mode, follow=follow)
        finally:
            os.close(current)
        current = following
    return current


def _enter(dirfd: int, parent: int, path: str, part: str, mode: int, *, follow: bool) -> int:
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        return open_beneath(dirfd, path, flags, follow=follow)
    except FileNotFoundError:
        pass
    try:
        os.mkdir(part, mode, dir_fd=parent)
    except FileExistsError:  # made by somebody else, or a dangling link: the next open tells
        return open_beneath(dirfd, path, flags, follow=follow)
    made = open_beneath(dirfd, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, follow=follow)
    try:
        os.fchmod(made, mode)
        return open_beneath(made, ".", flags)
    finally:
        os.close(made)
