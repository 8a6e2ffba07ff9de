"""virtiofsd, which serves the shared directory to the guest."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from kangaroo.errors import FailedPrecondition
from kangaroo.vmm.child import Child, private_listener
from kangaroo.vmm.confinement import Confinement

# How many requests of a guest may wait at once, for a server that does not answer or a slow disk,
# before the others do. By default it serves one at a time, of whatever file system.
_THREADS = 32


async def start(
    binary: Path,
    *,
    shared: Path,
    xattr: bool,
    socket_path: Path,
    log: Path,
    confinement: Confinement,
) -> tuple[Child, socket.socket]:
    """Start virtiofsd; returns it and a connected vhost-user socket for QEMU to inherit.

    It gets a socket that listens already, so the connection is there before it has started, and
    nothing waits or polls. It ends by itself when QEMU closes its end. It runs as root, for it
    serves files of any owner, but in its own mount, pid and network namespaces with the shared
    directory as its root.

    Raises FailedPrecondition when the program is not there, OSError.
    """
    if not os.access(binary, os.X_OK):
        raise FailedPrecondition(f"{binary} is not there or cannot be executed")
    with private_listener(socket_path) as listener:
        child = await Child.spawn(
            "virtiofsd",
            arguments(binary, shared, listener.fileno(), xattr=xattr),
            confinement=confinement,
            log_path=log,
            descriptors=(listener.fileno(), *confinement.descriptors),
        )
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        await asyncio.to_thread(connection.connect, str(socket_path))
    return child, connection


def arguments(binary: Path, shared: Path, listener_fd: int, *, xattr: bool) -> tuple[str, ...]:
    """The command line. Pure.

    The tree itself is read-only for it, in a mount namespace of its own: who is root in a guest
    finds all of it, and a link that he made there the runtime would follow on the node. What is
    mounted in the tree is as its own mounts say.

    Submounts are announced because rootfs and volumes are different file systems below one export:
    without it two files could share an inode number and device in the guest. `cache=auto`
    revalidates after a second, which is how a changed Secret or ConfigMap is seen.

    With `xattr` capabilities of files are in force, and the guest's kernel asks for them before
    each write. It would not with `--killpriv-v2`, under which virtiofsd has to take set-user-id
    bits away itself, and on NFS does not.
    """
    return (
        *("unshare", "--mount", "--propagation", "slave", "--"),
        *("/bin/sh", "-ec", 'mount -o remount,bind,ro "$1"; shift; exec "$@"', "read-only"),
        str(shared),
        str(binary),
        f"--fd={listener_fd}",
        f"--shared-dir={shared}",
        "--sandbox=namespace",
        "--announce-submounts",
        *(("--xattr",) if xattr else ()),
        f"--thread-pool-size={_THREADS}",
        "--cache=auto",
        "--inode-file-handles=never",
        "--log-level=warn",
    )
