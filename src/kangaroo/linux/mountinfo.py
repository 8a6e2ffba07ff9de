"""The kernel's mount table, `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5), fs/proc_namespace.c).

Reading the table never touches the mounted file systems, so it is safe while a server is dead; a
`stat` is not.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(r"\\([0-7]{3})")
# A comma that is not between double quotes: SELinux shows context="…,…".
_OPTION = re.compile(r'(?:[^,"]|"[^"]*"?)+')


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of the mount table, with the kernel's escapes undone."""

    mount_id: int
    parent_id: int
    device: str  # "major:minor"
    root: str  # what of the file system is mounted; NFS always shows "/"
    mount_point: str
    options: tuple[str, ...]  # of this mount: ro, nosuid, …
    propagation: tuple[str, ...]  # shared:N, master:N, …
    fstype: str
    source: str
    super_options: tuple[str, ...]  # of the file system


def read(path: str | os.PathLike[str] = "/proc/self/mountinfo") -> tuple[MountEntry, ...]:
    """The mount table of this process, or of the one whose mountinfo `path` is."""
    return parse(Path(path).read_bytes().decode("utf-8", "surrogateescape"))


def parse(text: str) -> tuple[MountEntry, ...]:
    """The entries of a mount table, in its order. Raises ValueError naming an unreadable line."""
    return tuple(_parse_line(line) for line in text.split("\n") if line)


def covering(path: str, entries: Iterable[MountEntry]) -> MountEntry | None:
    """The mount on which `path` lies, as a walk from the root would find it. Lexical: no symlinks,
    no stat.

    The walk goes down from parent to child by the shortest mount point first, so a mount that a
    later one hides is not found. None when no entry covers the path.
    """
    wanted = posixpath.normpath(path)
    children: dict[int, list[MountEntry]] = {}
    known = tuple(entries)
    ids = {entry.mount_id for entry in known}
    tops: list[MountEntry] = []
    for entry in known:
        if not _beneath(wanted, entry.mount_point):
            continue
        if entry.parent_id in ids and entry.parent_id != entry.mount_id:
            children.setdefault(entry.parent_id, []).append(entry)
        else:
            tops.append(entry)
    found: MountEntry | None = None
    while tops:
        found = min(tops, key=lambda entry: len(entry.mount_point))
        tops = children.pop(found.mount_id, [])
    return found


def at(path: str, entries: Iterable[MountEntry]) -> MountEntry | None:
    """The topmost mount whose mount point is exactly `path`, or None when `path` is not a mount
    point.
    """
    found = covering(path, entries)
    if found is None or found.mount_point != posixpath.normpath(path):
        return None
    return found


def find(path: str, table: str | os.PathLike[str] = "/proc/self/mountinfo") -> MountEntry | None:
    """`at(path, read(table))`, but taking apart only the lines that lie on the way to `path`: a
    node has hundreds of mounts, and a call of the CSI driver looks several times.
    """
    wanted = posixpath.normpath(path)
    text = Path(table).read_bytes().decode("utf-8", "surrogateescape")
    lines = (line for line in text.split("\n") if line and _beneath(wanted, _mount_point_of(line)))
    return at(wanted, [_parse_line(line) for line in lines])


def split_options(text: str) -> tuple[str, ...]:
    """A comma list, where a comma between double quotes does not separate."""
    return tuple(_OPTION.findall(text))


def unescape(field: str) -> str:
    r"""Undo the kernel's octal escapes (`\040` for a space) in a field of the mount table."""
    if "\\" not in field:
        return field
    raw = re.sub(
        _ESCAPE.pattern.encode(),
        lambda match: bytes((int(match[1], 8) & 0xFF,)),
        field.encode("utf-8", "surrogateescape"),
    )
    return raw.decode("utf-8", "surrogateescape")


def _beneath(path: str, directory: str) -> bool:
    return directory in ("/", path) or path.startswith(directory + "/")


def _mount_point_of(line: str) -> str:
    fields = line.split(" ", 5)
    if len(fields) < 6:
        raise ValueError(f"not a line of a mount table: {line!r}")
    return unescape(fields[4])


def _parse_line(line: str) -> MountEntry:
    # Not str.split(): an empty source is two spaces in a row.
    fields = line.split(" ")
    try:
        separator = fields.index("-", 6)
        fstype, source, super_options = fields[separator + 1 : separator + 4]
        return MountEntry(
            mount_id=int(fields[0]),
            parent_id=int(fields[1]),
            device=fields[2],
            root=unescape(fields[3]),
            mount_point=unescape(fields[4]),
            options=split_options(fields[5]),
            propagation=tuple(fields[6:separator]),
            fstype=unescape(fstype),
            source=unescape(source),
            super_options=tuple(unescape(option) for option in split_options(super_options)),
        )
    except ValueError as error:
        raise ValueError(f"not a line of a mount table: {line!r}") from error
