"""Wait for a part of the lab by the event that it gives: a notification, a connection, a line.

Every wait also ends when the process that should give the event has ended.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kangaroo.errors import DeadlineExceeded, Unavailable
from kangaroo.linux.netns import run_in
from kangaroo_lab.daemon import Daemon

_RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class Notified:
    """A service's notification socket (sd_notify(3))."""

    path: Path
    socket: socket.socket

    def wait(self, daemon: Daemon, *, timeout_s: float) -> None:
        """Until the service says READY=1. Raises DeadlineExceeded, Unavailable."""
        deadline = time.monotonic() + timeout_s
        while True:
            _readable(self.socket, daemon, deadline)
            if b"READY=1" in self.socket.recv(4096).split():
                return


@contextlib.contextmanager
def notification(path: Path) -> Iterator[Notified]:
    """A notification socket at `path` while the block runs."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        try:
            yield Notified(path, listener)
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def line_socket(path: Path) -> Iterator[socket.socket]:
    """A listening stream socket at `path` for QEMU to connect a serial port to."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def lines(listener: socket.socket, daemon: Daemon, *, timeout_s: float) -> Iterator[str]:
    """The lines that the peer sends, as they come, until the caller stops or the deadline."""
    deadline = time.monotonic() + timeout_s
    _readable(listener, daemon, deadline)
    connection, _ = listener.accept()
    pending = b""
    with connection:
        while True:
            _readable(connection, daemon, deadline)
            if not (chunk := connection.recv(4096)):
                raise Unavailable(f"{daemon.name} closed its readiness line", hint=daemon.log)
            *complete, pending = (pending + chunk).split(b"\n")
            for line in complete:
                yield line.decode(errors="replace").strip()


def accepts(namespace: str, address: str, port: int, *, daemon: Daemon, timeout_s: float) -> None:
    """Until `address:port` takes a connection. For a service that gives no event of its own: a
    refused connection is tried again. Raises DeadlineExceeded, Unavailable.
    """
    deadline = time.monotonic() + timeout_s

    def attempt() -> bool:
        try:
            socket.create_connection((address, port), timeout=1).close()
        except OSError:
            return False
        return True

    while not run_in(f"/run/netns/{namespace}", attempt):
        if time.monotonic() > deadline:
            raise _late(daemon, f"does not accept on {address}:{port}")
        with _watched(daemon) as selector:
            if selector.select(_RETRY_S):
                raise _ended(daemon)


def _readable(source: socket.socket, daemon: Daemon, deadline: float) -> None:
    with _watched(daemon) as selector:
        selector.register(source, selectors.EVENT_READ)
        remaining = deadline - time.monotonic()
        ready = selector.select(remaining) if remaining > 0 else []
    if not ready:
        raise _late(daemon, "is not ready")
    if not any(key.fileobj is source for key, _ in ready):
        raise _ended(daemon)


@contextlib.contextmanager
def _watched(daemon: Daemon) -> Iterator[selectors.BaseSelector]:
    try:
        pidfd = os.pidfd_open(daemon.pid)
    except ProcessLookupError as error:
        raise _ended(daemon) from error
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(pidfd, selectors.EVENT_READ)
            yield selector
    finally:
        os.close(pidfd)


def _late(daemon: Daemon, what: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"{daemon.name} {what}\n{daemon.tail()}", hint=daemon.log)


def _ended(daemon: Daemon) -> Unavailable:
    return Unavailable(f"{daemon.name} ended\n{daemon.tail()}", hint=daemon.log)
