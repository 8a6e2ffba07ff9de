"""A process's stdio: containerd's fifos on one side, the guest's streams on the other.

The fifos are held so that containerd may go and come back: the shim keeps a read end of what it
writes (no EPIPE, the data waits in the pipe) and a write end of what it reads (no end-of-file
before CloseIO). Copying is bounded to one buffer per direction; a reader that does not read stops
the process's output, not the shim's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from kangaroo.errors import DeadlineExceeded, InvalidRequest, KangarooError, NotFound, Unsupported

_LOG = logging.getLogger(__name__)

_BUFFER_BYTES = 64 * 1024
_OPEN_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class StdioPaths:
    """Where containerd wants a process's stdio; "" for none. With a terminal, stdout carries
    everything.
    """

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Streams(Protocol):
    """The guest's ends: each awaitable for its connected socket, None for one that was not asked
    for.
    """

    @property
    def stdin(self) -> Awaitable[socket.socket] | None: ...
    @property
    def stdout(self) -> Awaitable[socket.socket] | None: ...
    @property
    def stderr(self) -> Awaitable[socket.socket] | None: ...


class _Patience:
    """How long the guest may let wait for a stream or its next piece: at first without end."""

    def __init__(self) -> None:
        self._limit_s: float | None = None
        self._waiting: asyncio.Timeout | None = None

    def end(self, limit_s: float) -> None:
        """From now on `limit_s`, also of what is waited for already."""
        self._limit_s = limit_s
        if self._waiting is not None:
            self._waiting.reschedule(asyncio.get_running_loop().time() + limit_s)

    @contextlib.asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Raises TimeoutError out of what is waited for in it."""
        try:
            async with asyncio.timeout(self._limit_s) as self._waiting:
                yield
        finally:
            self._waiting = None


class ProcessIo:
    """The open fifos of one process and the copying between them and the guest."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}
        self._outputs: list[asyncio.Task[None]] = []
        self._input: asyncio.Task[None] | None = None
        self._patience: list[_Patience] = []
        self._draining: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, paths: StdioPaths) -> ProcessIo:
        """Open the fifos. Raises Unsupported for a URI that is not a fifo, NotFound,
        DeadlineExceeded, OSError.
        """
        io = cls()
        try:
            for name in ("stdin", "stdout", "stderr"):
                path = _plain_path(name, getattr(paths, name))
                if path and not (name == "stderr" and paths.terminal):
                    await io._open_end(name, path)
        except BaseException:
            io.close()
            raise
        return io

    def attach(self, streams: Streams) -> None:
        """Start to copy as soon as the guest dials each stream."""
        for name in ("stdout", "stderr"):
            stream = getattr(streams, name)
            if stream is not None:
                patience = _Patience()
                self._patience.append(patience)
                copy = _quietly(_copy_out(stream, self._fds[name], patience), name)
                self._outputs.append(asyncio.create_task(copy, name=name))
        if streams.stdin is not None:
            copy = _quietly(_copy_in(self._fds["stdin"], streams.stdin), "stdin")
            self._input = asyncio.create_task(copy, name="stdin")

    def close_stdin(self) -> None:
        """Give up the shim's write end: end-of-file follows when containerd's is closed too.
        Idempotent.
        """
        self._close("stdin-keep")

    async def finish(self, timeout_s: float) -> None:
        """Wait until all output is in the fifos and they are closed, at most `timeout_s`.

        What a slow reader has not taken by then goes on coming, until it has it all or `abort`.
        A guest that says nothing more for `timeout_s` is not waited for. Idempotent.
        """
        if self._draining is None:
            for patience in self._patience:
                patience.end(timeout_s)
            self._draining = asyncio.create_task(self._drain(), name="drain")
        await asyncio.wait({self._draining}, timeout=timeout_s)

    async def _drain(self) -> None:
        if self._outputs:
            await asyncio.wait(self._outputs)
        await self.abort()

    async def abort(self) -> None:
        """Stop copying and close. Idempotent."""
        tasks = [*self._outputs, *([self._input] if self._input else [])]
        if self._draining not in (None, asyncio.current_task()):
            tasks.append(self._draining)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.close()

    def close(self) -> None:
        """Close the fifos. Idempotent."""
        for name in list(self._fds):
            self._close(name)

    async def _open_end(self, name: str, path: str) -> None:
        try:
            fifo = stat.S_ISFIFO(os.stat(path).st_mode)
        except FileNotFoundError as error:
            raise NotFound(f"{name}: {path} does not exist") from error
        if name == "stdin":
            if not fifo:
                raise InvalidRequest(name, f"{path} is not a fifo")
            self._fds["stdin"] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._fds["stdin-keep"] = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        elif fifo:
            self._fds[name] = await _open_writer(path)
            self._fds[f"{name}-keep"] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        else:
            self._fds[name] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def _close(self, name: str) -> None:
        descriptor = self._fds.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)


def _plain_path(name: str, uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    if scheme == "fifo":
        return rest
    raise Unsupported(f"{name}: {uri}: only fifos are supported")


async def _open_writer(path: str) -> int:
    """Open a fifo for writing once it has a reader: what is written before that could be lost.

    Raises DeadlineExceeded when nobody comes to read.
    """
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENXIO:  # ENXIO: no reader yet
            raise
    pinned = os.open(path, os.O_PATH | os.O_CLOEXEC)
    same = f"/proc/self/fd/{pinned}"  # also when somebody removes it meanwhile
    opening = asyncio.ensure_future(asyncio.to_thread(os.open, same, os.O_WRONLY | os.O_CLOEXEC))
    try:
        done, _ = await asyncio.wait([opening], timeout=_OPEN_TIMEOUT_S)
        if not done:
            raise DeadlineExceeded(f"{path}: nobody opened it for reading in {_OPEN_TIMEOUT_S} s")
        descriptor = opening.result()
    except BaseException:
        # A reader of our own releases the thread that open(2) blocks: the shim could not end.
        release = os.open(same, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        await asyncio.wait([opening])
        if opening.exception() is None:
            os.close(opening.result())
        os.close(release)
        raise
    finally:
        os.close(pinned)
    os.set_blocking(descriptor, False)
    return descriptor


async def _quietly(copy: Any, name: str) -> None:
    """The end of a stream is not an error of the process, whatever ended it."""
    try:
        await copy
    except (OSError, KangarooError) as error:
        _LOG.debug("stream ended stream=%s error=%r", name, error)


async def _copy_out(stream: Awaitable[socket.socket], fifo: int, patience: _Patience) -> None:
    loop = asyncio.get_running_loop()
    async with patience.waiting():
        sock = await stream
    with sock:
        while True:
            async with patience.waiting():
                data = await loop.sock_recv(sock, _BUFFER_BYTES)
            if not data:
                return
            await _write(fifo, data)


async def _copy_in(fifo: int, stream: Awaitable[socket.socket]) -> None:
    loop = asyncio.get_running_loop()
    with await stream as sock:
        while True:
            # A fifo that never had a writer reads as end-of-file; epoll reports it only after one
            # came and went.
            await _ready(loop.add_reader, loop.remove_reader, fifo)
            try:
                data = os.read(fifo, _BUFFER_BYTES)
            except BlockingIOError:
                continue
            if not data:
                break
            await loop.sock_sendall(sock, data)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        await asyncio.Event().wait()  # keep the connection until the process has ended


async def _write(fifo: int, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fifo, view) :]
        except BlockingIOError:
            await _ready(loop.add_writer, loop.remove_writer, fifo)


async def _ready(add: Callable[..., None], remove: Callable[[int], Any], descriptor: int) -> None:
    ready = asyncio.Event()
    add(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        remove(descriptor)
