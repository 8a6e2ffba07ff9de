"""The vsock connections of one guest: the control connection, and stdio streams claimed by token.

The guest dials, the host listens (docs/agent-protocol.md). Only this guest's context id is
accepted, a stream must show an outstanding token within a deadline, and the number of unproven
connections is bounded. Any container of the guest can connect, as often as it likes: a connection
that is refused keeps its place for a while, and who comes when there is none waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kangaroo.errors import Unavailable
from kangaroo.wire.agent_protocol import TOKEN_HEX_DIGITS
from kangaroo.wire.aio import accept

_LOG = logging.getLogger(__name__)

_TOKEN_TIMEOUT_S = 5.0
_MAX_UNPROVEN = 64
_REFUSED_S = 1.0  # how long one that was refused counts as unproven
_SAY_S = 60.0

PeerCheck = Callable[[Any], bool]


@dataclass
class Stream:
    """One direction of stdio: awaitable, gives the connected non-blocking socket once the guest has
    dialled.
    """

    token: str
    arrival: asyncio.Future[socket.socket] = field(repr=False)

    def __await__(self) -> Any:
        return asyncio.shield(self.arrival).__await__()


@dataclass
class StreamSet:
    """The streams of one process. A stream that was not asked for is None."""

    terminal: bool
    stdin: Stream | None
    stdout: Stream | None
    stderr: Stream | None
    _hub: StreamHub = field(repr=False)

    @property
    def wire(self) -> dict[str, Any]:
        """The `stdio` object of the agent protocol."""
        return {
            "terminal": self.terminal,
            "stdin": self.stdin.token if self.stdin else None,
            "stdout": self.stdout.token if self.stdout else None,
            "stderr": self.stderr.token if self.stderr else None,
        }

    def revoke(self) -> None:
        """Forget the tokens that were not used and close sockets that nobody took; for a process
        that never ran.
        """
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                self._hub.revoke(stream)


class StreamHub:
    """Accepts one guest's connections on a listening socket, until closed."""

    def __init__(self, listener: socket.socket, *, is_guest: PeerCheck) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._is_guest = is_guest
        self._waiting: dict[str, Stream] = {}
        self._control: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._control_taken = False
        self._unproven: set[asyncio.Task[None]] = set()
        self._refusals = _Refusals()
        self._task = asyncio.create_task(self._accept(), name="vsock-accept")

    def issue(self, *, terminal: bool, stdin: bool, stdout: bool, stderr: bool) -> StreamSet:
        """New single-use tokens for a process's streams. With a terminal, stdout carries
        everything.
        """
        make = self._new_stream
        return StreamSet(
            terminal=terminal,
            stdin=make() if stdin else None,
            stdout=make() if stdout else None,
            stderr=make() if stderr and not terminal else None,
            _hub=self,
        )

    async def control(self) -> socket.socket:
        """The guest's first connection. Raises Unavailable when the hub is closed first."""
        sock = await asyncio.shield(self._control)
        self._control_taken = True
        return sock

    def revoke(self, stream: Stream) -> None:
        """Make a token worthless; a socket that the guest had connected already is closed.
        Idempotent.
        """
        self._waiting.pop(stream.token, None)
        if not stream.arrival.done():
            stream.arrival.cancel()
        _drop(stream.arrival)

    async def aclose(self) -> None:
        """Stop accepting; fail everything that waits. Sockets that were handed out stay open.
        Idempotent.
        """
        tasks = [self._task, *self._unproven]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()
        if not self._control_taken:
            _drop(self._control)
        lost = Unavailable("the guest is gone")
        for future in (self._control, *(stream.arrival for stream in self._waiting.values())):
            if not future.done():
                future.set_exception(lost)
                future.exception()  # somebody may wait or nobody; neither is worth a warning
        self._waiting.clear()

    def _new_stream(self) -> Stream:
        token = secrets.token_hex(TOKEN_HEX_DIGITS // 2)
        stream = Stream(token, asyncio.get_running_loop().create_future())
        self._waiting[token] = stream
        return stream

    async def _accept(self) -> None:
        while True:
            while len(self._unproven) >= _MAX_UNPROVEN:
                await asyncio.wait(self._unproven, return_when=asyncio.FIRST_COMPLETED)
            sock, peer = await accept(self._listener)
            if not self._is_guest(peer):
                self._refusals.say(f"{peer} is not this guest")
                sock.close()
            elif not self._control.done():
                self._control.set_result(sock)
            else:
                task = asyncio.create_task(self._admit(sock), name="stream-token")
                self._unproven.add(task)
                task.add_done_callback(self._unproven.discard)

    async def _admit(self, sock: socket.socket) -> None:
        """Read the token and hand the socket to who waits for it; close it otherwise."""
        try:
            async with asyncio.timeout(_TOKEN_TIMEOUT_S):
                stream = self._waiting.pop(await _read_token(sock), None)
            if stream is None or stream.arrival.done():
                raise ValueError("the token is unknown")
        except (OSError, ValueError, TimeoutError) as error:
            sock.close()
            self._refusals.say(f"no token: {error!r}")
            await asyncio.sleep(_REFUSED_S)
        except BaseException:
            sock.close()
            raise
        else:
            stream.arrival.set_result(sock)


class _Refusals:
    """Says that connections were refused: the first at once, then at most a line a minute."""

    def __init__(self) -> None:
        self._count = 0
        self._said_at = -_SAY_S

    def say(self, why: str) -> None:
        self._count += 1
        now = asyncio.get_running_loop().time()
        if now - self._said_at >= _SAY_S:
            _LOG.warning("refused connections count=%d last=%s", self._count, why)
            self._count, self._said_at = 0, now


async def _read_token(sock: socket.socket) -> str:
    """Exactly the token line; what follows is not consumed. Raises ValueError, OSError."""
    loop = asyncio.get_running_loop()
    line = b""
    while len(line) < TOKEN_HEX_DIGITS + 1:
        chunk = await loop.sock_recv(sock, TOKEN_HEX_DIGITS + 1 - len(line))
        if not chunk:
            raise ValueError("closed before the token was complete")
        line += chunk
    if line[-1:] != b"\n":
        raise ValueError("the token line has the wrong length")
    return line[:-1].decode("ascii")


def _drop(future: asyncio.Future[socket.socket]) -> None:
    """Close a socket that arrived and that nobody took."""
    if future.done() and not future.cancelled() and future.exception() is None:
        with contextlib.suppress(OSError):
            future.result().close()
