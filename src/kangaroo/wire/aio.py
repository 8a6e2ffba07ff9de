"""asyncio around the sans-IO connection: a client and a server.

Both own the tasks that they start. A client that loses its peer fails every waiting call with
UNAVAILABLE; a server that loses its client cancels the handlers that still run for it, so a handler
that must not be cut short shields its work.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from os import PathLike, fspath
from typing import Any

from kangaroo.wire.connection import ClientConnection, RequestReceived, ServerConnection
from kangaroo.wire.envelope import Status, StatusDetail
from kangaroo.wire.errors import LocalProtocolError, RemoteProtocolError
from kangaroo.wire.status import Code

logger = logging.getLogger(__name__)

Handler = Callable[[bytes], Awaitable[bytes]]
Services = Mapping[str, Mapping[str, Handler]]

_READ_BYTES = 64 * 1024
_NS_PER_S = 1_000_000_000
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCEPT_AGAIN_S = 1.0


class RpcError(Exception):
    """A call ended with a status that is not OK."""

    def __init__(self, code: int, message: str, details: tuple[StatusDetail, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    def __str__(self) -> str:
        return f"{_code_name(self.code)}: {self.message}"


def _code_name(code: int) -> str:
    try:
        return Code(code).name
    except ValueError:
        return f"code {code}"


class Client:
    """One connection to a ttrpc server; calls may run side by side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._connection = ClientConnection()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._lost: RpcError | None = None
        self._task = asyncio.create_task(self._receive(), name="ttrpc-client")

    @classmethod
    async def connect_unix(cls, path: str | PathLike[str]) -> Client:
        """Connect to a unix socket. Raises OSError."""
        return cls(*await asyncio.open_unix_connection(fspath(path)))

    @classmethod
    async def from_socket(cls, sock: socket.socket) -> Client:
        """Take over a connected stream socket of any family."""
        return cls(*await open_socket(sock))

    async def call(
        self, service: str, method: str, payload: bytes, *, timeout_s: float | None
    ) -> bytes:
        """Make one call and return the payload of its answer.

        `timeout_s` bounds the wait here and is told to the server; None waits for ever. Raises
        `RpcError`: the server's status, or DEADLINE_EXCEEDED, or UNAVAILABLE when the connection is
        or gets lost. A call that is cancelled or times out is forgotten; the server may still carry
        it out.
        """
        if self._lost is not None:
            raise self._lost
        timeout_ns = 0 if timeout_s is None else max(1, int(timeout_s * _NS_PER_S))
        try:
            stream_id, data = self._connection.request(service, method, payload, timeout_ns)
        except LocalProtocolError as error:
            raise RpcError(Code.RESOURCE_EXHAUSTED, str(error)) from error
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[stream_id] = answer
        try:
            async with asyncio.timeout(timeout_s):
                self._writer.write(data)
                return await answer
        except TimeoutError as error:
            raise RpcError(
                Code.DEADLINE_EXCEEDED, f"{method} took longer than {timeout_s} s"
            ) from error
        finally:
            del self._waiting[stream_id]
            self._connection.forget(stream_id)

    async def wait_closed(self) -> None:
        """Return when the connection is gone, whoever closed it."""
        await asyncio.wait([self._task])

    async def aclose(self) -> None:
        """Close the connection and fail what still waits. A repeat does nothing."""
        self._task.cancel()
        await asyncio.wait([self._task])
        self._lose("the connection was closed")

    async def _receive(self) -> None:
        try:
            while data := await self._reader.read(_READ_BYTES):
                for event in self._connection.receive(data):
                    self._answer(event.stream_id, event.payload, event.status)
            self._lose("the peer closed the connection")
        except (OSError, RemoteProtocolError) as error:
            self._lose(str(error))

    def _answer(self, stream_id: int, payload: bytes, status: Status) -> None:
        answer = self._waiting.get(stream_id)
        if answer is None or answer.done():
            return
        if status.code == Code.OK:
            answer.set_result(payload)
        else:
            answer.set_exception(RpcError(status.code, status.message, status.details))

    def _lose(self, reason: str) -> None:
        self._writer.close()
        if self._lost is None:
            self._lost = RpcError(Code.UNAVAILABLE, reason)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(self._lost)


class Server:
    """Serves `services`: service name -> method name -> handler.

    A handler gets the request's payload and returns the answer's; it raises `RpcError` to fail the
    call. Anything else that it raises is logged and answered with INTERNAL.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._connections = 0

    async def wait_idle(self, timeout_s: float) -> None:
        """Return when every call has been answered, or after `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connections > 0

    async def serve(self, listener: socket.socket) -> None:
        """Accept connections on a listening socket until cancelled; then close them and the
        listener.
        """
        listener.setblocking(False)
        with listener:
            async with asyncio.TaskGroup() as connections:
                while True:
                    sock, _ = await accept(listener)
                    connections.create_task(self.serve_connection(sock), name="ttrpc-connection")

    async def serve_connection(self, sock: socket.socket) -> None:
        """Serve one connected socket until the peer closes it or breaks the protocol."""
        self._connections += 1
        try:
            await self._serve_connection(sock)
        finally:
            self._connections -= 1

    async def _serve_connection(self, sock: socket.socket) -> None:
        reader, writer = await open_socket(sock)
        connection = ServerConnection()
        try:
            async with asyncio.TaskGroup() as handlers:
                while data := await reader.read(_READ_BYTES):
                    for event in connection.receive(data):
                        handlers.create_task(
                            self._handle(connection, writer, event), name=event.method
                        )
                    await writer.drain()
                raise _PeerClosedError
        except* _PeerClosedError:
            pass
        except* (OSError, RemoteProtocolError) as errors:
            logger.warning("connection dropped error=%s", errors.exceptions[0])
        finally:
            writer.close()

    async def _handle(
        self, connection: ServerConnection, writer: asyncio.StreamWriter, request: RequestReceived
    ) -> None:
        stream_id = request.stream_id
        self._running += 1
        self._idle.clear()
        try:
            payload = await self._call(request)
            writer.write(connection.respond(stream_id, payload))
        except RpcError as error:
            writer.write(
                connection.fail(stream_id, Status(error.code, error.message, error.details))
            )
        except LocalProtocolError as error:
            writer.write(connection.fail(stream_id, Status(Code.RESOURCE_EXHAUSTED, str(error))))
        finally:
            self._running -= 1
            if self._running == 0:
                self._idle.set()

    async def _call(self, request: RequestReceived) -> bytes:
        handler = self._services.get(request.service, {}).get(request.method)
        if handler is None:
            raise RpcError(
                Code.UNIMPLEMENTED, f"{request.service}/{request.method} is not implemented"
            )
        timeout_s = request.timeout_ns / _NS_PER_S if request.timeout_ns else None
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                return await handler(request.payload)
        except RpcError:
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and deadline.expired():
                message = f"{request.method} took longer than {timeout_s} s"
                raise RpcError(Code.DEADLINE_EXCEEDED, message) from error
            logger.exception("handler failed method=%s", request.method)
            raise RpcError(Code.INTERNAL, f"{type(error).__name__}: {error}") from error


class _PeerClosedError(Exception):
    """Ends a connection's task group, so that its handlers are cancelled."""


async def accept(listener: socket.socket) -> tuple[socket.socket, Any]:
    """The next connection, and its peer's address. Where there is no room for one now it is tried
    again, as asyncio's own servers do.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            return await loop.sock_accept(listener)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            logger.warning("no connection accepted error=%s", error)
        await asyncio.sleep(_ACCEPT_AGAIN_S)


async def open_socket(sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams over a connected stream socket of any family (unix, vsock)."""
    sock.setblocking(False)
    return await asyncio.open_connection(sock=sock)
