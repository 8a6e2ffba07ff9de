"""A program that answers each line of JSON with one, while it runs."""

from __future__ import annotations

import json
import selectors
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from kangaroo.errors import CommandFailed, DeadlineExceeded

_PIECE = 1 << 16


class Conversation:
    """One message at a time; several threads take turns."""

    def __init__(
        self, command: Sequence[str], process: subprocess.Popen[bytes], errors: IO[bytes]
    ) -> None:
        self._command = tuple(command)
        self._process = process
        self._errors = errors
        self._turn = threading.Lock()
        self._heard = b""

    def ask(self, message: Any, *, timeout_s: float) -> Any:
        """What the program answers to `message`. Raises DeadlineExceeded, after which it is killed
        and answers no more, CommandFailed with its standard error when it has ended.
        """
        assert self._process.stdin is not None
        with self._turn:
            with suppress(BrokenPipeError):  # it has ended, which its answer says
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
                self._process.stdin.flush()
            return json.loads(self._line(timeout_s))

    def _line(self, timeout_s: float) -> bytes:
        output = self._process.stdout
        assert output is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while b"\n" not in self._heard:
                if not selector.select(max(0, deadline - time.monotonic())):
                    self._process.kill()
                    raise DeadlineExceeded(f"{self._command[0]}: no answer in {timeout_s:.0f} s")
                piece = output.read1(_PIECE)  # type: ignore[attr-defined] # a BufferedReader
                if not piece:
                    raise CommandFailed(self._command, self._process.wait(), self._said())
                self._heard += piece
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")


@contextmanager
def conversation(command: Sequence[str]) -> Iterator[Conversation]:
    """Start a program; it is killed at the end of the block."""
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors) as process,
    ):
        try:
            yield Conversation(command, process, errors)
        finally:
            process.kill()
