"""Publishing a NAS volume on a path of the node, and taking it away. Knows no gRPC.

What is mounted on a path is read from the mount table, and only where something is: mkdir(2) and
rmdir(2) tell by themselves, and look at what lies under a mount, never at what is mounted. Nothing
here calls stat on a path that may be a dead mount; what must touch one is a child process with a
deadline.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from kangaroo.csi import missing_directory, mount_errors, mount_helper
from kangaroo.csi.condition import STALE
from kangaroo.csi.share import Worker
from kangaroo.errors import (
    AlreadyExists,
    CommandFailed,
    DeadlineExceeded,
    FailedPrecondition,
    MountFailed,
    Unavailable,
)
from kangaroo.linux import mountinfo, process
from kangaroo.linux.mount import UMOUNT_COMMAND
from kangaroo.nas.guest_mount import is_nas
from kangaroo.nas.placeholder import is_placeholder
from kangaroo.nas.volume import NasVolume

_log = logging.getLogger(__name__)

# Mounts on top of each other at one target that an unpublish takes away.
_STACK_LIMIT = 16
_TARGET_MODE = 0o750
# Force and laziness work at once or not at all. With them a whole escalation stays below 30 s.
_FORCED_S = 3.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines in seconds, each of one child process; `unmount_s` of an umount without force."""

    mount_s: float
    mode_s: float
    unmount_s: float
    probe_s: float


def canonical(target: str) -> str:
    """`target` with the symlinks of its parent resolved, as the mount table shows it.

    The last component is the mount point itself and is not touched.
    """
    path = Path(os.path.normpath(target))
    return str(path.parent.resolve() / path.name)


async def publish(
    volume: NasVolume, target: str, timeouts: Timeouts, creator: Worker | None = None
) -> None:
    """Mount `volume` on `target`, making the directory. Repeating it is fine.

    A directory that the server does not have is made by `creator`, if there is one and the volume
    is not read-only. A target that the runtime took over (a placeholder stands there) counts as
    published. A repeat sets the mode where it is not set: the first may have been killed before.
    On failure and on cancellation the target is left as it was found. Raises
    AlreadyExists, FailedPrecondition, MountFailed, DeadlineExceeded, Unavailable.
    """
    made = _make_directory(target)
    if not made:
        if await _already_published(volume, target, timeouts):
            return
        _check_directory(target)
    try:
        await _mount_or_make(volume, target, timeouts, creator)
        if volume.mode is not None and not volume.read_only:
            await _set_mode(volume, target, timeouts)
    except BaseException:
        await _withdraw(target, timeouts, made=made)
        raise


async def unpublish(target: str, timeouts: Timeouts) -> None:
    """Take every mount at `target` away, then the directory, which must be empty. Repeating it is
    fine.

    Raises FailedPrecondition when the target holds files that are not the NAS's, or cannot be
    unmounted; DeadlineExceeded when umount gets no answer, whatever is tried.
    """
    for _ in range(_STACK_LIMIT + 1):
        if _remove_directory(target):
            return
        await _unmount_topmost(target, timeouts)
    raise _mounted_again(target)


async def _already_published(volume: NasVolume, target: str, timeouts: Timeouts) -> bool:
    """Whether the volume stands there. A stale mount of it is taken away; anything else is an
    error.
    """
    entry = mountinfo.find(target)
    if entry is None:
        return False
    if is_placeholder(entry):
        return True
    if not is_nas(entry) or entry.source != volume.source:
        raise AlreadyExists(
            f"{target} is a mount of {entry.source} ({entry.fstype}), not of {volume.source}"
        )
    if ("ro" in entry.options or "ro" in entry.super_options) != volume.read_only:
        how = "writable" if volume.read_only else "read-only"
        raise AlreadyExists(f"{target} is a {how} mount of {volume.source} already")
    try:
        mode = await process.run(("stat", "--format=%a", target), timeout_s=timeouts.probe_s)
    except DeadlineExceeded as error:
        raise Unavailable(f"{volume.source} on {target} does not answer") from error
    except CommandFailed as error:
        if STALE not in error.output:  # a pod may use it, and what the server says may pass
            raise Unavailable(f"{volume.source} on {target}: {error.output.strip()}") from error
        _log.warning("stale mount target=%s source=%s: %s", target, volume.source, error)
        await _unmount(target, timeouts)
        return False
    if volume.mode is not None and not volume.read_only and int(mode, 8) != int(volume.mode, 8):
        await _set_mode(volume, target, timeouts)
    return True


def _make_directory(target: str) -> bool:
    """Make the mount point; whether it was made. If it was, nothing is mounted there."""
    try:
        Path(target).mkdir(_TARGET_MODE)
    except FileExistsError:
        return False
    except OSError as error:
        raise FailedPrecondition(f"{target} cannot be made: {error.strerror}") from error
    return True


def _check_directory(target: str) -> None:
    """Raises FailedPrecondition for a file. Not for a mount point: lstat may hang there."""
    if not stat.S_ISDIR(Path(target).lstat().st_mode):
        raise FailedPrecondition(f"{target} is not a directory")


def _remove_directory(target: str) -> bool:
    """Remove what was the mount point; False when something is mounted there."""
    try:
        Path(target).rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        reason = f"{target} is not removed: {error.strerror}"
        raise FailedPrecondition(reason, hint="look at what stands there") from error
    return True


async def _mount_or_make(
    volume: NasVolume, target: str, timeouts: Timeouts, creator: Worker | None
) -> None:
    """Mount, all that it takes within one mount's deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeouts.mount_s
    try:
        await _mount(volume, target, timeouts.mount_s)
    except MountFailed as error:
        if (
            creator is None
            or volume.read_only
            or not missing_directory.may_be_missing(volume, error)
        ):
            raise
        await missing_directory.make(creator, volume, error, deadline - loop.time())
        await _mount(volume, target, deadline - loop.time())


async def _mount(volume: NasVolume, target: str, timeout_s: float) -> None:
    try:
        await process.run(mount_helper.command(volume, target), timeout_s=timeout_s)
    except CommandFailed as error:
        raise mount_errors.from_command(volume, error) from error
    except DeadlineExceeded as error:
        raise DeadlineExceeded(
            f"mount {volume.source} with options {volume.option_string!r}: "
            f"not done within {timeout_s:g} s, mount was killed",
            hint=error.hint or "the server does not answer; check its address, port and firewall",
        ) from error


async def _set_mode(volume: NasVolume, target: str, timeouts: Timeouts) -> None:
    """Of the root last: it tells a repeat whether all of it was done."""
    chmod = ("chmod", str(volume.mode))
    inside = ("find", target, "-mindepth", "1", "!", "-type", "l", "-exec", *chmod, "{}", "+")
    commands = ([inside] if volume.mode_recursive else []) + [(*chmod, target)]
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeouts.mode_s
    try:
        for command in commands:
            await process.run(command, timeout_s=deadline - loop.time())
    except CommandFailed as error:
        raise FailedPrecondition(
            f"mode {volume.mode} of {volume.source} cannot be set: {error.output.strip()}",
            hint="an export with root_squash does not let the node change it",
        ) from error
    except DeadlineExceeded as error:
        raise DeadlineExceeded(
            f"mode {volume.mode} of {volume.source}: not set within {timeouts.mode_s:g} s",
            hint="use modeType 'non-recursive', or set the modes on the NAS",
        ) from error


async def _withdraw(target: str, timeouts: Timeouts, *, made: bool) -> None:
    """After a failed publish: unmount what may be there, remove the directory if we made it."""
    try:
        await _unmount(target, timeouts)
        if made:
            Path(target).rmdir()
    except (FailedPrecondition, DeadlineExceeded, OSError) as error:
        _log.warning("target left behind target=%s: %s", target, error)


async def _unmount(target: str, timeouts: Timeouts) -> None:
    """Take every mount at `target` away, the topmost first."""
    for _ in range(_STACK_LIMIT):
        if mountinfo.find(target) is None:
            return
        await _unmount_topmost(target, timeouts)
    raise _mounted_again(target)


def _mounted_again(target: str) -> FailedPrecondition:
    return FailedPrecondition(f"{target}: more than {_STACK_LIMIT} mounts, or it is mounted again")


async def _unmount_topmost(target: str, timeouts: Timeouts) -> None:
    """umount, then by force, then lazily; without umount.nfs, which would talk to the server first.

    Force aborts what the server has not answered, so it is used only when umount got no answer. A
    mount that is merely busy is detached at once, and its users' writes still reach the server.
    """
    try:
        await process.run((*UMOUNT_COMMAND, target), timeout_s=timeouts.unmount_s)
        return
    except (CommandFailed, DeadlineExceeded) as error:
        _log.warning("umount failed target=%s: %s", target, error)
        answered = isinstance(error, CommandFailed)
    entry = mountinfo.find(target)
    if entry is None:
        return  # it is gone; what umount still waits for is its server
    steps = (("--lazy",),) if answered else (("--force",), ("--force", "--lazy"))
    for step in steps:
        try:
            await process.run((*UMOUNT_COMMAND, *step, target), timeout_s=_FORCED_S)
        except (CommandFailed, DeadlineExceeded) as error:
            failure = error
            _log.warning("umount failed target=%s options=%s: %s", target, step, error)
        else:
            return
    after = mountinfo.find(target)
    if after is not None and after.mount_id == entry.mount_id:
        kind = type(failure) if isinstance(failure, DeadlineExceeded) else FailedPrecondition
        raise kind(f"{target} ({entry.source}) cannot be unmounted: {failure}")
