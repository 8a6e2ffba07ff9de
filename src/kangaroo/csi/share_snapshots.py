"""Snapshots on a share: the record `snapshots/TOKEN.json`, and beside it the copy `TOKEN`.

Standard library and `kangaroo.linux` only.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from kangaroo.csi import share_copies, share_trash
from kangaroo.csi.share_records import (
    SNAPSHOTS,
    VOLUMES,
    Absent,
    Exclusive,
    Refused,
    Snapshot,
    exists,
    private,
)
from kangaroo.csi.tree_copy import Progress


def begin(root: int, token: str, asked: Snapshot) -> Snapshot:
    """Write `asked` down, with its volume's capacity; the record that is there already wins.

    Raises Absent without the volume, Refused for one that is itself not whole.
    """
    snapshot = SNAPSHOTS.read(root, token)
    if snapshot is None:
        volume = VOLUMES.require(root, asked.source)
        if not volume.whole:
            raise Refused(f"the volume {volume.name} is not whole yet")
        snapshot = replace(asked, size=volume.capacity, whole=False)
        SNAPSHOTS.write(root, token, snapshot)
    return snapshot


def fill(root: int, token: str, progress: Progress, exclusive: Exclusive) -> Snapshot:
    """Copy what the snapshot is of, unless that was done, and write down that it is whole. A copy
    that fails takes the record along. Raises Absent without a record or what is to be copied.
    """
    snapshot = SNAPSHOTS.require(root, token)
    if snapshot.whole:
        return snapshot
    if not exists(root, data(token)):
        give_up = partial(SNAPSHOTS.give_up, root, token)
        with share_copies.given_up(Absent, give_up):
            volume = VOLUMES.require(root, snapshot.source)
        name = share_copies.of_snapshot(token)
        share_copies.make(root, name, volume.subdir, progress, give_up=give_up)
        with exclusive(), private(root, SNAPSHOTS.directory) as directory:
            share_copies.place(root, name, directory, token)
    snapshot = replace(snapshot, whole=True)
    SNAPSHOTS.write(root, token, snapshot)
    return snapshot


def delete(root: int, token: str, exclusive: Exclusive) -> None:
    """Delete a snapshot, half-made or whole, and forget it. A repeat does nothing, or goes on.

    It does not matter what its record says.
    """
    if not SNAPSHOTS.has(root, token):
        return
    share_copies.clear(root, share_copies.of_snapshot(token))
    with exclusive(), private(root, SNAPSHOTS.directory) as directory:
        share_trash.throw(root, token, directory, share_copies.of_snapshot(token))
    share_trash.empty(root, share_copies.of_snapshot(token))
    SNAPSHOTS.forget(root, token)


def data(token: str) -> str:
    """Where the copy of a whole snapshot is, beneath the share."""
    return f"{SNAPSHOTS.directory}/{token}"
