"""The lab: a control plane, a NAS and nodes on this machine, as one thing to bring up and down."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kangaroo.errors import DeadlineExceeded, FailedPrecondition, NotFound
from kangaroo.linux.process import ended
from kangaroo_lab import (
    accelerator,
    artefacts,
    cache,
    deployment,
    journals,
    leftovers,
    payload,
    tree,
)
from kangaroo_lab import network as net
from kangaroo_lab.controlplane import ControlPlane
from kangaroo_lab.daemon import Daemon, stop
from kangaroo_lab.nas import Nas
from kangaroo_lab.node import Completed, Node, completed
from kangaroo_lab.pki import Pki
from kangaroo_lab.progress import Steps
from kangaroo_lab.ssh import Keys
from kangaroo_lab.state import (
    DEFAULT_DIRECTORY,
    DEFAULT_MEMORY_MIB,
    Shape,
    Store,
    default_directory,
    locked,
)

NODE_READY_TIMEOUT_S = 300
_SHUTDOWN_TIMEOUT_S = 300
_MANIFESTS = Path("deploy/kubernetes")
_CLEAN = "what an ended lab left"
_READY = "nodes ready"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Lab:
    """A lab in a directory. What it does is on disk, so another process can open it later.

    `began` is whether `up` of this object began to bring the lab up, and did not find it.
    """

    directory: Path
    store: Store
    began: bool = False

    @classmethod
    def open(cls, directory: Path | None = None) -> Lab:
        """The lab in `directory` (default: `$KANGAROO_LAB` or /var/lib/kangaroo-lab), up or not."""
        directory = (directory or default_directory()).absolute()
        return cls(directory, Store.load(directory))

    @property
    def logs(self) -> Path:
        """Logs and serial consoles of all parts."""
        return self.directory / "logs"

    @property
    def shape(self) -> Shape:
        """What the lab is made of. Raises NotFound when it is down."""
        if self.store.shape is None:
            raise NotFound(f"{self.directory}: no lab is up", hint="kangaroo lab up")
        return self.store.shape

    @property
    def emulated(self) -> bool:
        """Whether the nodes' processors are emulated."""
        return self.shape.accelerator == accelerator.TCG

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The nodes by name: node1, node2, …"""
        nodes = (self._node(index) for index in range(1, self.shape.nodes + 1))
        return {node.name: node for node in nodes}

    @property
    def nas(self) -> Nas:
        shape = self.shape
        tools = Path(shape.host_tools)
        return Nas(shape.network, self.directory / "nas", self.logs, tools, self.store)

    @property
    def control_plane(self) -> ControlPlane:
        shape = self.shape
        return ControlPlane(
            network=shape.network,
            pki=Pki(self.directory / "pki"),
            directory=self.directory / "control-plane",
            logs=self.logs,
            binaries=Path(shape.kubernetes),
            host_tools=Path(shape.host_tools),
        )

    def parts(self) -> Mapping[str, Daemon | None]:
        """The processes that the lab should have, by name; None is one that was stopped, or never
        started. Raises NotFound when the lab is down.
        """
        expected = (*Nas.PARTS, *ControlPlane.PARTS, *self.nodes)
        return {**dict.fromkeys(expected), **self.store.daemons}

    def absent(self) -> list[str]:
        """The parts that do not live."""
        return [name for name, daemon in self.parts().items() if not (daemon and daemon.alive())]

    def running(self) -> bool:
        """Whether the lab was brought up to the end and all its parts live."""
        return self.store.complete and not self.absent()

    def usable(self) -> bool:
        """Whether it runs, but perhaps for its NAS, which `up` starts again."""
        return self.store.complete and {*self.absent()} <= {*Nas.PARTS}

    def ended(self) -> bool:
        """Whether a lab was here and no process of it lives: killed, or the machine restarted."""
        daemons = self.store.daemons.values()
        return self.store.shape is not None and not any(one.session() for one in daemons)

    def up(self, nodes: int = 1, *, memory_mib: int | None = None) -> bool:
        """Bring the lab up with `nodes` nodes or more; False when it was up already. Builds what is
        not in the cache.

        To a lab that is up with fewer, nodes are added; they have the memory of the others. A NAS
        that was stopped is started. What a lab that ended left behind is taken away first. Raises
        FailedPrecondition for a lab that is half up, or whose nodes have another memory than asked
        for, and what its parts raise. A lab that failed to come up is left as it is, for its logs;
        `down` cleans it.
        """
        _require_root()
        with self._locked():
            self._hold_artefacts()
            if self.usable():
                self._require_memory(memory_mib)
                self._start_nas()
                return self._grow(nodes)
            ended = self.ended()
            steps = self._progress([*([_CLEAN] if ended else []), *_steps(nodes)])
            if ended:
                with steps.step(_CLEAN):
                    self._down()
            self._require_nothing()
            self._up(nodes, memory_mib, steps)
            return True

    def remove_node(self) -> None:
        """Take the last node away, at once: its pods are lost. Raises FailedPrecondition when it is
        the only one, and what kubectl raises.
        """
        with self._locked():
            if self.shape.nodes == 1:
                raise FailedPrecondition(f"{self.directory}: a lab has one node at least")
            self._remove_node(self._node(self.shape.nodes))

    def build(self, wanted: Mapping[str, Callable[[], object]]) -> None:
        """Build of `wanted` what the cache has not, without touching what runs."""
        _require_root()
        self._hold_artefacts()
        _build(wanted, self._progress([*wanted]))

    def down(self) -> bool:
        """Take everything away but logs and the NAS's data; False when there was nothing.

        Works on a lab that is half up. Raises FailedPrecondition naming whatever did not go away.
        What others run on its files is left alone, and logged.
        """
        _require_root()
        with self._locked():
            # Without a shape nothing was made here: namespaces would be another directory's lab.
            if self.store.shape is None:
                return False
            self._down()
            return True

    def kubectl(
        self,
        *arguments: str,
        input: str | None = None,  # noqa: A002 - the name that subprocess uses
        timeout_s: float = 180,
        check: bool = True,
    ) -> Completed:
        """Run kubectl as the cluster's administrator. Raises CommandFailed, DeadlineExceeded."""
        command = self.control_plane.kubectl(*arguments)
        return completed(command, timeout_s=timeout_s, check=check, data=input)

    def apply(self, manifest: str) -> None:
        """Apply the text of a manifest."""
        self.kubectl("apply", "-f", "-", input=manifest)

    def deploy(self, *, guest: bool = True) -> None:
        """Put this checkout's code, configuration and guest image on the nodes, and its objects in
        the cluster; restart the driver, and what has another configuration now.

        Waits for another `deploy`. Sandboxes that run keep the image that they started with.
        """
        image = artefacts.guest_image() if guest else None
        with (
            locked(self.directory, "deploy.lock", wait=True),
            tempfile.TemporaryDirectory() as stage,
        ):
            self._apply_objects()
            tree.install_code(Path(stage), host_tools=Path(self.shape.host_tools))
            for node in self.nodes.values():
                payload.configure(Path(stage), self._identity(node), artefacts.PAUSE_IMAGES[0])
                deployment.deploy_tree(node, Path(stage))
                if image is not None:
                    deployment.deploy_guest(node, image)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep out whoever else would use the whole lab while the block runs: tests, demos and
        benches stop its parts and put code on its nodes. Single commands are not kept out. Raises
        FailedPrecondition when another has it.
        """
        _require_root()
        refusal = "tests, a demo or a bench of another process are using this lab"
        hint = "wait for its end, or use a lab of your own: KANGAROO_LAB=DIRECTORY"
        with locked(self.directory, "use.lock", refusal=refusal, hint=hint):
            yield

    def save_journals(self, name: str) -> Path:
        """Keep what only the nodes that run have of themselves and of their sandboxes, in files
        that begin with `name`; the directory that they are in. Never raises; `journals.TIMEOUT_S`
        is the deadline of each file.
        """
        directory = self.logs / "failures"
        for node in self.nodes.values() if self.store.shape else ():
            machine = self.store.daemon(node.name)
            if machine is not None and machine.alive():
                journals.save(node, directory, name)
        return directory

    @contextlib.contextmanager
    def powered_off(self, name: str, *, orderly: bool = False) -> Iterator[None]:
        """Cut a node's power while the block runs, then boot it from the disk that it had. With
        `orderly`, systemd takes it down first. Returns when its services run; kubelet reports a
        moment later. Raises what `up` raises.
        """
        with self._locked():
            node, shape = self.nodes[name], self.shape
            machine = self.store.daemon(name)
            if machine is None:
                raise NotFound(f"{name} has no machine", hint="kangaroo lab status")
            if orderly:
                node.exec(["systemctl", "poweroff", "--no-block"])
                if not ended(machine.pid, _SHUTDOWN_TIMEOUT_S):
                    raise DeadlineExceeded(
                        f"{name} is not down after {_SHUTDOWN_TIMEOUT_S:g} s",
                        hint=f"its console: {node.console}",
                    )
            node.keys.close(node.address)  # or the next command waits on a connection that is dead
            stop(machine, timeout_s=0)
            try:
                yield
            finally:
                self._start(node, shape)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone, with the state as it is now."""
        with locked(self.directory):
            self.store = Store.load(self.directory)
            yield

    def _down(self) -> None:
        network = self.shape.network
        for daemon in reversed(list(self.store.daemons.values())):
            # A node's disk is thrown away: nothing is lost with its power.
            stop(daemon, timeout_s=0 if daemon.name.startswith("node") else 5)
        leftovers.stop_strays(self.directory, network)
        for stranger in leftovers.strangers(self.directory):
            _log.warning("not of the lab, and left alone on its files: %s", stranger)
        net.remove(network)
        for name in ("nodes", "control-plane", "pki", "nas/run"):
            shutil.rmtree(self.directory / name, ignore_errors=True)
        remaining = leftovers.find(self.directory, network)
        if remaining:
            raise FailedPrecondition("the lab left behind: " + "; ".join(remaining))
        self.store = Store(self.directory)
        self.store.save()

    def _require_nothing(self) -> None:
        if self.store.shape is not None:
            state = f"without {', '.join(self.absent())}" if self.store.complete else "half up"
            raise FailedPrecondition(
                f"{self.directory}: a lab is there, but {state}",
                hint="kangaroo lab status; kangaroo lab down",
            )
        taken = [name for name in self._network().namespaces if net.exists(name)]
        if taken:
            raise FailedPrecondition(
                f"the network namespace {taken[0]} exists, but no lab is in {self.directory}",
                hint="a lab in another directory of this name has it: take that one down, or"
                f" `ip netns delete {taken[0]}`",
            )

    def _require_memory(self, memory_mib: int | None) -> None:
        if memory_mib not in (None, self.shape.memory_mib):
            raise FailedPrecondition(
                f"{self.directory}: the lab is up, with {self.shape.memory_mib} MiB a node",
                hint="kangaroo lab down",
            )

    def _hold_artefacts(self) -> None:
        """Have the cache keep what the lab that is here runs on, whatever is built meanwhile."""
        if shape := self.store.shape:
            for path in (shape.host_tools, shape.kubernetes, shape.node_root):
                cache.touch(Path(path))

    def _start_nas(self) -> None:
        """Start the NAS of a lab that is up, if it was stopped or a part of it ended."""
        if not self.running():
            with self._progress(["NAS"]).step("NAS"):
                self.nas.stop()
                self.nas.start()

    def _progress(self, names: Sequence[str]) -> Steps:
        of = "" if self.directory == DEFAULT_DIRECTORY else self.directory.name
        return Steps(names, logs=self.logs, of=of)

    def _network(self) -> net.Network:
        """The directory's name tells labs apart, in all that they share."""
        return net.Network(name=self.directory.name)

    def _node(self, index: int) -> Node:
        return Node(
            index=index,
            network=self.shape.network,
            directory=self.directory / "nodes" / f"node{index}",
            logs=self.logs,
            keys=Keys(self.directory / "pki", self.shape.network.name),
        )

    def _identity(self, node: Node) -> payload.Identity:
        return payload.Identity(node.index, self.shape.network, self.control_plane.server)

    def _up(self, nodes: int, memory_mib: int | None, steps: Steps) -> None:
        _build(artefacts.everything(), steps)
        with steps.step("network"):
            self._shape(nodes, memory_mib)
            net.create(self.shape.network)
        with steps.step("NAS"):
            self.nas.start()
        with steps.step("control plane"):
            self.control_plane.prepare()
            for daemon in self.control_plane.start():
                self.store.remember_daemon(daemon)
            self._apply_objects()
        for node in self.nodes.values():
            with steps.step(node.name):
                self._boot(node)
        with steps.step(_READY):
            self._await_nodes()
        self.store.complete = True
        self.store.save()

    def _grow(self, nodes: int) -> bool:
        """Add what is missing to a lab that is up. What failed to come up is taken away again."""
        before = self.shape.nodes
        if before >= nodes:
            return False
        added = [self._node(index) for index in range(before + 1, nodes + 1)]
        steps = self._progress([*(node.name for node in added), _READY])
        try:
            for node in added:
                with steps.step(node.name):
                    self._remove_node(node)  # what a command that was killed left
                    self._boot(node)
                self._reshape(node.index)
            with steps.step(_READY):
                self._await_nodes()
        except BaseException:
            for node in reversed(added):
                self._remove_node(node)
            raise
        return True

    def _remove_node(self, node: Node) -> None:
        self.kubectl("delete", "node", node.name, "--ignore-not-found")
        if daemon := self.store.daemon(node.name):
            stop(daemon, timeout_s=0)
            self.store.forget_daemon(node.name)
        net.remove_node(self.shape.network, node.index)
        shutil.rmtree(node.directory, ignore_errors=True)
        self._reshape(node.index - 1)

    def _reshape(self, nodes: int) -> None:
        self.store.shape = dataclasses.replace(self.shape, nodes=nodes)
        self.store.save()

    def _shape(self, nodes: int, memory_mib: int | None) -> None:
        tools, root = artefacts.host_tools(), artefacts.node_root()
        shape = Shape(
            nodes=nodes,
            network=self._network(),
            accelerator=accelerator.choose(tools, root),
            host_tools=str(tools),
            kubernetes=str(artefacts.kubernetes()),
            node_root=str(root),
            memory_mib=memory_mib or DEFAULT_MEMORY_MIB,
        )
        self.began = True
        self.store.shape = shape
        self.store.complete = False
        self.store.save()

    def _apply_objects(self) -> None:
        for manifest in sorted((tree.CHECKOUT / _MANIFESTS).glob("*.yaml")):
            self.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(manifest))

    def _boot(self, node: Node) -> None:
        shape = self.shape
        node.keys.create()
        node.directory.mkdir(parents=True, exist_ok=True)
        parts = payload.Parts(
            host_tools=Path(shape.host_tools),
            kubernetes=Path(shape.kubernetes),
            node_python=artefacts.node_python(),
            guest_image=artefacts.guest_image(),
            images=artefacts.oci_images(),
            pause_image=artefacts.PAUSE_IMAGES[0],
        )
        pki = self.control_plane.pki
        payload.create(node.payload, self._identity(node), parts=parts, pki=pki, keys=node.keys)
        net.add_node(shape.network, node.index)
        node.disk.unlink(missing_ok=True)
        self._start(node, shape)

    def _start(self, node: Node, shape: Shape) -> None:
        for machine in node.boot(
            host_tools=Path(shape.host_tools),
            root=Path(shape.node_root) if shape.node_root else artefacts.node_root(),
            memory_mib=shape.memory_mib,
            accel=shape.accelerator,
        ):
            self.store.remember_daemon(machine)

    def _await_nodes(self) -> None:
        names = [f"node/{name}" for name in self.nodes]
        for condition in ("create", "condition=Ready"):
            wait = ["wait", f"--for={condition}", f"--timeout={NODE_READY_TIMEOUT_S}s", *names]
            self.kubectl(*wait, timeout_s=NODE_READY_TIMEOUT_S + 30)
        account = ["serviceaccount/default", "--namespace=default", "--timeout=60s"]
        self.kubectl("wait", "--for=create", *account)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise FailedPrecondition(
            "a lab is made of namespaces, mounts and disks", hint="run as root"
        )


def _build(wanted: Mapping[str, Callable[[], object]], steps: Steps) -> None:
    for name, build in wanted.items():
        with steps.step(name):
            build()


def _steps(nodes: int) -> list[str]:
    machines = [f"node{index}" for index in range(1, nodes + 1)]
    return [*artefacts.everything(), "network", "NAS", "control plane", *machines, _READY]
