"""Volumes on a share: the record `volumes/TOKEN.json`, and the directory that it names. Standard
library and `kangaroo.linux` only.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from functools import partial

from kangaroo.csi import share_copies, share_snapshots, share_trash
from kangaroo.csi.share_records import (
    DIRECTORY,
    SNAPSHOTS,
    VOLUMES,
    Absent,
    Exclusive,
    OnDelete,
    Record,
    Refused,
    Snapshot,
    Source,
    SourceKind,
    TooSmall,
    exists,
    opened,
)
from kangaroo.csi.tree_copy import Progress
from kangaroo.linux.openat2 import ensure_directory_beneath, open_beneath

# NAME_MAX without what an archived name has around it.
_ARCHIVED_NAME_BYTES = 220


def create(root: int, token: str, asked: Record, permissions: int) -> Record:
    """Write `asked` down and make its directory; the record that is there already wins.

    A volume with a source gets no directory here: `fill` makes it, and until then the record that
    is returned is not `whole`. Its capacity is its source's when none is asked for. A repeat, also
    after a kill at any point, comes to the same end. Raises Absent without the source, TooSmall,
    Refused.
    """
    record = VOLUMES.read(root, token)
    if record is None:
        record = _new(root, asked)
        VOLUMES.write(root, token, record)
    if not record.whole or _waits(root, token, record):
        return replace(record, whole=False)
    with opened(ensure_directory_beneath(root, record.subdir, permissions, follow=False)):
        return record


def fill(
    root: int,
    token: str,
    permissions: int,
    progress: Progress,
    exclusive: Exclusive,
) -> Record:
    """Make the directory of a volume that has a source, unless that was done. `permissions` are
    for directories above it; itself it has the source's.

    `exclusive` is held while a record is changed and the directory put in its place, not while a
    tree is copied. A copy that fails takes the record along. Raises Absent without the record or
    the source, Refused, Unfit.
    """
    record = VOLUMES.require(root, token)
    name = share_copies.of_volume(token)
    if not record.whole:
        give_up = partial(VOLUMES.give_up, root, token)
        with share_copies.given_up(Absent, give_up):
            content = _content(root, record.source)
        share_copies.make(root, name, content, progress, give_up=give_up)
        with exclusive():  # the volume may have grown meanwhile
            record = replace(VOLUMES.require(root, token), whole=True)
            VOLUMES.write(root, token, record)
    if _waits(root, token, record):
        above, _, last = record.subdir.rpartition("/")
        with (
            exclusive(),
            opened(ensure_directory_beneath(root, above, permissions, follow=False)) as found,
            opened(open_beneath(found, ".", DIRECTORY)) as directory,
        ):
            share_copies.place(root, name, directory, last)
    return record


def resize(root: int, token: str, capacity: int) -> Record | None:
    """Write a larger capacity down; the record as it is then, None without one."""
    record = VOLUMES.read(root, token)
    if record is None or record.capacity >= capacity:
        return record
    record = replace(record, capacity=capacity)
    VOLUMES.write(root, token, record)
    return record


def delete(root: int, token: str, exclusive: Exclusive) -> None:
    """Do with the volume what its record says, and forget it. A repeat does nothing, or goes on.

    A directory that was there before the volume, or that another volume shares, is left alone; a
    copy that is not at its place is deleted, whatever the record says. `exclusive` is held while
    that is found out, not while a tree is deleted. Raises Refused when another volume lies in the
    directory.
    """
    record = VOLUMES.read(root, token)
    if record is None:
        return
    if not record.whole or _waits(root, token, record):
        share_copies.clear(root, share_copies.of_volume(token))
    else:
        with exclusive():
            _retire(root, token, record)
        if record.on_delete is OnDelete.DELETE:
            share_trash.empty(root, token)
    VOLUMES.forget(root, token)


def capacity(root: int) -> tuple[int, int]:
    """Total and available bytes of the share, as the server tells them."""
    numbers = os.fstatvfs(root)
    return numbers.f_blocks * numbers.f_frsize, numbers.f_bavail * numbers.f_frsize


def _new(root: int, asked: Record) -> Record:
    """What is written down for a volume that is not there."""
    made = not exists(root, asked.subdir)
    if asked.source.kind is SourceKind.NONE:
        return replace(asked, made=made, whole=True)
    if not made:
        raise Refused(f"{asked.subdir} is there already, and a copy needs a new directory")
    least = _size(root, asked.source)
    if 0 < asked.capacity < least:
        raise TooSmall(f"{asked.capacity} bytes are less than the source's {least}")
    return replace(asked, made=True, whole=False, capacity=asked.capacity or least)


def _size(root: int, source: Source) -> int:
    """The capacity of what a volume is to be made from. Raises Absent, Refused when not whole."""
    found: Record | Snapshot
    if source.kind is SourceKind.SNAPSHOT:
        found = SNAPSHOTS.require(root, source.token)
        size = found.size
    else:
        found = VOLUMES.require(root, source.token)
        size = found.capacity
    if not found.whole:
        raise Refused(f"the {source.kind} {found.name} is not whole yet")
    return size


def _content(root: int, source: Source) -> str:
    """The directory that is to be copied."""
    _size(root, source)
    if source.kind is SourceKind.SNAPSHOT:
        return share_snapshots.data(source.token)
    return VOLUMES.require(root, source.token).subdir


def _waits(root: int, token: str, record: Record) -> bool:
    copied = record.source.kind is not SourceKind.NONE
    return copied and share_copies.waits(root, share_copies.of_volume(token))


def _retire(root: int, token: str, record: Record) -> None:
    """Rename the volume's directory out of the way, into the archive or the trash."""
    if not record.made or record.on_delete is OnDelete.RETAIN or _shared(root, token, record):
        return
    above, _, name = record.subdir.rpartition("/")
    try:
        parent = open_beneath(root, above, DIRECTORY, follow=False)
    except FileNotFoundError:
        return  # somebody has removed it, and the volume in it
    with opened(parent) as directory:
        if record.on_delete is OnDelete.ARCHIVE:
            with contextlib.suppress(FileNotFoundError):  # by a call that was then killed
                os.rename(name, _archived(name), src_dir_fd=directory, dst_dir_fd=directory)
        elif not share_trash.holds(root, token):
            share_trash.throw(root, name, directory, token)


def _archived(name: str) -> str:
    kept = os.fsencode(name)[:_ARCHIVED_NAME_BYTES].decode(errors="ignore")
    return f"archived-{kept}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"


def _shared(root: int, token: str, record: Record) -> bool:
    """Whether another volume has the same directory. Raises Refused when one lies inside it."""
    others = (VOLUMES.read(root, other) for other in VOLUMES.tokens(root) if other != token)
    same = False
    for other in others:
        if other is None:
            continue
        if other.subdir.startswith(f"{record.subdir}/"):
            raise Refused(f"{record.subdir} holds the volume {other.name} in {other.subdir}")
        same = same or other.subdir == record.subdir
    return same
