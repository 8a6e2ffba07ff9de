"""The control connection: ttrpc requests in, answers out, several at a time."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

from kangaroo.agent import failures, log, requests
from kangaroo.agent.loop import READ, WRITE, Loop
from kangaroo.errors import Unsupported
from kangaroo.wire.agent_protocol import SERVICE, Method, encode
from kangaroo.wire.connection import RequestReceived, ServerConnection
from kangaroo.wire.errors import ProtocolError

_CHUNK_BYTES = 1 << 16

Handler = Callable[..., Awaitable[dict[str, Any]]]


class Control:
    """Serves `handlers`, by method name, on a connected socket; calls `on_closed` once when it
    ends.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        handlers: dict[str, Handler],
        on_closed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._handlers = handlers
        self._on_closed = on_closed
        self._connection = ServerConnection()
        self._unsent = bytearray()
        self._open = True
        sock.setblocking(False)
        loop.watch(sock.fileno(), READ, self._on_ready)

    def flush(self) -> None:
        """Send what is queued, waiting for the peer to take it; for the last words before power
        off.
        """
        if self._open:
            self._sock.settimeout(1.0)
            try:
                self._sock.sendall(self._unsent)
            except OSError:
                return
            self._unsent.clear()

    def _on_ready(self) -> None:
        try:
            self._send()
            data = self._sock.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._close(error)
            return
        if not data:
            self._close(None)
            return
        try:
            received = self._connection.receive(data)
        except ProtocolError as error:
            self._close(error)
            return
        for request in received:
            self._loop.spawn(self._serve(request))

    async def _serve(self, request: RequestReceived) -> None:
        try:
            handler = self._find(request)
            arguments = requests.read(request.method, request.payload, request.timeout_ns)
            log.debug("call", method=request.method)
            answer = encode(await handler(**arguments))
            data = self._connection.respond(request.stream_id, answer)
        except Exception as error:
            log.info("call failed", method=request.method, error=error)
            data = self._connection.fail(request.stream_id, failures.status(error))
        self._unsent += data
        self._send_or_close()

    def _find(self, request: RequestReceived) -> Handler:
        if request.service != SERVICE or request.method not in self._handlers:
            raise Unsupported(f"there is no method {request.service}/{request.method}")
        return self._handlers[request.method]

    def _send_or_close(self) -> None:
        try:
            self._send()
        except OSError as error:
            self._close(error)

    def _send(self) -> None:
        if not self._open:
            return
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent)
            except BlockingIOError:
                break
            del self._unsent[:sent]
        self._loop.watch(
            self._sock.fileno(), READ | WRITE if self._unsent else READ, self._on_ready
        )

    def _close(self, error: Exception | None) -> None:
        if not self._open:
            return
        self._open = False
        log.info("control connection closed", error=error)
        self._loop.unwatch(self._sock.fileno())
        self._sock.close()
        self._on_closed()


def handlers_of(target: object) -> dict[str, Handler]:
    """The methods of `target` that implement the protocol: `MountNas` is `mount_nas`."""
    return {method.value: getattr(target, _snake(method.value)) for method in Method}


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
