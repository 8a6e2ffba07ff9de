"""The guest's connections: control first, then streams by token; everything else is turned away."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kangaroo.errors import DeadlineExceeded, Unavailable
from kangaroo.runtime import stdio
from kangaroo.runtime.streams import StreamHub, StreamSet
from kangaroo.wire import aio

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


def test_who_is_refused_time_and_again_costs_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Any container can connect without end. The shim's time and its log are the node's."""
    monkeypatch.setattr("kangaroo.runtime.streams._MAX_UNPROVEN", 4)
    monkeypatch.setattr("kangaroo.runtime.streams._REFUSED_S", 0.05)

    async def body(guest: Guest) -> None:
        await guest.dial()
        began = asyncio.get_running_loop().time()
        refused = [await guest.dial(b"x" * 33) for _ in range(40)]
        wanted = all_streams(guest.hub)
        assert wanted.stdout is not None
        await guest.dial(f"{wanted.stdout.token}\n".encode())
        (await wanted.stdout).close()
        assert asyncio.get_running_loop().time() - began >= 10 * 0.05
        assert all([await guest.closed(sock) for sock in refused])
        (said,) = caplog.messages
        assert "count=1 " in said

        guest.hub._refusals._said_at -= 60
        assert await guest.closed(await guest.dial(b"x" * 33))
        assert "count=40 " in caplog.messages[-1]

    run(body, tmp_path)


def test_idle_connections_delay_a_stream_and_do_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kangaroo.runtime.streams._MAX_UNPROVEN", 4)
    monkeypatch.setattr("kangaroo.runtime.streams._REFUSED_S", 0.01)
    monkeypatch.setattr("kangaroo.runtime.streams._TOKEN_TIMEOUT_S", 0.1)

    async def body(guest: Guest) -> None:
        await guest.dial()
        for _ in range(8):
            await guest.dial()
        wanted = all_streams(guest.hub)
        assert wanted.stdout is not None
        await guest.dial(f"{wanted.stdout.token}\n".encode())
        (await wanted.stdout).close()

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


@pytest.mark.parametrize("gone", [False, True])
def test_a_fifo_that_nobody_reads_keeps_no_thread(
    tmp_path: Path, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither past the deadline nor when it is given up: the shim could not end."""
    monkeypatch.setattr(stdio, "_OPEN_TIMEOUT_S", 0.2)
    paths = [tmp_path / name for name in ("late", "cancelled")]

    async def scenario() -> None:
        opening = []
        for path in paths:
            os.mkfifo(path)
            opening.append(asyncio.ensure_future(stdio._open_writer(str(path))))
        await asyncio.sleep(0.1)  # both threads are in open(2)
        if gone:
            for path in paths:
                path.unlink()
        opening[1].cancel()
        with pytest.raises(DeadlineExceeded):
            await opening[0]
        with pytest.raises(asyncio.CancelledError):
            await opening[1]

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(scenario())  # joins its threads
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_server_without_descriptors_accepts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio, "_ACCEPT_AGAIN_S", 0.01)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        real, refused = loop.sock_accept, [OSError(errno.EMFILE, "too many")] * 2

        async def full(listener: socket.socket) -> Any:
            if refused:
                raise refused.pop()
            return await real(listener)

        monkeypatch.setattr(loop, "sock_accept", full)
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as peer:
            listener.bind(str(tmp_path / "s"))
            listener.listen()
            listener.setblocking(False)
            peer.connect(str(tmp_path / "s"))
            (await aio.accept(listener))[0].close()
        assert refused == []

    asyncio.run(scenario())
