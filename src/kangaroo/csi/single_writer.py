"""Volumes that one workload has for itself (SINGLE_NODE_SINGLE_WRITER), by their one target.

A symbolic link for each, named after the volume's id and pointing at its target: made in one step,
and still there when the driver restarts. A link whose target is no mount point claims nothing.
"""

from __future__ import annotations

from pathlib import Path

from kangaroo.csi.volume_id import token_of
from kangaroo.errors import FailedPrecondition
from kangaroo.linux import mountinfo


def claim(directory: Path, volume_id: str, target: str) -> None:
    """Give the volume to `target`; the caller holds the volume's lock until it is mounted there.

    Raises FailedPrecondition when it is mounted on another target.
    """
    link = directory / token_of(volume_id)
    try:
        holder = str(link.readlink())
    except FileNotFoundError:
        directory.mkdir(parents=True, exist_ok=True)
    else:
        if holder == target:
            return
        if mountinfo.find(holder) is not None:
            raise FailedPrecondition(
                f"it is published on {holder}, and its access mode allows one target only",
                hint="the pod that has it must end first",
            )
        link.unlink()
    link.symlink_to(target)


def release(directory: Path, volume_id: str, target: str) -> None:
    """Take the volume from `target`, if it has it."""
    link = directory / token_of(volume_id)
    try:
        if str(link.readlink()) == target:
            link.unlink()
    except FileNotFoundError:
        return
