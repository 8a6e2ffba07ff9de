"""Figures of a published volume, and what is wrong with it. Knows no gRPC."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kangaroo.csi import condition, guest_volumes
from kangaroo.csi.condition import Identity, Unusable
from kangaroo.errors import NotFound
from kangaroo.linux import mountinfo
from kangaroo.linux.mountinfo import MountEntry
from kangaroo.nas.placeholder import is_placeholder


class Figures(NamedTuple):
    """Bytes and inodes, none more than CSI's numbers hold; of the free bytes some may be for root
    alone. A server that does not count inodes may say that more are free than there are.
    """

    total_bytes: int
    free_bytes: int
    available_bytes: int
    total_inodes: int
    free_inodes: int


@dataclass(frozen=True, slots=True)
class VolumeStats:
    """`figures` is None when they cannot be had; `problem` is empty when nothing is wrong."""

    figures: Figures | None
    problem: str = ""


async def look(target: str, probe_s: float, sandboxes: Path) -> VolumeStats:
    """The volume on `target`; one that a guest has mounted as that guest sees it, through its
    sandbox in `sandboxes`.

    What the server does not answer within `probe_s` is a problem of the volume, not an error.
    Raises NotFound when nothing is published there, Unavailable when the guest cannot be asked.
    """
    entry = mountinfo.at(target, mountinfo.read())
    if entry is None:
        raise NotFound(f"no volume is published on {target}")
    try:
        if is_placeholder(entry):
            said = await guest_volumes.statistics(sandboxes, target, probe_s)
            return VolumeStats(Figures(**said))
        figures = await _figures(entry, probe_s)
    except Unusable as error:
        return VolumeStats(None, str(error))
    try:
        return VolumeStats(figures, await _read_only(entry, probe_s))
    except Unusable as error:
        return VolumeStats(figures, str(error))


async def _figures(entry: MountEntry, probe_s: float) -> Figures:
    words = "--format=%S %b %f %a %c %d"
    said = await condition.ask(entry, probe_s, "stat", "--file-system", words, entry.mount_point)
    block, total, free, available, *inodes = map(int, said.split())
    # stat(1) takes some for signed numbers, which they are not.
    shown = (total * block, free * block, available * block, *(each % 2**64 for each in inodes))
    return Figures(*(min(each, guest_volumes.MOST) for each in shown))


async def _read_only(entry: MountEntry, probe_s: float) -> str:
    """What is wrong when the volume was published for writing and its server takes no writes."""
    said = await condition.ask(entry, probe_s, "stat", "--format=%u %g %f", entry.mount_point)
    uid, gid, mode = said.split()
    permissions = stat.S_IMODE(int(mode, 16))
    owner = Identity(int(uid), int(gid))
    if await condition.takes_writes(entry, owner, permissions, probe_s) is not False:
        return ""
    return f"{entry.source} is read-only on the server, and was published for writing"
