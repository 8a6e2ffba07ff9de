"""A shim that containerd does not know of ends: nobody is connected while containerd answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kangaroo.runtime import daemon
from kangaroo.runtime.background import Background
from kangaroo.runtime.pod import Pod
from kangaroo.runtime.process import Container, Process
from kangaroo.runtime.stdio import StdioPaths
from kangaroo.wire.aio import Server


async def boot(**_: Any) -> Any:
    raise NotImplementedError


def pod_of(bundle: Path) -> Pod:
    """A pod with one container, of which containerd keeps this bundle."""
    pod = Pod(boot, lambda message: None, Background())
    process = Process("c", "", StdioPaths("", "", "", False))
    pod._containers["c"] = Container("c", bundle, process, True)
    return pod


async def turns(count: int = 20) -> None:
    """Let everybody go on who can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def ended(server: Server, pod: Pod, address: Path) -> asyncio.Event:
    """Have the shim watch, and give it time to end. Its end is the event."""
    ending = asyncio.Event()
    watching = asyncio.create_task(daemon._forgotten(server, pod, str(address), ending))
    watching.add_done_callback(asyncio.Task.result)
    for _ in range(5):
        await asyncio.sleep(0.01)  # a connection takes turns in the kernel
    return ending


@contextlib.contextmanager
def listening(address: Path) -> Iterator[None]:
    """A containerd that answers: the kernel takes connections for whoever listens."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        yield


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_LOOK_S", 0)


@pytest.mark.usefixtures("patience")
def test_a_pod_lives_on_while_containerd_is_away(tmp_path: Path) -> None:
    address = tmp_path / "containerd.sock.ttrpc"

    async def main() -> None:
        ending = await ended(Server({}), pod_of(tmp_path), address)
        assert not ending.is_set()
        with listening(address):
            async with asyncio.timeout(10):
                await ending.wait()

    asyncio.run(main())


@pytest.mark.usefixtures("patience")
def test_a_pod_lives_on_while_containerd_is_connected(tmp_path: Path) -> None:
    address = tmp_path / "containerd.sock.ttrpc"

    async def main() -> None:
        server = Server({})
        near, far = socket.socketpair()
        with listening(address):
            serving = asyncio.create_task(server.serve_connection(far))
            await turns()
            ending = await ended(server, pod_of(tmp_path), address)
            assert not ending.is_set()
            near.close()
            await serving
            assert not server.connected
            async with asyncio.timeout(10):
                await ending.wait()

    asyncio.run(main())


@pytest.mark.usefixtures("patience")
def test_a_shim_without_a_pod_ends(tmp_path: Path) -> None:
    async def main() -> None:
        pod = Pod(boot, lambda message: None, Background())
        assert (await ended(Server({}), pod, tmp_path / "absent")).is_set()

    asyncio.run(main())
