"""An initramfs archive: cpio "newc".

Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's source.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import NamedTuple


class Member(NamedTuple):
    """One entry. `data` is the content of a file or the target of a symbolic link."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, permissions: int = 0o755) -> Member:
    return Member(path, stat.S_IFDIR | permissions)


def file(path: str, data: bytes, permissions: int = 0o644) -> Member:
    return Member(path, stat.S_IFREG | permissions, data)


def link(path: str, target: str) -> Member:
    return Member(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Member:
    return Member(path, stat.S_IFCHR | permissions, device=(major, minor))


def archive(members: Iterable[Member]) -> bytes:
    """The archive, everything owned by root and dated 1970, so that the same members give the same
    bytes.
    """
    parts = [_entry(number, member) for number, member in enumerate(members, 1)]
    return b"".join([*parts, _entry(0, Member("TRAILER!!!", 0))])


def _entry(inode: int, member: Member) -> bytes:
    name = member.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(member.mode) else 1
    fields = (
        inode,
        member.mode,
        0,
        0,
        links,
        0,
        len(member.data),
        0,
        0,
        *member.device,
        len(name),
        0,
    )
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _padded(header) + _padded(member.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
