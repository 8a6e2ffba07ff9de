"""The CSI driver of a node of the lab, called as kubelet and the sidecars call it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kangaroo.linux import mountinfo
from kangaroo_lab import csi_calls

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.node import Node

UNIT = "kangaroo-csi"
# Whether what is done a few times is done hundreds of times: `make soak`.
SOAK = bool(os.environ.get("KANGAROO_SOAK"))
KUBELET_S = csi_calls.KUBELET_S
Answer = csi_calls.Answer


def calling(method: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """A call with kubelet's deadline, as `Driver.calls` takes it."""
    return {"method": method, "request": request, "timeout_s": KUBELET_S}


@dataclass(frozen=True)
class Driver:
    """The driver of one node, a client there, and a directory of the node for targets."""

    lab: Lab
    node: Node
    client: csi_calls.Client
    root: str

    def rounds(self, *rounds: Sequence[Mapping[str, Any]]) -> list[list[Answer]]:
        """Make the calls of a round at once, each from its own thread, and round after round."""
        return self.client.run(rounds)

    def calls(self, *calls: Mapping[str, Any]) -> list[Answer]:
        return self.rounds(calls)[0]

    def target(self, name: str) -> str:
        return f"{self.root}/{name}"

    def publishing(
        self,
        name: str,
        *,
        read_only: bool = False,
        flags: Sequence[str] = (),
        timeout_s: float = KUBELET_S,
        **attributes: str,
    ) -> dict[str, Any]:
        asked = {"server": self.lab.nas.address, "path": "/csi"} | attributes
        request = {
            "volume_id": name,
            "target_path": self.target(name),
            "readonly": read_only,
            "volume_context": asked,
            "volume_capability": {
                "mount": {"mount_flags": list(flags)},
                "access_mode": {"mode": "MULTI_NODE_MULTI_WRITER"},
            },
        }
        return {"method": "NodePublishVolume", "request": request, "timeout_s": timeout_s}

    def unpublishing(self, name: str) -> dict[str, Any]:
        request = {"volume_id": name, "target_path": self.target(name)}
        return calling("NodeUnpublishVolume", request)

    def publish(self, name: str, **rest: Any) -> Answer:
        (answer,) = self.calls(self.publishing(name, **rest))
        return answer

    def unpublish(self, name: str) -> Answer:
        (answer,) = self.calls(self.unpublishing(name))
        return answer

    def mounted(self, name: str) -> mountinfo.MountEntry | None:
        table = self.node.exec(["cat", "/proc/1/mountinfo"]).stdout
        return mountinfo.at(self.target(name), mountinfo.parse(table))

    def left(self) -> list[str]:
        """Targets that are there, and mounts of them."""
        table = mountinfo.parse(self.node.exec(["cat", "/proc/1/mountinfo"]).stdout)
        mounts = [e.mount_point for e in table if e.mount_point.startswith(self.root)]
        return self.node.exec(["ls", "-A", self.root]).stdout.split() + mounts


@contextlib.contextmanager
def driving(lab: Lab) -> Iterator[Driver]:
    """The driver of node1, and at the end a proof that nothing was left on the node."""
    node = lab.nodes["node1"]
    with csi_calls.client(node) as client:
        driver = Driver(lab, node, client, f"/run/kangaroo-csi-test-{secrets.token_hex(2)}")
        node.exec(["mkdir", driver.root])
        yield driver
        assert driver.left() == []
        node.exec(["rmdir", driver.root])
