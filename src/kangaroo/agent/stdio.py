"""Streams between a process in the guest and the host: one vsock connection each, opened with a
token.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable

from kangaroo.agent.loop import READ, WRITE, Loop

_CHUNK_BYTES = 1 << 16

Dial = Callable[[], socket.socket]


class Output:
    """Copies a pipe or a terminal to the host, a buffer at a time, until all writers are gone or
    `finish`.

    When the host is gone it keeps reading, so that the process is not stopped by a full pipe.
    """

    def __init__(self, loop: Loop, source: int, sock: socket.socket | None) -> None:
        self._loop = loop
        self._source = source
        self._sock = sock
        self._pending = b""
        self._finishing = False
        os.set_blocking(source, False)
        if sock is not None:
            sock.setblocking(False)
        loop.watch(source, READ, self._on_readable)

    def finish(self) -> None:
        """The process has exited: send what the pipe still holds, then end. Idempotent."""
        self._finishing = True
        if self._source >= 0 and not self._pending:
            self._on_readable()

    def _on_readable(self) -> None:
        while not self._pending:
            try:
                self._pending = os.read(self._source, _CHUNK_BYTES)
            except BlockingIOError:
                if self._finishing:
                    self._close()
                return
            except OSError:  # EIO: the last user of the terminal is gone
                self._close()
                return
            if not self._pending:
                self._close()
                return
            self._send()
            if not self._finishing:
                return  # others may have something to say

    def _on_writable(self) -> None:
        self._send()
        if self._pending or self._source < 0:
            return
        if self._sock is not None:
            self._loop.unwatch(self._sock.fileno())
        self._loop.watch(self._source, READ, self._on_readable)
        if self._finishing:
            self._on_readable()

    def _send(self) -> None:
        if self._sock is None:
            self._pending = b""
            return
        try:
            self._pending = self._pending[self._sock.send(self._pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self._pending = b""
            self._host_gone()
            return
        if self._pending:
            self._loop.unwatch(self._source)
            self._loop.watch(self._sock.fileno(), WRITE, self._on_writable)

    def _host_gone(self) -> None:
        self._drop_socket()

    def _drop_socket(self) -> None:
        if self._sock is not None:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _close(self) -> None:
        self._loop.unwatch(self._source)
        os.close(self._source)
        self._source = -1
        if self._sock is not None:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        self._drop_socket()


class Input:
    """Copies from the host to a pipe or a terminal; the host's end-of-file closes a pipe."""

    def __init__(self, loop: Loop, sock: socket.socket, sink: int) -> None:
        self._loop = loop
        self._sock = sock
        self._sink = sink
        self._pending = b""
        self._closed = False
        os.set_blocking(sink, False)
        sock.setblocking(False)
        loop.watch(sock.fileno(), READ, self._on_readable)

    def close(self) -> None:
        """Stop and close. Idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.unwatch(self._sock.fileno())
            self._loop.unwatch(self._sink)
            self._sock.close()
            os.close(self._sink)

    def _on_readable(self) -> None:
        try:
            self._pending = self._sock.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._pending = b""
        if not self._pending:
            self.close()
            return
        self._write()

    def _write(self) -> None:
        try:
            self._pending = self._pending[os.write(self._sink, self._pending) :]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more
            self.close()
            return
        if self._pending:
            self._loop.unwatch(self._sock.fileno())
            self._loop.watch(self._sink, WRITE, self._write)
        else:
            self._loop.unwatch(self._sink)
            self._loop.watch(self._sock.fileno(), READ, self._on_readable)


class Streams:
    """The stdio of one process, in the guest and towards the host."""

    def __init__(self, loop: Loop, dial: Dial, stdio: dict[str, str | None]) -> None:
        self._loop = loop
        self._sockets = {
            name: announce(dial, token)
            for name, token in stdio.items()
            if name != "terminal" and token is not None
        }
        self.terminal = bool(stdio["terminal"])
        self._master = -1
        self._outputs: list[Output] = []
        self._input: Input | None = None
        self._child_ends: list[int] = []

    def child_descriptors(self) -> tuple[int, int, int]:
        """What the starting program gets: pipes, or nothing when a terminal comes later."""
        stdin, stdout, stderr = (self._child_end(name) for name in ("stdin", "stdout", "stderr"))
        return stdin, stdout, stderr

    def _child_end(self, name: str) -> int:
        if self.terminal or name not in self._sockets:
            mode = os.O_RDONLY if name == "stdin" else os.O_WRONLY
            ours, theirs = -1, os.open("/dev/null", mode | os.O_CLOEXEC)
        elif name == "stdin":
            theirs, ours = os.pipe2(os.O_CLOEXEC)
            self._input = Input(self._loop, self._sockets[name], ours)
        else:
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            self._outputs.append(Output(self._loop, ours, self._sockets[name]))
        self._child_ends.append(theirs)
        return theirs

    def close_child_ends(self) -> None:
        """Once the program runs: only it shall hold them."""
        while self._child_ends:
            os.close(self._child_ends.pop())

    def attach_terminal(self, master: int) -> None:
        """Take over the terminal of the process."""
        self._master = master
        if "stdin" in self._sockets:
            self._input = Input(self._loop, self._sockets["stdin"], os.dup(master))
        output = self._sockets.get("stdout")
        self._outputs.append(Output(self._loop, os.dup(master), output))

    def resize(self, rows: int, columns: int) -> bool:
        """Set the terminal's size; False when there is no terminal."""
        if self._master < 0:
            return False
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        return True

    def finish(self) -> None:
        """The process has exited: drain, then close. Idempotent."""
        self.close_child_ends()
        if self._input is not None:
            self._input.close()
        for output in self._outputs:
            output.finish()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def abort(self) -> None:
        """The process never ran."""
        self.finish()
        for sock in self._sockets.values():
            sock.close()


class ConsoleSocket:
    """The socket on which crun hands over a terminal (OCI runtime, `--console-socket`)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(1)
        self._listener.setblocking(False)

    def receive(self) -> int:
        """The terminal's master; crun sent it before it exited. Raises OSError."""
        connection, _ = self._listener.accept()
        with connection:
            _, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(struct.calcsize("i")))
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors = array.array("i", data)
                os.set_inheritable(descriptors[0], False)
                return descriptors[0]
        raise OSError("crun sent no terminal")

    def close(self) -> None:
        self._listener.close()
        os.unlink(self.path)


def announce(dial: Dial, token: str) -> socket.socket:
    """A connection to the host that has shown its token. Raises OSError."""
    sock = dial()
    sock.sendall(token.encode() + b"\n")
    return sock
