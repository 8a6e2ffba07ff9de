"""What runs on this node, for its operator: the NAS volumes of pods and where each is mounted, the
sandboxes and their processes. Read from the mount table and the sandboxes' state; shims and guests
are asked with a deadline each. One that does not answer is part of the picture, not an error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kangaroo.csi import guest_volumes, pod_volumes
from kangaroo.csi.pod_volumes import InGuest, PodVolume
from kangaroo.errors import KangarooError
from kangaroo.linux import mountinfo
from kangaroo.nas import mountstats
from kangaroo.runtime import state as state_file
from kangaroo.runtime.pod_events import PodName
from kangaroo.runtime.spec_read import CONTAINER_TYPE
from kangaroo.runtime.state import ProcessIdentity, SandboxState
from kangaroo.wire.aio import Client, RpcError
from kangaroo.wire.gen import task_pb2
from kangaroo.wire.node_protocol import SOCKET_NAME, STATE_NAME

BOTH = "both"

_TASK_SERVICE = "containerd.task.v2.Task"
_ASKED_AT_ONCE = 64
_TEXT_LIMIT = 500  # of what a guest says is wrong


@dataclass(frozen=True)
class Places:
    """Where things are on this node."""

    sandboxes: Path
    pods: Path
    bundles: Path = Path("/run/containerd/io.containerd.runtime.v2.task/k8s.io")
    proc: Path = Path("/proc/self")


@dataclass(frozen=True)
class Pod:
    """A pod; without a name where containerd keeps no sandbox of it."""

    uid: str
    namespace: str | None = None
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.name else self.uid or "-"


@dataclass(frozen=True)
class VolumeView:
    """A volume of a pod. `figures` are the guest's; `counters` the node's where it has it alone."""

    pod: Pod
    volume: PodVolume
    where: str  # "node", "guest", or BOTH while a guest takes it over
    sandbox: str | None = None
    figures: Mapping[str, int] | None = None
    counters: mountstats.Statistics | None = None
    problem: str | None = None


@dataclass(frozen=True)
class SandboxView:
    """A sandbox. What is not known is None."""

    sandbox: str
    pod: Pod
    state: SandboxState | None
    shim_pid: int | None = None
    shim_version: str | None = None
    memory_bytes: int | None = None
    problem: str | None = None

    @property
    def qemu(self) -> int | None:
        """Its pid while it lives."""
        return _pid_of(self.state.qemu if self.state else None)

    @property
    def virtiofsd(self) -> int | None:
        """Likewise."""
        return _pid_of(self.state.virtiofsd if self.state else None)

    @property
    def volumes(self) -> tuple[str, ...]:
        return tuple(volume.source for volume in self.state.volumes) if self.state else ()


async def volumes(places: Places, timeout_s: float) -> list[VolumeView]:
    """The NAS volumes of this node's pods, by pod and volume. Raises OSError or ValueError when the
    mount table cannot be read.
    """
    pods, pods_dir = _pods(places.bundles), str(places.pods.resolve())
    on_node = pod_volumes.on_node(mountinfo.read(places.proc / "mountinfo"), pods_dir)
    in_guests = pod_volumes.in_guests(places.sandboxes, pods_dir, lambda: None)
    text = (places.proc / "mountstats").read_bytes().decode("utf-8", "surrogateescape")
    counters = {one.mount_point: one for one in mountstats.parse(text, on_node.__contains__)}
    limit = asyncio.Semaphore(_ASKED_AT_ONCE)
    asked = [
        _in_guest(one, pods, one.volume.path in on_node, limit, timeout_s) for one in in_guests
    ]
    views = list(await asyncio.gather(*asked))
    taken = {one.volume.path for one in in_guests}
    views += [
        VolumeView(_pod(pods, volume.pod_uid), volume, volume.where, counters=counters.get(path))
        for path, volume in on_node.items()
        if path not in taken
    ]
    return sorted(views, key=lambda view: (str(view.pod), view.volume.volume, view.volume.path))


async def sandboxes(places: Places, timeout_s: float) -> list[SandboxView]:
    """The sandboxes of this node, by pod."""
    pods = _pods(places.bundles)
    limit = asyncio.Semaphore(_ASKED_AT_ONCE)
    directories = [path.parent for path in sorted(places.sandboxes.glob(f"*/{STATE_NAME}"))]
    views = await asyncio.gather(*(_sandbox(one, pods, limit, timeout_s) for one in directories))
    return sorted((view for view in views if view), key=lambda view: (str(view.pod), view.sandbox))


async def _in_guest(
    asked: InGuest,
    pods: Mapping[str, Pod],
    also_on_node: bool,
    limit: asyncio.Semaphore,
    timeout_s: float,
) -> VolumeView:
    figures = counters = problem = None
    try:
        async with limit, asyncio.timeout(timeout_s + 1):
            answer = await guest_volumes.answer(asked.socket, asked.volume.path, timeout_s)
        figures = guest_volumes.figures(answer)
        counters = mountstats.parse_one(str(answer.get("mountstats")))
    except (RpcError, KangarooError, OSError, TimeoutError, ValueError) as error:
        problem = _why(error, timeout_s)
    return VolumeView(
        pod=_pod(pods, asked.volume.pod_uid),
        volume=asked.volume,
        where=BOTH if also_on_node else asked.volume.where,
        sandbox=asked.socket.parent.name,
        figures=figures,
        counters=counters,
        problem=problem,
    )


async def _sandbox(
    directory: Path, pods: Mapping[str, Pod], limit: asyncio.Semaphore, timeout_s: float
) -> SandboxView | None:
    state = problem = shim = None
    try:
        state = state_file.load(directory)
    except KangarooError as error:
        if not directory.exists():  # it has just ended
            return None
        problem = str(error)
    try:
        async with limit, asyncio.timeout(timeout_s):
            shim = await _connect(directory / SOCKET_NAME, directory.name, timeout_s)
    except (RpcError, OSError, TimeoutError) as error:
        problem = problem or f"shim: {_why(error, timeout_s)}"
    return SandboxView(
        sandbox=directory.name,
        pod=_pod(pods, (state.pod_uid if state else None) or ""),
        state=state,
        shim_pid=shim.shim_pid if shim else None,
        shim_version=shim.version if shim else None,
        memory_bytes=_memory(state),
        problem=problem,
    )


async def _connect(socket: Path, sandbox: str, timeout_s: float) -> task_pb2.ConnectResponse:
    """Who serves the sandbox, from the Task API."""
    client = await Client.connect_unix(socket)
    try:
        request = task_pb2.ConnectRequest(id=sandbox).SerializeToString()
        payload = await client.call(_TASK_SERVICE, "Connect", request, timeout_s=timeout_s)
    finally:
        await client.aclose()
    return task_pb2.ConnectResponse.FromString(payload)


def _why(error: Exception, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return "the shim is dead"
    return str(error)[:_TEXT_LIMIT]


def _memory(state: SandboxState | None) -> int | None:
    """What the sandbox's control group uses: the guest, QEMU and virtiofsd."""
    if state is None or state.cgroup is None:
        return None
    try:
        return int(Path(state.cgroup, "memory.current").read_text())
    except (OSError, ValueError):
        return None


def _pid_of(process: ProcessIdentity | None) -> int | None:
    return process.pid if process is not None and process.alive() else None


def _pods(bundles: Path) -> dict[str, Pod]:
    """The pods that containerd keeps a sandbox of, from the annotations of its bundles."""
    found = {}
    for path in bundles.glob("*/config.json"):
        try:
            annotations = json.loads(path.read_bytes()).get("annotations") or {}
            pod = PodName.of(annotations)
            if pod is not None and annotations.get(CONTAINER_TYPE) == "sandbox":
                found[pod.uid] = Pod(pod.uid, pod.namespace, pod.name)
        except (OSError, ValueError, AttributeError):
            continue  # gone meanwhile, or another runtime's
    return found


def _pod(pods: Mapping[str, Pod], uid: str) -> Pod:
    return pods.get(uid) or Pod(uid)
