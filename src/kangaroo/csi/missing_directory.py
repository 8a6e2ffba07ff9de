"""The directory of a volume, made when the server has it not: beneath the nearest directory above
it that the server lets this node mount.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from dataclasses import replace
from pathlib import PurePosixPath

from kangaroo.csi.share import Worker
from kangaroo.csi.share_records import PRIVATE_DIRECTORY
from kangaroo.errors import FailedPrecondition, MountFailed
from kangaroo.nas.volume import NasVolume

_log = logging.getLogger(__name__)

MODE = 0o777  # as a StorageClass's mountPermissions, when it says nothing
# Over version 3 some servers deny what they do not have (mountd's MNT3ERR_ACCES).
_MISSING = {"3": (errno.ENOENT, errno.EACCES)}
_MISSING_V4 = (errno.ENOENT,)


def may_be_missing(volume: NasVolume, failure: MountFailed) -> bool:
    """Whether a mount failed as it does when the server has no such directory."""
    return volume.path != "/" and failure.errno in _MISSING.get(volume.version, _MISSING_V4)


async def make(worker: Worker, volume: NasVolume, failure: MountFailed, timeout_s: float) -> None:
    """Make the directory of `volume`, whose mount failed with `failure`. Finding it is fine.

    Raises `failure` when no directory above it can be mounted either, or when the server does not
    let it be made, saying so; DeadlineExceeded, Unavailable.
    """
    path = PurePosixPath(volume.path)
    if PRIVATE_DIRECTORY in path.parts:
        raise failure
    deadline = asyncio.get_running_loop().time() + timeout_s
    for above in path.parents:
        share = replace(volume, path=str(above))
        remaining = replace(worker, timeout_s=deadline - asyncio.get_running_loop().time())
        try:
            made = await remaining.ensure_directory(share, str(path.relative_to(above)), MODE)
        except MountFailed as error:
            if may_be_missing(share, error):
                continue
            raise failure from error
        except FailedPrecondition as error:
            reason = f"{failure.reason}; the directory is not made: {error}"
            raise MountFailed(
                failure.source, failure.options, reason, errno=failure.errno, hint=failure.hint
            ) from error
        if made:
            _log.info("directory made source=%s mode=%04o", volume.source, MODE)
        return
    raise failure
