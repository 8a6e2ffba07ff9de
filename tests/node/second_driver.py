"""Another CSI driver on a node, as the runtime and kubelet see it: this project's program under
another name, a process of its own, with its own socket and registration.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

NAME = "other.csi.example.com"
_UNIT = "other-csi"
_CONFIG = f"/run/{_UNIT}.toml"
_WORK = f"/run/{_UNIT}"
_REGISTERED_S = 60

_OBJECT = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "CSIDriver",
    "metadata": {"name": NAME},
    "spec": {"attachRequired": False, "podInfoOnMount": True, "fsGroupPolicy": "None"},
}


@contextlib.contextmanager
def running(lab: Lab) -> Iterator[str]:
    """The driver on node1 for the block; its name, once kubelet has it."""
    node = lab.nodes["node1"]
    configuration = f'driver_name = "{NAME}"\nwork_dir = "{_WORK}"\n'
    node.exec(["sh", "-c", f"cat > {_CONFIG}"], input=configuration)
    program = ["/opt/kangaroo/bin/kangaroo-csi", "--config", _CONFIG]
    how = [
        "--quiet",
        "--collect",
        f"--unit={_UNIT}",
        "--property=Type=notify",
        "--property=KillMode=process",
    ]
    with contextlib.ExitStack() as stack:
        stack.callback(node.exec, ["rm", "-rf", _CONFIG, _WORK, f"/var/lib/kubelet/plugins/{NAME}"])
        lab.apply(json.dumps(_OBJECT))
        stack.callback(lab.kubectl, "delete", "csidriver", NAME)
        node.exec(["systemd-run", *how, *program], timeout_s=90)
        stack.callback(node.exec, ["systemctl", "stop", _UNIT])
        registered = f'jsonpath={{.spec.drivers[?(@.name=="{NAME}")].name}}={NAME}'
        waiting = ["wait", f"--for={registered}", f"--timeout={_REGISTERED_S}s", "csinode/node1"]
        lab.kubectl(*waiting, timeout_s=_REGISTERED_S + 30)
        yield NAME
