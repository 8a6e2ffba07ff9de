"""A forwarded connection ends with its client, whatever the pod's program does."""

from __future__ import annotations

import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from kangaroo.agent.loop import READ, WRITE, Future, Loop
from kangaroo.agent.port_forward import forward

TIMEOUT_S = 10
TOKENS = {"stdin": "0" * 32, "stdout": "1" * 32}


class Scene:
    """A program of the pod that listens, and the host, which may refuse a stream."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.hosts: list[socket.socket] = []
        self.streams = 2
        self._listener = socket.create_server(("127.0.0.1", 0))

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        outcome = self.loop.spawn(main())
        outcome.then(self.loop.stop)
        if not outcome.done:
            self.loop.run()
        outcome.result()

    async def joined(self) -> tuple[socket.socket, socket.socket, socket.socket]:
        """A connection: the program's end, what the host writes to, what it reads from."""
        await forward(self.loop, self._dial, port=self._listener.getsockname()[1], **TOKENS)
        program, _ = self._listener.accept()
        program.setblocking(False)
        writer, reader = self.hosts
        for sock, token in ((writer, TOKENS["stdin"]), (reader, TOKENS["stdout"])):
            assert sock.recv(33) == f"{token}\n".encode()
        return program, writer, reader

    async def ready(self, sock: socket.socket, events: int) -> None:
        future = Future()
        self.loop.watch(sock.fileno(), events, future.set)
        assert await self.loop.within(future, TIMEOUT_S), "it never is"
        self.loop.unwatch(sock.fileno())

    async def read(self, sock: socket.socket, count: int) -> bytes:
        content = b""
        while len(content) < count:
            await self.ready(sock, READ)
            content += sock.recv(count - len(content))
        return content

    async def stream(self, sock: socket.socket) -> None:
        """Send for as long as it takes something."""
        while True:
            await self.ready(sock, WRITE)
            sock.send(bytes(1 << 16))

    async def settled(self) -> None:
        """Until all that is ready has been looked at."""
        await self.loop.within(Future(), 0)

    def client_goes(self) -> None:
        for sock in self.hosts:
            sock.close()

    def close(self) -> None:
        self.client_goes()
        self._listener.close()

    def _dial(self) -> socket.socket:
        if len(self.hosts) == self.streams:
            raise ConnectionRefusedError
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        self.hosts.append(theirs)
        return ours


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


def test_the_end_of_what_the_client_says_leaves_the_answer(scene: Scene) -> None:
    async def main() -> None:
        program, writer, reader = await scene.joined()
        writer.sendall(b"question")
        writer.shutdown(socket.SHUT_WR)
        assert await scene.read(program, 8) == b"question"
        await scene.ready(program, READ)
        assert program.recv(1) == b""
        program.sendall(b"answer")
        program.close()
        assert await scene.read(reader, 6) == b"answer"
        await scene.ready(reader, READ)
        assert reader.recv(1) == b""

    scene.run(main)


def test_nobody_reads_on_when_the_client_has_gone(scene: Scene) -> None:
    async def main() -> None:
        program, _, _ = await scene.joined()
        scene.client_goes()
        with program, pytest.raises((BrokenPipeError, ConnectionResetError)):
            await scene.stream(program)

    scene.run(main)


@pytest.mark.parametrize("said", [b"", bytes(1 << 16)], ids=["silent", "slow"])
def test_a_connection_that_is_idle_ends_with_its_client(scene: Scene, said: bytes) -> None:
    """Also after the client took its time to read."""

    async def main() -> None:
        program, _, reader = await scene.joined()
        with program:
            program.sendall(said)
            assert await scene.read(reader, len(said)) == said
            await scene.settled()
            scene.client_goes()
            await scene.ready(program, READ)
            await scene.settled()
            assert not scene.loop._watchers

    scene.run(main)


def test_a_stream_that_the_host_refuses_leaves_nothing(scene: Scene) -> None:
    async def main() -> None:
        scene.streams = 1
        with pytest.raises(ConnectionRefusedError):
            await scene.joined()
        assert not scene.loop._watchers
        assert scene.hosts[0].recv(100) == f"{TOKENS['stdin']}\n".encode()
        assert scene.hosts[0].recv(100) == b""

    scene.run(main)
