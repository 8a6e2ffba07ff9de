"""Child processes with a deadline, each the leader of its own session and process group.

Past the deadline the whole group is killed, grandchildren included. A child that cannot die
(uninterruptible sleep on a dead server) is reported as left behind instead of being waited for. One
`_Child` holds what both drivers share; `run` drives it from asyncio, `run_sync` from a selector.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kangaroo.errors import CommandFailed, DeadlineExceeded
from kangaroo.linux import pidfd

if TYPE_CHECKING:
    import asyncio

_log = logging.getLogger(__name__)

OUTPUT_LIMIT_BYTES = 1 << 20
_CHUNK_BYTES = 65536
# How long output may still come after the child ended: a daemon that it started may hold the pipe
# for ever.
_DRAIN_TIMEOUT_S = 0.5
# How long a killed child may take to die before it is left behind.
_KILL_TIMEOUT_S = 2.0

# Killed but not dead: kept so that a later run reaps them.
_left_behind: list[subprocess.Popen[bytes]] = []


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    input: str | None = None,  # noqa: A002 - the name that subprocess uses
    cwd: str | os.PathLike[str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> str:
    """Run a command to its end and return its standard output.

    With `on_line` each line of standard output is handed over as it comes and none is kept, and
    `timeout_s` is how long the command may say nothing: for work that takes as long as it takes
    while it goes on.

    `env` replaces the environment; without it the child gets ours with LC_ALL=C. Each output stream
    is kept up to OUTPUT_LIMIT_BYTES, of standard error its end; the rest is read and dropped.
    Raises CommandFailed (non-zero), DeadlineExceeded (the group was killed), OSError (it could not
    be started). Cancellation kills the group and propagates.
    """
    import asyncio  # noqa: PLC0415 - 40 ms that run_sync does not pay

    loop = asyncio.get_running_loop()
    with _Child(argv, env=env, input=input, cwd=cwd, on_line=on_line) as child:
        changed = asyncio.Event()

        def watch(fd: int, handle: Callable[[], bool]) -> Callable[[], None]:
            def ready() -> None:
                if not handle():
                    loop.remove_reader(fd)
                    loop.remove_writer(fd)
                    child.close(fd)
                changed.set()

            return ready

        def until(done: Callable[[], bool], timeout_s: float) -> Awaitable[bool]:
            return _until(child, changed, done, timeout_s)

        for fd, event, handle in child.handlers():
            add = loop.add_writer if event == selectors.EVENT_WRITE else loop.add_reader
            add(fd, watch(fd, handle))
        try:
            if not await until(child.ended, timeout_s):
                child.kill()
                await until(child.ended, _KILL_TIMEOUT_S)
                raise child.deadline_exceeded(timeout_s)
            await until(child.drained, _DRAIN_TIMEOUT_S)
        except asyncio.CancelledError:
            child.kill()
            await until(child.ended, _KILL_TIMEOUT_S)
            raise
        finally:
            for fd, _, _ in child.handlers():
                loop.remove_reader(fd)
                loop.remove_writer(fd)
        return child.result()


async def _until(
    child: _Child, changed: asyncio.Event, done: Callable[[], bool], timeout_s: float
) -> bool:
    """Whether it was done within `timeout_s`, of which every line begins a new one."""
    import asyncio  # noqa: PLC0415 - as above

    loop = asyncio.get_running_loop()
    lines = child.lines
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s) as deadline:
            while not done():
                changed.clear()
                await changed.wait()
                if child.lines != lines:
                    lines = child.lines
                    deadline.reschedule(loop.time() + timeout_s)
    return done()


def run_sync(
    argv: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    input: str | None = None,  # noqa: A002 - the name that subprocess uses
    cwd: str | os.PathLike[str] | None = None,
) -> str:
    """`run` for code without an event loop; the same contract."""
    with (
        _Child(argv, env=env, input=input, cwd=cwd) as child,
        selectors.DefaultSelector() as selector,
    ):
        for fd, event, handle in child.handlers():
            selector.register(fd, event, handle)

        def until(done: Callable[[], bool], timeout_s: float) -> bool:
            deadline = time.monotonic() + timeout_s
            while not done():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                for key, _ in selector.select(remaining):
                    if not key.data():
                        selector.unregister(key.fd)
                        child.close(key.fd)
            return True

        try:
            if not until(child.ended, timeout_s):
                child.kill()
                until(child.ended, _KILL_TIMEOUT_S)
                raise child.deadline_exceeded(timeout_s)
            until(child.drained, _DRAIN_TIMEOUT_S)
        except KeyboardInterrupt:
            child.kill()
            raise
        return child.result()


class _Child:
    """A started command, its pidfd and its pipes. A handler returns whether its descriptor is still
    wanted.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None,
        input: str | None,  # noqa: A002
        cwd: str | os.PathLike[str] | None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        reap_left_behind()
        self.argv = tuple(argv)
        self.lines = 0  # handed over so far
        self._on_line = on_line
        _log.debug("run argv=%s", shlex.join(self.argv))
        self._input = memoryview((input or "").encode())
        self._process = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ, LC_ALL="C") if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
            bufsize=0,
        )
        self._pidfd = os.pidfd_open(self._process.pid)
        self._ended = False
        self._output: dict[int, bytearray] = {}
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdout = self._process.stdout.fileno()
        self._stderr = self._process.stderr.fileno()
        self._open = {self._stdout, self._stderr}
        for fd in self._open:
            os.set_blocking(fd, False)
            self._output[fd] = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        os.close(self._pidfd)
        if self._process.poll() is None:
            self.kill()
            _left_behind.append(self._process)

    def handlers(self) -> list[tuple[int, int, Callable[[], bool]]]:
        """What to watch: descriptor, selector event, what to call when it is ready."""
        watched: list[tuple[int, int, Callable[[], bool]]] = [
            (self._pidfd, selectors.EVENT_READ, self._on_end),
            (self._stdout, selectors.EVENT_READ, lambda: self._on_output(self._stdout)),
            (self._stderr, selectors.EVENT_READ, lambda: self._on_output(self._stderr)),
        ]
        if self._process.stdin is not None and not self._process.stdin.closed:
            stdin = self._process.stdin.fileno()
            os.set_blocking(stdin, False)
            watched.append((stdin, selectors.EVENT_WRITE, self._on_input))
        return watched

    def close(self, fd: int) -> None:
        """The driver no longer watches `fd`: close it when it is standard input, so the child sees
        its end.
        """
        stdin = self._process.stdin
        if stdin is not None and not stdin.closed and stdin.fileno() == fd:
            stdin.close()

    def ended(self) -> bool:
        return self._ended

    def drained(self) -> bool:
        return not self._open

    def kill(self) -> None:
        """SIGKILL to the group. The leader is not reaped yet, so its id still names this group."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def deadline_exceeded(self, timeout_s: float) -> DeadlineExceeded:
        """The error for a child that was killed past its deadline."""
        text = (self._text(self._stderr) + self._text(self._stdout)).strip()
        hint = None
        if not self._ended:
            hint = f"process {self._process.pid} does not die (uninterruptible) and was left behind"
        message = f"{shlex.join(self.argv)}: not done within {timeout_s:g} s"
        return DeadlineExceeded(f"{message}: {text}" if text else message, hint=hint)

    def result(self) -> str:
        """Standard output of a child that ended, or its CommandFailed."""
        status = self._process.wait()
        stdout = self._text(self._stdout)
        if status != 0:
            raise CommandFailed(self.argv, status, self._text(self._stderr), stdout)
        return stdout

    def _text(self, fd: int) -> str:
        return self._output[fd].decode(errors="replace")

    def _on_end(self) -> bool:
        self._ended = True
        return False

    def _on_output(self, fd: int) -> bool:
        try:
            chunk = os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            return True
        kept = self._output[fd]
        if fd == self._stderr:  # why it failed stands last
            kept += chunk
            del kept[:-OUTPUT_LIMIT_BYTES]
        else:
            kept += chunk[: OUTPUT_LIMIT_BYTES - len(kept)]
        if self._on_line is not None and fd == self._stdout:
            self._hand_over(self._on_line, kept)
        if not chunk:
            self._open.discard(fd)
        return bool(chunk)

    def _hand_over(self, on_line: Callable[[str], None], kept: bytearray) -> None:
        *whole, rest = bytes(kept).split(b"\n")
        kept[:] = rest
        self.lines += len(whole)
        for line in whole:
            on_line(line.decode(errors="replace"))

    def _on_input(self) -> bool:
        assert self._process.stdin is not None
        try:
            written = os.write(self._process.stdin.fileno(), self._input)
        except BlockingIOError:
            return True
        except BrokenPipeError:
            written = len(self._input)
        self._input = self._input[written:]
        return bool(self._input)


def ended(pid: int, timeout_s: float = 0.0) -> bool:
    """Whether the process is gone or goes within `timeout_s`. A zombie is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return pidfd.ended(descriptor, timeout_s)
    finally:
        os.close(descriptor)


def reap_left_behind() -> list[int]:
    """Reap killed children that died late; the ids of those that still live."""
    _left_behind[:] = [process for process in _left_behind if process.poll() is None]
    return [process.pid for process in _left_behind]
