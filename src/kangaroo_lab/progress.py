"""Progress of something that takes minutes: which step of how many, how long, what comes next.

On a terminal a line with the running time is redrawn; elsewhere (CI, a file) a step prints one line
when it starts, one a minute, and one when it ends. A failed step prints the tail of its log.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from kangaroo.errors import CommandFailed

_TAIL_LINES = 40
_REMINDER_S = 60.0


class Steps:
    """Steps known in advance by name. Not for use by several threads.

    `with steps.step(name) as log:` runs one; `log` is the path for that step's output. A name that
    was not announced is appended. A step that raises prints its log's tail and path, once. `of`
    stands before every line: whose steps they are, where others' may come between.
    """

    def __init__(
        self, names: Sequence[str], *, logs: Path, stream: TextIO | None = None, of: str = ""
    ) -> None:
        self._prefix = f"{of} " if of else ""
        self._names = list(names)
        self._logs = logs
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._started = time.monotonic()
        self.timings: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Path]:
        if name not in self._names:
            self._names.append(name)
        log = self._logs / f"{name.replace(' ', '-').replace('/', '-')}.log"
        started = time.monotonic()
        try:
            with self._announced(name, started):
                yield log
        except BaseException as error:
            self._failed(name, started, log, error)
            raise
        self.timings[name] = time.monotonic() - started
        self._print(f"{self._label(name)}: done in {duration(self.timings[name])}")

    def _label(self, name: str) -> str:
        return f"{self._prefix}[{self._names.index(name) + 1}/{len(self._names)}] {name}"

    def _next(self, name: str) -> str:
        following = self._names[self._names.index(name) + 1 :]
        return f"next: {following[0]}" if following else "last step"

    def _print(self, text: str) -> None:
        self._stream.write(f"{text} (total {duration(time.monotonic() - self._started)})\n")
        self._stream.flush()

    @contextlib.contextmanager
    def _announced(self, name: str, started: float) -> Iterator[None]:
        if self._terminal:
            with _live_line(f"{self._label(name)}   {self._next(name)}"):
                yield
            return
        self._print(f"{self._label(name)}: started, {self._next(name)}")
        stop = threading.Event()
        ticker = threading.Thread(target=self._remind, args=(name, started, stop), daemon=True)
        ticker.start()
        try:
            yield
        finally:
            stop.set()
            ticker.join()

    def _remind(self, name: str, started: float, stop: threading.Event) -> None:
        while not stop.wait(_REMINDER_S):
            running = duration(time.monotonic() - started)
            self._print(f"{self._label(name)}: running for {running}")

    def _failed(self, name: str, started: float, log: Path, error: BaseException) -> None:
        if isinstance(error, CommandFailed) and not log.exists():
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(error.output)
        self._print(f"{self._label(name)}: FAILED after {duration(time.monotonic() - started)}")
        if log.exists():
            for line in log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]:
                self._stream.write(f"    {line}\n")
            self._stream.write(f"  the whole log: {log}\n")


@contextlib.contextmanager
def _live_line(text: str) -> Iterator[None]:
    """A redrawn line with a running clock, if rich is installed."""
    try:
        from rich.progress import (  # noqa: PLC0415 - bootstrap runs before there is a rich
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )
    except ImportError:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        progress.add_task(text, total=None)
        yield


def duration(seconds: float) -> str:
    """`4.2 s`, `47 s`, `3 min 05 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
