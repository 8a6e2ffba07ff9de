"""Changes to the NAS made as a client makes them: what is written behind its server's back, the
server's cache does not know of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kangaroo_lab.node import Node

_SCRIPT = """
directory=$(mktemp -d)
mount -t nfs -o vers=3,nolock "$1" "$directory"
cd "$directory"
eval "$2"
cd /
umount "$directory"
rmdir "$directory"
"""


def run_on(node: Node, source: str, script: str) -> None:
    """Run a shell script in the root of `source` (server:/path), mounted on the node for it."""
    node.exec(["sh", "-ec", _SCRIPT, "nas-client", source, script])
