"""A process as containerd sees it: its state, how it ended, and who waits for that. No I/O."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from signal import SIGKILL
from typing import Any

from kangaroo.errors import AlreadyExists, FailedPrecondition, NotFound
from kangaroo.runtime.stdio import ProcessIo, StdioPaths

KILLED = 128 + SIGKILL


class ProcessState(Enum):
    """The life of a process. Pausing belongs to the sandbox, not to a process."""

    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"


_TRANSITIONS = {
    ProcessState.CREATED: {ProcessState.RUNNING, ProcessState.STOPPED},
    ProcessState.RUNNING: {ProcessState.STOPPED},
    ProcessState.STOPPED: frozenset[ProcessState](),
}


@dataclass(frozen=True)
class Exit:
    """How a process ended: 128 + signal when it was killed; wall clock, nanoseconds since the
    epoch.
    """

    status: int
    at_ns: int

    @classmethod
    def now(cls, status: int) -> Exit:
        """An exit that is noticed now, because nothing says when it was."""
        return cls(status, time.time_ns())


@dataclass(eq=False)
class Process:
    """A container's init (`exec_id` "") or one more process in it."""

    container_id: str
    exec_id: str
    paths: StdioPaths
    pid: int = 0
    state: ProcessState = ProcessState.CREATED
    exit: Exit | None = None
    io: ProcessIo | None = None
    stdin_closed: bool = False
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    killed: asyncio.Event = field(default_factory=asyncio.Event)
    _exited: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def event_id(self) -> str:
        """The id that containerd's events carry: an init goes by its container's."""
        return self.exec_id or self.container_id

    @property
    def name(self) -> str:
        """For people."""
        init = f"container {self.container_id}"
        return f"process {self.exec_id} in {init}" if self.exec_id else init

    def require(self, *states: ProcessState, verb: str) -> None:
        """Raises FailedPrecondition unless the process is in one of `states`."""
        if self.state not in states:
            raise FailedPrecondition(f"cannot {verb} {self.name}: it is {self.state.value}")

    def enter(self, state: ProcessState) -> None:
        """Change the state. Raises FailedPrecondition when the table has no such transition."""
        if state not in _TRANSITIONS[self.state]:
            raise FailedPrecondition(
                f"{self.name} is {self.state.value}, it cannot be {state.value}"
            )
        self.state = state

    def stop(self, result: Exit) -> None:
        """Enter the last state and release everybody who waits."""
        self.enter(ProcessState.STOPPED)
        self.exit = result
        self._exited.set()

    async def wait(self) -> Exit:
        """Return how the process ended, once it has."""
        await self._exited.wait()
        assert self.exit is not None
        return self.exit


@dataclass(eq=False)
class ExecProcess(Process):
    """A process that `start` runs from `spec`, an OCI process."""

    spec: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Container:
    """A container of the pod; the sandbox's own has no process in the guest (`virtual`)."""

    container_id: str
    bundle: Path
    init: Process
    virtual: bool
    execs: dict[str, Process] = field(default_factory=dict)

    def process(self, exec_id: str) -> Process:
        """The init for "", otherwise the exec of that id. Raises NotFound."""
        if not exec_id:
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFound(f"no process {exec_id} in container {self.container_id}") from None

    def add(self, process: Process) -> None:
        """Add an exec. Raises AlreadyExists, FailedPrecondition when the init has ended."""
        if process.exec_id in self.execs:
            raise AlreadyExists(f"{process.name} already exists")
        if self.init.state is ProcessState.STOPPED:
            raise FailedPrecondition(f"cannot exec in container {self.container_id}: it is stopped")
        self.execs[process.exec_id] = process
