"""Another CSI driver on a node, as the runtime and kubelet see it: csi-driver-nfs's own program
where KANGAROO_NFSPLUGIN says where that is, else this project's under another name. A process of
its own, with its own socket and registration.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kangaroo_lab import nfsplugin

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.node import Node

_UNIT = "other-csi"
_CONFIG = f"/run/{_UNIT}.toml"
_WORK = f"/run/{_UNIT}"
_PLUGINS = "/var/lib/kubelet/plugins"
_REGISTERED_S = 60

# What its registrar sidecar does.
_REGISTRAR = """
import asyncio, sys
from kangaroo.csi.config import Config
from kangaroo.csi.server import registering

async def main(name, endpoint):
    async with registering(Config(driver_name=name, endpoint=endpoint)):
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@dataclass(frozen=True)
class Other:
    """A driver's name, and what its volumes call the path of the server."""

    name: str
    path: str


_OURS = Other("other.csi.example.com", "path")
_NFSPLUGIN = Other(nfsplugin.DRIVER, "share")


@contextlib.contextmanager
def running(lab: Lab) -> Iterator[Other]:
    """The driver on node1 for the block, which begins when kubelet has it."""
    node = lab.nodes["node1"]
    program = os.environ.get("KANGAROO_NFSPLUGIN")
    other = _NFSPLUGIN if program else _OURS
    about = {"attachRequired": False, "podInfoOnMount": True, "fsGroupPolicy": "None"}
    kind = {"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver"}
    lab.apply(json.dumps({**kind, "metadata": {"name": other.name}, "spec": about}))
    with contextlib.ExitStack() as stack:
        stack.callback(lab.kubectl, "delete", "csidriver", other.name)
        left = (f"{_PLUGINS}/{other.name}", f"{_PLUGINS}_registry/{other.name}-reg.sock")
        stack.callback(node.exec, ["rm", "-rf", *left])
        served = _nfsplugin(node, Path(program)) if program else _ours(node)
        stack.enter_context(served)
        registered = f'jsonpath={{.spec.drivers[?(@.name=="{other.name}")].name}}={other.name}'
        waiting = ["wait", f"--for={registered}", f"--timeout={_REGISTERED_S}s", "csinode/node1"]
        lab.kubectl(*waiting, timeout_s=_REGISTERED_S + 30)
        yield other


@contextlib.contextmanager
def _ours(node: Node) -> Iterator[None]:
    configuration = f'driver_name = "{_OURS.name}"\nwork_dir = "{_WORK}"\n'
    node.exec(["sh", "-c", f"cat > {_CONFIG}"], input=configuration)
    program = ["/opt/kangaroo/bin/kangaroo-csi", "--config", _CONFIG]
    try:
        with _service(node, _UNIT, "--property=Type=notify", *program):
            yield
    finally:
        node.exec(["rm", "-rf", _CONFIG, _WORK])


@contextlib.contextmanager
def _nfsplugin(node: Node, program: Path) -> Iterator[None]:
    socket = f"{_PLUGINS}/{_NFSPLUGIN.name}/csi.sock"
    registrar = ["python3", "-c", _REGISTRAR, _NFSPLUGIN.name, socket]
    node.exec(["mkdir", "-p", f"{_PLUGINS}/{_NFSPLUGIN.name}"])
    with (
        nfsplugin.serving(node, program, _UNIT, socket),
        _service(node, f"{_UNIT}-registrar", "--setenv=PYTHONPATH=/opt/kangaroo/lib", *registrar),
    ):
        yield


@contextlib.contextmanager
def _service(node: Node, unit: str, *command: str) -> Iterator[None]:
    how = ["--quiet", "--collect", f"--unit={unit}", "--property=KillMode=process"]
    node.exec(["systemd-run", *how, *command], timeout_s=90)
    try:
        yield
    finally:
        node.exec(["systemctl", "stop", unit])
