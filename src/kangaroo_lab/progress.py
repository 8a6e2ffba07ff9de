"""Progress of something that takes minutes: which step of how many, how long, what comes next.

On a terminal a line with the running time is redrawn; elsewhere (CI, a file) a step prints one line
when it starts, one a minute, and one when it ends. A step in which a command failed prints the tail
of what that said, and where all of it is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from kangaroo.errors import CommandFailed, KangarooError

_TAIL_LINES = 40
_REMINDER_S = 60.0


class Steps:
    """Steps known in advance by name. Not for use by several threads.

    `with steps.step(name):` runs one. A name that was not announced is appended. What an error
    holds beyond one line is written to the step's log in `logs`, its tail is printed, and the error
    is `shown`; the log of an earlier failure goes. `of` stands before every line: whose steps they
    are, where others' may come between.
    """

    def __init__(
        self, names: Sequence[str], *, logs: Path, stream: TextIO | None = None, of: str = ""
    ) -> None:
        self._prefix = f"{of} " if of else ""
        self._names = list(names)
        self._logs = logs
        self._stream = stream or sys.stderr
        # Bootstrap runs before there is a rich.
        self._redraws = self._stream.isatty() and importlib.util.find_spec("rich") is not None
        self._started = time.monotonic()
        self.timings: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        if name not in self._names:
            self._names.append(name)
        started = time.monotonic()
        try:
            with self._announced(name, started):
                yield
        except BaseException as error:
            self._failed(name, started, error)
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
        if self._redraws:
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

    def _failed(self, name: str, started: float, error: BaseException) -> None:
        self._print(f"{self._label(name)}: FAILED after {duration(time.monotonic() - started)}")
        log = self._logs / f"{name.replace(' ', '-').replace('/', '-')}.log"
        text = _details(error)
        for line in text.splitlines()[-_TAIL_LINES:]:
            self._stream.write(f"    {line}\n")
        if isinstance(error, KangarooError):
            error.shown = bool(text)
        try:
            self._keep(log, text)
        except OSError as problem:  # a full disk is what the step may have failed for
            self._stream.write(f"  not all of it could be kept: {problem}\n")

    def _keep(self, log: Path, text: str) -> None:
        if not text:
            log.unlink(missing_ok=True)
            return
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"{text}\n")
        self._stream.write(f"  the whole log: {log}\n")


def _details(error: BaseException) -> str:
    """What an error holds beyond its one line."""
    if isinstance(error, CommandFailed):
        return error.log
    return str(error) if "\n" in str(error) else ""


@contextlib.contextmanager
def _live_line(text: str) -> Iterator[None]:
    """A line that is redrawn, with a running clock."""
    from rich.progress import (  # noqa: PLC0415 - see Steps
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

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
