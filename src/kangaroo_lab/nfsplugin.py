"""csi-driver-nfs's own program on a node of the lab, for what compares or meets with it.

The lab does not build it: whoever has it (`/nfsplugin` in the project's image, static, for x86-64)
says where it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kangaroo_lab.node import Node

PROJECT = "csi-driver-nfs"
DRIVER = "nfs.csi.k8s.io"

# What its own image has. With systemd-run it would mount through a service of systemd's.
_PROGRAMS = ("mount", "umount")


@contextlib.contextmanager
def serving(node: Node, program: Path, unit: str, socket: str) -> Iterator[None]:
    """The driver as the service `unit` of the node; a client waits for its socket. Raises
    CommandFailed.
    """
    work = f"/var/tmp/{unit}"  # /run takes no programs
    node.exec(["mkdir", "--parents", f"{work}/bin"])
    try:
        node.copy_to(program, f"{work}/nfsplugin")
        links = "; ".join(f"ln -sf $(command -v {name}) {work}/bin" for name in _PROGRAMS)
        node.exec(["sh", "-c", f"chmod +x {work}/nfsplugin; {links}"])
        service = ["systemd-run", "--quiet", "--collect", f"--unit={unit}"]
        flags = [f"--endpoint=unix://{socket}", f"--nodeid={node.name}"]
        argv = [f"{work}/nfsplugin", *flags, f"--working-mount-dir={work}"]
        node.exec([*service, f"--setenv=PATH={work}/bin", *argv])
        yield
    finally:
        node.exec(["systemctl", "stop", unit], check=False)
        node.exec(["rm", "--recursive", "--force", "--one-file-system", work, socket])
