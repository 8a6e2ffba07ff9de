"""The guest's connections: control first, then streams by token; everything else is turned away."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kangaroo.errors import Unavailable
from kangaroo.runtime.streams import StreamHub, StreamSet

pytestmark = pytest.mark.protocol


class Guest:
    """Dials as a guest does, over a unix socket in place of vsock."""

    def __init__(self, hub: StreamHub, path: Path) -> None:
        self.hub = hub
        self.path = path
        self.sockets: list[socket.socket] = []

    async def dial(self, first: bytes = b"") -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        self.sockets.append(sock)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, str(self.path))
        await loop.sock_sendall(sock, first)
        return sock

    async def closed(self, sock: socket.socket) -> bool:
        try:
            return await asyncio.get_running_loop().sock_recv(sock, 1) == b""
        except ConnectionResetError:  # closed with bytes unread
            return True


@asynccontextmanager
async def guest(
    path: Path, is_guest: Callable[[Any], bool] = lambda peer: True
) -> AsyncIterator[Guest]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    hub = StreamHub(listener, is_guest=is_guest)
    dialler = Guest(hub, path)
    try:
        yield dialler
    finally:
        await hub.aclose()
        for sock in dialler.sockets:
            sock.close()


def run(test: Callable[[Guest], Awaitable[None]], path: Path, **options: Any) -> None:
    async def body() -> None:
        async with asyncio.timeout(20), guest(path / "s", **options) as dialler:
            await test(dialler)

    asyncio.run(body())


def all_streams(hub: StreamHub) -> StreamSet:
    return hub.issue(terminal=False, stdin=True, stdout=True, stderr=True)


def test_first_connection_is_control_and_streams_follow_by_token(tmp_path: Path) -> None:
    async def body(guest: Guest) -> None:
        control = await guest.dial()
        theirs = await guest.hub.control()
        control.send(b"x")
        assert await asyncio.get_running_loop().sock_recv(theirs, 9) == b"x"
        theirs.close()

        streams = all_streams(guest.hub)
        assert streams.stdout is not None
        await guest.dial(f"{streams.wire['stdout']}\nearly".encode())
        sock = await streams.stdout
        assert await asyncio.get_running_loop().sock_recv(sock, 9) == b"early"
        sock.close()

    run(body, tmp_path)


def test_a_token_that_arrives_in_pieces(tmp_path: Path) -> None:
    async def body(guest: Guest) -> None:
        await guest.dial()
        streams = all_streams(guest.hub)
        assert streams.stdin is not None
        token = f"{streams.stdin.token}\n".encode()
        sock = await guest.dial(token[:7])
        await asyncio.get_running_loop().sock_sendall(sock, token[7:])
        (await streams.stdin).close()

    run(body, tmp_path)


@pytest.mark.parametrize("first", [b"0" * 32 + b"\n", b"x" * 40, b"\xff" * 32 + b"\n"])
def test_an_unknown_token_is_closed(tmp_path: Path, first: bytes) -> None:
    async def body(guest: Guest) -> None:
        await guest.dial()
        all_streams(guest.hub)
        assert await guest.closed(await guest.dial(first))

    run(body, tmp_path)


def test_a_token_works_once(tmp_path: Path) -> None:
    async def body(guest: Guest) -> None:
        await guest.dial()
        streams = all_streams(guest.hub)
        assert streams.stdout is not None
        line = f"{streams.stdout.token}\n".encode()
        await guest.dial(line)
        sock = await streams.stdout
        assert await guest.closed(await guest.dial(line))
        sock.close()

    run(body, tmp_path)


def test_a_revoked_token_is_worthless(tmp_path: Path) -> None:
    async def body(guest: Guest) -> None:
        await guest.dial()
        streams = all_streams(guest.hub)
        streams.revoke()
        assert streams.stderr is not None
        assert await guest.closed(await guest.dial(f"{streams.stderr.token}\n".encode()))

    run(body, tmp_path)


def test_another_peer_is_refused_and_is_not_the_control_connection(tmp_path: Path) -> None:
    peers = iter([False, True])

    async def body(guest: Guest) -> None:
        assert await guest.closed(await guest.dial())
        await guest.dial()
        (await guest.hub.control()).close()

    run(body, tmp_path, is_guest=lambda peer: next(peers))


def test_closing_fails_what_waits(tmp_path: Path) -> None:
    async def body(guest: Guest) -> None:
        streams = all_streams(guest.hub)
        assert streams.stdout is not None
        await guest.hub.aclose()
        with pytest.raises(Unavailable):
            await streams.stdout
        with pytest.raises(Unavailable):
            await guest.hub.control()

    run(body, tmp_path)


def test_a_terminal_has_no_stderr(tmp_path: Path) -> None:
    async def body(guest: Guest) -> None:
        streams = guest.hub.issue(terminal=True, stdin=True, stdout=True, stderr=True)
        assert streams.wire["terminal"] is True
        assert streams.wire["stderr"] is None
        assert guest.hub.issue(terminal=False, stdin=False, stdout=True, stderr=False).stdin is None

    run(body, tmp_path)
