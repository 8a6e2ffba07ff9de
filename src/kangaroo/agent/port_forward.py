"""Connections from the host to a port of the pod, for `kubectl port-forward`."""

from __future__ import annotations

import errno
import os
import socket

from kangaroo.agent.loop import HANG_UP, WRITE, Future, Loop
from kangaroo.agent.stdio import Dial, Input, Output, announce
from kangaroo.errors import Unavailable

_TIMEOUT_S = 5.0
_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


async def forward(loop: Loop, dial: Dial, *, port: int, stdin: str, stdout: str) -> None:
    """Join a connection to the pod's `port` with two streams, named by their tokens.

    Raises Unavailable when nothing listens there.
    """
    with await _connect(loop, port) as sock:
        reader = announce(dial, stdin)
        try:
            writer = announce(dial, stdout)
        except BaseException:
            reader.close()
            raise
        incoming = _Incoming(loop, reader, os.dup(sock.fileno()))
        _Outgoing(loop, os.dup(sock.fileno()), writer, incoming)


class _Incoming(Input):
    """The host's end-of-file becomes the connection's; the other direction goes on."""

    def close(self) -> None:
        if not self._closed:
            with socket.socket(fileno=os.dup(self._sink)) as sock:
                try:
                    sock.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # the peer is gone already
        super().close()


class _Outgoing(Output):
    """When the host is gone the connection ends in both directions: what its peer sends need have
    no end, while a container's output ends with the container.
    """

    def __init__(self, loop: Loop, source: int, sock: socket.socket, incoming: _Incoming) -> None:
        super().__init__(loop, source, sock)
        self._incoming = incoming
        self._watch_host()

    def _on_writable(self) -> None:
        super()._on_writable()
        self._watch_host()

    def _watch_host(self) -> None:
        """While there is nothing to send. vsock tells of a closed peer by EPOLLRDHUP alone; the
        host shuts nothing down on this stream before it closes it.
        """
        if self._sock is not None and not self._pending:
            self._loop.watch(self._sock.fileno(), HANG_UP, self._host_gone)

    def _host_gone(self) -> None:
        self._incoming.close()
        self._close()


async def _connect(loop: Loop, port: int) -> socket.socket:
    reason = 0
    for family, address in _LOOPBACK:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        except OSError:  # a kernel without this family
            continue
        sock.setblocking(False)
        problem = sock.connect_ex((address, port))
        if problem == errno.EINPROGRESS:
            problem = await _settled(loop, sock)
        if not problem:
            return sock
        sock.close()
        reason = reason or problem
    raise Unavailable(f"port {port} of the pod: {os.strerror(reason)}")


async def _settled(loop: Loop, sock: socket.socket) -> int:
    """The outcome of a connect(2) under way, as an errno."""
    ready = Future()
    loop.watch(sock.fileno(), WRITE, ready.set)
    done = await loop.within(ready, _TIMEOUT_S)
    loop.unwatch(sock.fileno())
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if done else errno.ETIMEDOUT
