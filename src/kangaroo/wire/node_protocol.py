"""What a shim tells other programs of the node, beside the Task API on the same socket (ttrpc).

`VolumeStats` asks for a volume that the shim's guest has mounted: {"path": where its placeholder
stands on the node, "timeout_s"}. The answer is the agent's VolumeStats (docs/agent-protocol.md).
"""

from __future__ import annotations

SANDBOXES_DIRECTORY = "/run/kangaroo/sandboxes"
SOCKET_NAME = "shim.sock"
STATE_NAME = "state.json"

SERVICE = "kangaroo.node.v1.Sandbox"
VOLUME_STATS = "VolumeStats"
