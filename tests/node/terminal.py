"""A pseudo-terminal with a program on it, as a person would have kubectl in a terminal window."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.node import child


class Terminal:
    """The person's end: type, read, resize."""

    def __init__(self, master: int, program: subprocess.Popen[bytes]) -> None:
        self._master = master
        self._program = program
        self.screen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self._master, (rows, columns))
        self._program.send_signal(signal.SIGWINCH)

    def expect(self, text: str, *, timeout_s: float = 60) -> str:
        """Read until `text` has appeared since the last `expect`. Returns what stood before it."""
        deadline = time.monotonic() + timeout_s
        reader = child.read_until(self._master, deadline)
        while text not in self.screen:
            piece = next(reader, None)
            if piece is None:
                raise AssertionError(f"no {text!r} in {timeout_s} s; the screen: {self.screen!r}")
            self.screen += piece.decode(errors="replace")
        before, _, self.screen = self.screen.partition(text)
        return before

    def wait(self, *, timeout_s: float = 60) -> int:
        """The exit status of the program."""
        return self._program.wait(timeout_s)


@contextmanager
def opened(argv: Sequence[str], *, rows: int = 24, columns: int = 80) -> Iterator[Terminal]:
    """Run `argv` on a terminal of the given size. It is killed at the end of the block, if it
    still runs."""
    master, slave = pty.openpty()
    try:
        termios.tcsetwinsize(master, (rows, columns))
        with subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave) as program:
            os.close(slave)
            try:
                yield Terminal(master, program)
            finally:
                program.kill()
    finally:
        os.close(master)
