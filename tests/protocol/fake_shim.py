"""Shims of sandboxes with one NAS volume each, on real sockets: those that answer and those that do
not.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kangaroo.runtime import state as state_file
from kangaroo.runtime.state import (
    PlaceholderState,
    ProcessIdentity,
    SandboxState,
    VolumeState,
)
from kangaroo.wire.agent_protocol import decode, encode
from kangaroo.wire.aio import Server
from kangaroo.wire.gen import task_pb2
from kangaroo.wire.node_protocol import SERVICE, VOLUME_STATS

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
TASK_SERVICE = "containerd.task.v2.Task"

COUNTERS = """\
device 192.0.2.1:/csi mounted on /run/nas/nas-1 with fstype nfs statvers=1.1
\tbytes:\t0 0 0 0 500 600 0 0
\tper-op statistics
\t        READ: 8 10 1 1100 8389632 2 1400 1420 0
"""


FIGURES = {
    "total_bytes": 5 << 30,
    "free_bytes": 3 << 30,
    "available_bytes": 2 << 30,
    "total_inodes": 50,
    "free_inodes": 40,
}


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short, for a unix socket's path has 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="kcsi-"))
    yield path
    shutil.rmtree(path)


@asynccontextmanager
async def shim(directory: Path, name: str, answer: Answer) -> AsyncIterator[None]:
    """A sandbox whose guest has one volume, and its shim."""

    async def handle(payload: bytes) -> bytes:
        return encode(await answer(decode(payload)))

    async def connect(payload: bytes) -> bytes:
        assert task_pb2.ConnectRequest.FromString(payload).id == name
        return task_pb2.ConnectResponse(shim_pid=4711, version="0.1.0").SerializeToString()

    own = sandbox(directory, name)
    services = {SERVICE: {VOLUME_STATS: handle}, TASK_SERVICE: {"Connect": connect}}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(own / "shim.sock"))
        listener.listen()
        task = asyncio.create_task(Server(services).serve(listener))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


def target(directory: Path, name: str) -> str:
    """Where kubelet has the sandbox's volume."""
    return f"{directory}/pods/uid-{name}/volumes/kubernetes.io~csi/pv-{name}/mount"


def sandbox(directory: Path, name: str) -> Path:
    """The directory of a sandbox whose guest has one volume; without a shim."""
    own = directory / "sandboxes" / name
    own.mkdir(parents=True)
    volume = VolumeState("nas-1", "192.0.2.1:/csi", "nfs", ("rw", "relatime"), ("rw", "vers=3"))
    state = SandboxState(
        name,
        pod_uid=f"uid-{name}",
        qemu=ProcessIdentity.of(os.getpid()),
        virtiofsd=ProcessIdentity(os.getpid(), 1),
        containers=("c1", "c2"),
    )
    placeholder = PlaceholderState(target(directory, name), "0:9", "nas-1")
    state_file.save(own, state.with_volume(volume).with_placeholder(placeholder))
    return own


async def healthy(request: dict[str, Any]) -> dict[str, Any]:
    assert request["path"].endswith("/mount")
    return {**FIGURES, "mountstats": COUNTERS}


async def deaf(request: dict[str, Any]) -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def odd(request: dict[str, Any]) -> dict[str, Any]:
    return {"mountstats": COUNTERS.replace("READ: 8", "READ: 8" * 1000)}


async def two(request: dict[str, Any]) -> dict[str, Any]:
    return {"mountstats": COUNTERS * 2}
