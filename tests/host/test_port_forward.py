"""Connections to a namespace's loopback end where the guest would be."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from kangaroo.errors import Unavailable
from kangaroo.linux.netns import run_in
from kangaroo.linux.process import run_sync
from kangaroo.runtime import port_forward

OPEN_PORT = 8080


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"kangaroo-test-{secrets.token_hex(3)}"
    run_sync(["ip", "netns", "add", name], timeout_s=10)
    try:
        run_sync(["ip", "-n", name, "link", "set", "lo", "up"], timeout_s=10)
        yield f"/run/netns/{name}"
    finally:
        run_sync(["ip", "netns", "delete", name], timeout_s=10)


class Guest:
    """Answers what comes for OPEN_PORT, in capitals; nothing else listens."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self, port: int) -> port_forward.Ends:
        self.asked.append(port)
        if port != OPEN_PORT:
            raise Unavailable("nothing listens")
        reader, stdin = socket.socketpair()
        stdout, writer = socket.socketpair()
        for sock in (reader, stdin, stdout, writer):
            sock.setblocking(False)
        task = asyncio.create_task(self._shout(reader, writer))
        self._tasks.add(task)
        return stdin, stdout

    async def _shout(self, reader: socket.socket, writer: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with reader, writer:
            while data := await loop.sock_recv(reader, 4096):
                await loop.sock_sendall(writer, data.upper())


@asynccontextmanager
async def served(netns: str, guest: Guest) -> AsyncIterator[None]:
    ready = asyncio.Event()
    serving = asyncio.create_task(port_forward.serve(netns, guest.connect, ready=ready))
    try:
        await asyncio.wait_for(ready.wait(), 20)
        yield
    finally:
        serving.cancel()
        await asyncio.wait({serving})


async def dialled(netns: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    def connect() -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=10)

    sock = await asyncio.to_thread(run_in, netns, connect)
    return await asyncio.open_connection(sock=sock)


def test_a_connection_is_joined_with_the_guest_to_its_end(netns: str) -> None:
    async def main() -> bytes:
        async with served(netns, Guest()):
            reader, writer = await dialled(netns, OPEN_PORT)
            writer.write(b"hello" * 100_000)
            writer.write_eof()
            said = await reader.read()
            writer.close()
            return said

    assert asyncio.run(main()) == b"HELLO" * 100_000


def test_a_port_where_nothing_listens_is_closed_and_the_next_is_served(netns: str) -> None:
    async def main() -> tuple[bytes, list[int]]:
        guest = Guest()
        async with served(netns, guest):
            reader, writer = await dialled(netns, 81)
            said = await reader.read()
            writer.close()
            _, writer = await dialled(netns, OPEN_PORT)
            writer.close()
            return said, guest.asked

    said, asked = asyncio.run(main())
    assert said == b""
    assert asked[0] == 81
