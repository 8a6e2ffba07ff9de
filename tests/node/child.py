"""A program on this machine that a test listens to: read with a deadline, and killed with the block
that it was started in.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Child:
    """A program that runs. Its standard output is read once, by `pieces` or by `lines`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def tell(self, line: str) -> None:
        """Write to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()

    def pieces(self, *, timeout_s: float) -> Iterator[bytes]:
        """What it prints, as it comes, until its end or the deadline."""
        assert self._process.stdout is not None
        return read_until(self._process.stdout.fileno(), time.monotonic() + timeout_s)

    def lines(self, *, timeout_s: float) -> Iterator[str]:
        """The same by whole lines, each without its end."""
        text = b""
        for piece in self.pieces(timeout_s=timeout_s):
            *whole, text = (text + piece).split(b"\n")
            yield from (line.decode() for line in whole)

    def end_input(self) -> None:
        """Close its standard input. A repeat does nothing."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self, *, timeout_s: float) -> int:
        """Its exit status. Raises TimeoutExpired."""
        return self._process.wait(timeout_s)


@contextmanager
def started(argv: Sequence[str], *, spoken_to: bool = False) -> Iterator[Child]:
    """Start a program; with `spoken_to` its standard input is the test's."""
    stdin = subprocess.PIPE if spoken_to else subprocess.DEVNULL
    with subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE) as process:
        try:
            yield Child(process)
        finally:
            process.kill()


def read_until(fd: int, deadline: float) -> Iterator[bytes]:
    """What can be read from `fd` until its end or the deadline (monotonic)."""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and selector.select(left):
            try:
                piece = os.read(fd, 65536)
            except (
                OSError
            ):  # a pty whose other side has closed reads as EIO, which is its end of file
                return
            if not piece:
                return
            yield piece
