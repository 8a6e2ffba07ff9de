"""HTTP for one document, bounded: few connections, one small request on each, a deadline.

h11 reads and writes HTTP. The metrics library's own server gives each connection a thread and no
deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus

import h11

from kangaroo.errors import FailedPrecondition

_log = logging.getLogger(__name__)

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_CONNECTIONS = 16
_REQUEST_BYTES = 8192
_READ_BYTES = 4096
# A request must be there by then, and all of it be over by then.
_REQUEST_S = 5.0
_CONNECTION_S = 30.0

_Document = Callable[[], Awaitable[bytes]]


@contextlib.asynccontextmanager
async def serving(address: tuple[str, int], path: str, document: _Document) -> AsyncIterator[None]:
    """Answer GET on `path` with the document while the block runs. Raises FailedPrecondition."""
    connections = _Connections(path, document)
    server = await asyncio.start_server(connections.accept, sock=_listener(*address))
    _log.info("metrics listening address=%s port=%d path=%s", *address, path)
    try:
        yield
    finally:
        server.close()
        await connections.aclose()


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # `::` is every address of the node, as it is for Go's programs.
        return socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
    except OSError as error:
        raise FailedPrecondition(
            f"metrics_address: {host} port {port}: {error.strerror}",
            hint="another program has it; choose another port, or none to have no metrics"
            if error.errno == errno.EADDRINUSE
            else None,
        ) from error


class _Connections:
    def __init__(self, path: str, document: _Document) -> None:
        self._path = path.encode()
        self._document = document
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= _CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer), name="metrics-request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_REQUEST_BYTES)
        try:
            async with asyncio.timeout(_CONNECTION_S):
                for piece in await self._answer(connection, reader):
                    writer.write(piece)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, h11.LocalProtocolError) as error:
            _log.debug("metrics request dropped error=%r", error)
        except Exception:
            _log.exception("metrics request failed")
        finally:
            writer.transport.abort()

    async def _answer(
        self, connection: h11.Connection, reader: asyncio.StreamReader
    ) -> list[bytes]:
        try:
            async with asyncio.timeout(_REQUEST_S):
                request = await _request(connection, reader)
        except h11.RemoteProtocolError as error:
            return _response(connection, HTTPStatus(error.error_status_hint), str(error).encode())
        if request is None:
            return []
        if request.method not in (b"GET", b"HEAD"):
            return _response(connection, HTTPStatus.METHOD_NOT_ALLOWED, b"only GET\n")
        if request.target.partition(b"?")[0] != self._path:
            return _response(connection, HTTPStatus.NOT_FOUND, b"not here\n")
        body = await self._document()
        return _response(connection, HTTPStatus.OK, body, head=request.method == b"HEAD")


async def _request(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """The request's head; None when the peer went. A body is not read. Raises
    h11.RemoteProtocolError.
    """
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        connection.receive_data(await reader.read(_READ_BYTES))


def _response(
    connection: h11.Connection, status: HTTPStatus, body: bytes, *, head: bool = False
) -> list[bytes]:
    headers = [
        ("Content-Type", _CONTENT_TYPE),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append(("Allow", "GET, HEAD"))
    events = (
        h11.Response(status_code=status, reason=status.phrase.encode(), headers=headers),
        h11.Data(data=b"" if head else body),
        h11.EndOfMessage(),
    )
    return [piece for piece in map(connection.send, events) if piece]
