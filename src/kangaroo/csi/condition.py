"""Whether a published volume can be used: what its server answers, and whether it takes writes.

Everything that touches the volume is a child process with a deadline, so a dead server costs a call
its deadline and nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

from kangaroo.errors import CommandFailed, DeadlineExceeded, Unavailable
from kangaroo.linux import process
from kangaroo.linux.mountinfo import MountEntry
from kangaroo.nas.guest_mount import is_nas

_NOBODY = 65534
_WRITE_AND_ENTER = 0o3
_NOT_WRITABLE = 1  # exit status of test(1)
STALE = "Stale file handle"  # ESTALE, as programs say it in the C locale


class Unusable(Unavailable):
    """The volume is published, and cannot be used."""


class Identity(NamedTuple):
    """Who asks the server."""

    uid: int
    gid: int


async def ask(entry: MountEntry, timeout_s: float, *command: str) -> str:
    """What a command says about the volume. Raises Unusable when its server says no, or nothing."""
    try:
        return await process.run(command, timeout_s=timeout_s)
    except DeadlineExceeded as error:
        raise Unusable(f"{entry.source} does not answer within {timeout_s:g} s") from error
    except CommandFailed as error:
        stale = "the server no longer has the directory; a new publish mounts it again"
        hint = stale if STALE in error.output else None
        raise Unusable(f"{entry.source}: {error.output.strip()}", hint=hint) from error


async def takes_writes(
    entry: MountEntry, owner: Identity, mode: int, timeout_s: float
) -> bool | None:
    """Whether the server lets somebody write to the volume's root who may by its owner and mode;
    None when that cannot be found out. Nothing is written. Raises Unusable.

    access(2) of the NFS client asks the server (ACCESS, RFC 1813 3.3.4 and RFC 8881 18.1), at
    least once in the attribute cache's time. Root is not asked for, because exports squash it; with
    Kerberos nobody else can be. What is mounted read-only was published so.
    """
    writer = may_write(mode, owner)
    if writer is None or not is_nas(entry) or "ro" in entry.options + entry.super_options:
        return None
    if "sec=sys" not in entry.super_options:
        return None
    # From inside, entered as root: others may not pass through kubelet's directories.
    inside = ("env", f"--chdir={entry.mount_point}")
    identity = (f"--reuid={writer.uid}", f"--regid={writer.gid}", "--clear-groups")
    command = (*inside, "setpriv", *identity, "test", "-w", ".")
    try:
        await process.run(command, timeout_s=timeout_s)
    except DeadlineExceeded as error:
        raise Unusable(f"{entry.source} does not answer within {timeout_s:g} s") from error
    except CommandFailed as error:
        return False if error.status == _NOT_WRITABLE and not error.output else None
    return True


def may_write(mode: int, owner: Identity) -> Identity | None:
    """Somebody but root who may write to a directory of this mode and owner, None without any."""
    if mode & _WRITE_AND_ENTER == _WRITE_AND_ENTER:
        return Identity(_NOBODY, _NOBODY)
    if owner.uid and mode >> 6 & _WRITE_AND_ENTER == _WRITE_AND_ENTER:
        return owner
    if owner.gid and mode >> 3 & _WRITE_AND_ENTER == _WRITE_AND_ENTER:
        return Identity(_NOBODY, owner.gid)
    return None
