"""The asyncio client and server over a socket pair."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kangaroo.wire.aio import Client, RpcError, Server
from kangaroo.wire.envelope import StatusDetail
from kangaroo.wire.frame import MAX_PAYLOAD_BYTES, Frame, FrameType, encode_frame
from kangaroo.wire.status import Code

Scenario = Callable[[Client], Awaitable[None]]


class Peer:
    """Handlers with gates instead of delays."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def echo(self, payload: bytes) -> bytes:
        return payload

    async def fail(self, payload: bytes) -> bytes:
        raise RpcError(Code.NOT_FOUND, "nothing here", (StatusDetail("t", payload),))

    async def crash(self, payload: bytes) -> bytes:
        raise ValueError("a bug")

    async def huge(self, payload: bytes) -> bytes:
        return bytes(MAX_PAYLOAD_BYTES)

    async def block(self, payload: bytes) -> bytes:
        self.entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        return b""

    def services(self) -> dict[str, dict[str, Callable[[bytes], Awaitable[bytes]]]]:
        names = ["echo", "fail", "crash", "huge", "block"]
        return {"peer": {name: getattr(self, name) for name in names}}


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Client, Peer, socket.socket]]:
    """A client and a server on the two ends of a socket pair."""
    near, far = socket.socketpair()
    peer = Peer()
    async with asyncio.TaskGroup() as tasks:
        served = tasks.create_task(Server(peer.services()).serve_connection(far))
        client = await Client.from_socket(near)
        try:
            yield client, peer, near
        finally:
            await client.aclose()
            await served


def run(scenario: Callable[[Client, Peer], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(10), connected() as (client, peer, _):
            await scenario(client, peer)

    asyncio.run(main())


def test_calls_run_side_by_side() -> None:
    async def scenario(client: Client, peer: Peer) -> None:
        async with asyncio.TaskGroup() as tasks:
            blocked = tasks.create_task(client.call("peer", "block", b"", timeout_s=None))
            await peer.entered.wait()
            payloads = [bytes([n]) * n * 1000 for n in range(20)]
            answers = await asyncio.gather(
                *(client.call("peer", "echo", p, timeout_s=5) for p in payloads)
            )
            assert answers == payloads
            blocked.cancel()

    run(scenario)


@pytest.mark.parametrize(
    ("method", "code", "message"),
    [
        ("fail", Code.NOT_FOUND, "nothing here"),
        ("crash", Code.INTERNAL, "ValueError: a bug"),
        ("huge", Code.RESOURCE_EXHAUSTED, "exceeds"),
        ("absent", Code.UNIMPLEMENTED, "peer/absent"),
    ],
)
def test_failures(method: str, code: Code, message: str) -> None:
    async def scenario(client: Client, peer: Peer) -> None:
        with pytest.raises(RpcError, match=message) as caught:
            await client.call("peer", method, b"x", timeout_s=5)
        assert caught.value.code == code
        assert await client.call("peer", "echo", b"still there", timeout_s=5) == b"still there"

    run(scenario)


def test_details_arrive() -> None:
    async def scenario(client: Client, peer: Peer) -> None:
        with pytest.raises(RpcError) as caught:
            await client.call("peer", "fail", b"facts", timeout_s=5)
        assert caught.value.details == (StatusDetail("t", b"facts"),)

    run(scenario)


def test_deadline_ends_the_wait_and_the_handler() -> None:
    async def scenario(client: Client, peer: Peer) -> None:
        with pytest.raises(RpcError) as caught:
            await client.call("peer", "block", b"", timeout_s=0.01)
        assert caught.value.code == Code.DEADLINE_EXCEEDED
        await peer.cancelled.wait()
        assert await client.call("peer", "echo", b"x", timeout_s=5) == b"x"

    run(scenario)


def test_closing_fails_waiting_calls_and_cancels_handlers() -> None:
    async def scenario(client: Client, peer: Peer) -> None:
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(_code(client.call("peer", "block", b"", timeout_s=None)))
            await peer.entered.wait()
            await client.aclose()
        assert call.result() == Code.UNAVAILABLE
        await peer.cancelled.wait()
        assert await _code(client.call("peer", "echo", b"", timeout_s=5)) == Code.UNAVAILABLE

    run(scenario)


async def _code(call: Awaitable[bytes]) -> int:
    try:
        await call
    except RpcError as error:
        return error.code
    return Code.OK


def test_client_survives_a_hostile_server() -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        client = await Client.from_socket(near)
        far.sendall(encode_frame(Frame(8, FrameType.RESPONSE, 0, b"")))
        await client.wait_closed()
        with pytest.raises(RpcError, match="not open"):
            await client.call("peer", "echo", b"", timeout_s=5)
        assert far.recv(10) == b""
        far.close()
        await client.aclose()

    asyncio.run(main())


def test_server_drops_a_hostile_client_and_serves_on(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(Server(Peer().services()).serve(listener))
            hostile = await Client.connect_unix(path)
            hostile._writer.write(b"\xff" * 10)
            await hostile.wait_closed()
            await hostile.aclose()
            client = await Client.connect_unix(path)
            assert await client.call("peer", "echo", b"x", timeout_s=5) == b"x"
            serving.cancel()
            await client.wait_closed()
            await client.aclose()

    asyncio.run(main())
