"""What mount.nfs says, as an error number and a hint for people.

It has one exit status for all failures of a mount, so its text is what is left. The texts
are those of nfs-utils, utils/mount/error.c and stropts.c; children run with LC_ALL=C.
"""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

from kangaroo.errors import CommandFailed, MountFailed
from kangaroo.nas.volume import NasVolume


class _Cause(NamedTuple):
    text: re.Pattern[str]
    errno: int
    hint: str


def _cause(text: str, number: int, hint: str) -> _Cause:
    return _Cause(re.compile(text, re.IGNORECASE), number, hint)


# The first that matches is taken: the special ones stand before the general.
_CAUSES = (
    _cause(
        "access denied by server",
        errno.EACCES,
        "the export does not exist or does not admit this node's address",
    ),
    _cause(
        "failed to resolve|name or service not known|temporary failure in name resolution"
        "|resource temporarily unavailable",  # so mount.nfs calls a resolver that does not answer
        errno.EHOSTUNREACH,
        "the node cannot resolve the server's name",
    ),
    _cause(
        "reason given by server: no such file|no such file or directory",
        errno.ENOENT,
        "the server has no such export or directory",
    ),
    _cause(
        "statd is not running",
        errno.EPROTONOSUPPORT,
        "add 'nolock' to the options, or run rpc.statd on the node",
    ),
    _cause(
        "not supported",
        errno.EPROTONOSUPPORT,
        "the server's NFS service is not running, or does not offer this version or transport",
    ),
    _cause(
        "incorrect mount option|invalid argument",
        errno.EINVAL,
        "the node's kernel rejects an option; its log may name which",
    ),
    _cause(
        "unknown filesystem type|bad option|no such device",
        errno.ENODEV,
        "install nfs-common on the node, whose kernel must have NFS",
    ),
    _cause("file name too long", errno.ENAMETOOLONG, "the server takes no name as long as this"),
    _cause("too many levels of symbolic links", errno.ELOOP, "links of the path lead in a circle"),
    _cause("stale file handle", errno.ESTALE, "the server has just lost the directory"),
    _cause("is not a directory|not a directory", errno.ENOTDIR, "the path is not a directory"),
    _cause("connection refused", errno.ECONNREFUSED, "the server is up, its NFS service is not"),
    _cause("connection reset", errno.ECONNRESET, "the server closed the connection"),
    _cause("no route to host", errno.EHOSTUNREACH, "check the address and the node's routes"),
    _cause("network is unreachable", errno.ENETUNREACH, "check the node's routes"),
    _cause("timed out|not responding", errno.ETIMEDOUT, "the server does not answer"),
    _cause("mount system call failed", errno.EIO, "the server's NFS services do not answer"),
    _cause("operation not permitted|permission denied", errno.EPERM, "the server or node refuses"),
)


def from_command(volume: NasVolume, failure: CommandFailed) -> MountFailed:
    """The MountFailed behind a mount command that failed: what, with which options, why, and what
    to do.
    """
    text = " ".join(failure.output.split())
    reason = text or f"mount exited with {failure.status} and said nothing"
    for cause in _CAUSES:
        if cause.text.search(text):
            return MountFailed(
                volume.source, volume.option_string, reason, errno=cause.errno, hint=cause.hint
            )
    return MountFailed(volume.source, volume.option_string, reason)
