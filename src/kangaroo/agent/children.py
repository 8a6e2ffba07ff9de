"""Child processes of PID 1: spawning, deadlines, and reaping everything that dies in the guest."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kangaroo.agent import log
from kangaroo.agent.loop import READ, Future, Loop
from kangaroo.errors import CommandFailed, DeadlineExceeded

_OUTPUT_LIMIT_BYTES = 1 << 20
_BEYOND_DESCRIPTORS = 1 << 20
_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    # crun copies itself to memory and starts anew, so that no container can write to its file,
    # unless this is set and it finds itself on a read-only file system, as it does here.
    "_LIBCONTAINER_CLONED_BINARY": "1",
}


class Exit(NamedTuple):
    """How a process ended: its exit code, 128 + signal when it was killed, and the wall clock."""

    code: int
    time_ns: int


class Child(NamedTuple):
    """A running child; `exited` becomes its `Exit`."""

    pid: int
    exited: Future


class Launch:
    """The start of a container process. `exits` are those of unknown processes since it began; what
    ended before has left its id to others.
    """

    def __init__(self) -> None:
        self.exits: dict[int, Exit] = {}


class Children:
    """Starts children and reaps: PID 1 inherits every orphan, container processes among them."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[int, Future] = {}
        self._launches: list[Launch] = []
        self._wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        loop.watch(self._wakeup, READ, self._on_signal)

    async def run(self, argv: tuple[str, ...], *, timeout_s: float, content: bytes = b"") -> str:
        """Run to the end with `content` as its input; return what it wrote.

        Raises CommandFailed with the output, DeadlineExceeded after killing it, OSError when it
        cannot be started.
        """
        source, output = _memory_file(content), _memory_file()
        try:
            child = self.spawn(argv, stdio=(source, output, output))
            end = await self.wait(child, argv, timeout_s)
            text = _content(output).decode(errors="replace")
        finally:
            os.close(source)
            os.close(output)
        if end.code != 0:
            raise CommandFailed(tuple(argv), end.code, text)
        return text

    async def wait(self, child: Child, argv: Sequence[str], timeout_s: float) -> Exit:
        """The end of a child of ours. Past the deadline its process group is killed:
        DeadlineExceeded.
        """
        if not await self._loop.within(child.exited, timeout_s):
            _kill_group(child.pid)
            raise DeadlineExceeded(f"{' '.join(argv)}: not done within {timeout_s:g} s")
        end: Exit = child.exited.result()
        return end

    def spawn(self, argv: tuple[str, ...], *, stdio: tuple[int, int, int]) -> Child:
        """Start `argv` in a session of its own with its stdio. Raises OSError."""
        log.debug("spawn", argv=" ".join(argv))
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(stdio)]
        pid = os.posix_spawn(
            argv[0],
            argv,
            _ENVIRONMENT,
            file_actions=actions,
            setsid=True,
            setsigdef=(signal.SIGPIPE, signal.SIGCHLD),
        )
        return Child(pid, self._expect(pid))

    async def call(self, function: Callable[[], Any], *, what: str, timeout_s: float) -> Any:
        """Run `function` in a forked child and return what it returns, through JSON.

        For system calls that may never come back: PID 1 must not make them itself. Raises the
        child's OSError as it was, DeadlineExceeded after killing the child.
        """
        output = _memory_file()
        try:
            pid = os.fork()
            if pid == 0:
                _child_main(function, output)
            await self.wait(Child(pid, self._expect(pid)), (what,), timeout_s)
            outcome = json.loads(_content(output) or b"{}")
        finally:
            os.close(output)
        if "value" in outcome:
            return outcome["value"]
        if outcome.get("errno"):
            raise OSError(outcome["errno"], os.strerror(outcome["errno"]), outcome["filename"])
        raise CommandFailed((what,), 1, outcome.get("text", "died without a word"))

    def launch_begins(self) -> Launch:
        """From now on remember exits of unknown processes: one may be a container process whose id
        is not read yet.
        """
        launch = Launch()
        self._launches.append(launch)
        return launch

    def launch_ends(self, launch: Launch) -> None:
        self._launches.remove(launch)

    def adopt(self, pid: int, launch: Launch) -> Child:
        """A process that a child of ours started and left to us during `launch`."""
        future = self._expect(pid)
        end = launch.exits.pop(pid, None)
        if end is not None:
            self._waiting.pop(pid, None)
            future.set(end)
        return Child(pid, future)

    def _expect(self, pid: int) -> Future:
        future = self._waiting[pid] = Future()
        return future

    def _on_signal(self) -> None:
        while True:
            try:
                if len(os.read(self._wakeup, 4096)) < 4096:
                    break
            except BlockingIOError:
                break
        self.reap()

    def reap(self) -> None:
        """Collect every child that has died."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            end = Exit(code if code >= 0 else 128 - code, time.time_ns())
            future = self._waiting.pop(pid, None)
            if future is not None:
                future.set(end)
                continue
            for launch in self._launches:
                launch.exits[pid] = end


def _child_main(function: Callable[[], Any], output: int) -> None:
    """The forked child: never returns, never unwinds into the parent's frames."""
    try:
        signal.set_wakeup_fd(-1)
        # One that waits for a dead server for ever holds no stream of a container open.
        os.closerange(3, output)
        os.closerange(output + 1, _BEYOND_DESCRIPTORS)
        os.setsid()
        try:
            outcome: dict[str, Any] = {"value": function()}
        except OSError as error:
            outcome = {"errno": error.errno, "filename": error.filename, "text": str(error)}
        except BaseException as error:
            outcome = {"text": repr(error)}
        os.write(output, json.dumps(outcome).encode())
    finally:
        os._exit(0)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        # A forked child that has not called setsid yet has no group of its own.
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _memory_file(content: bytes = b"") -> int:
    fd = os.memfd_create("kangaroo", os.MFD_CLOEXEC)
    if content:
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _content(fd: int) -> bytes:
    return os.pread(fd, _OUTPUT_LIMIT_BYTES, 0)
