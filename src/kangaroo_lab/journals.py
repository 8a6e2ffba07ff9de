"""What only a node has, kept when something failed: its journal, and the files of its sandboxes.

Both go with the node: the files lie in its memory, and its disk is thrown away.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kangaroo.errors import CommandFailed
from kangaroo_lab.node import Node

TIMEOUT_S = 60
_log = logging.getLogger(__name__)

_JOURNAL = ("journalctl", "--boot", "--no-pager", "--lines=4000", "--output=short-monotonic")
# Consoles, logs and state; no sockets. Nothing of `shared` is looked at: it may be of a NAS that
# does not answer. tar's status 1 is a file that changed meanwhile.
_SANDBOXES = """
cd /run/kangaroo/sandboxes || exit 0
find . -mindepth 2 -maxdepth 2 -type f -print0 |
    tar --null --files-from=- --ignore-failed-read -cf -
[ $? -le 1 ]
"""


def save(node: Node, directory: Path, name: str) -> None:
    """Write the node's journal (kernel, kubelet, containerd, driver, shims) and the files of its
    sandboxes into `directory`, as `<name>-<node>.log` and `.tar`. Never raises: what cannot be had
    is logged. TIMEOUT_S is the deadline of each.
    """
    stem = f"{name.replace('/', '-')}-{node.name}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _keep(node.ssh(*_JOURNAL), directory / f"{stem}.log")
        _keep(node.ssh("sh", "-c", _SANDBOXES), directory / f"{stem}.tar")
    except (CommandFailed, OSError, subprocess.TimeoutExpired) as error:
        _log.warning("not all was kept node=%s directory=%s: %s", node.name, directory, error)


def _keep(command: Sequence[str], target: Path) -> None:
    """What the command writes, as far as it comes."""
    with target.open("wb") as output:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_S,
            check=False,
        )
    if done.returncode != 0:
        raise CommandFailed(tuple(command), done.returncode, done.stderr.decode(errors="replace"))
