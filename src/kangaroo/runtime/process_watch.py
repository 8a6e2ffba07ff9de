"""How a pod's processes end.

Every started process has one watcher, which alone ends it: drain the output, as far as its reader
is quick, then the status, then who waits, then the exit event. A container's init waits for the
execs that end with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

from google.protobuf.message import Message

from kangaroo.errors import KangarooError
from kangaroo.runtime.agent_client import AgentClient
from kangaroo.runtime.background import Background
from kangaroo.runtime.process import KILLED, Container, Exit, Process, ProcessState
from kangaroo.wire.gen import task_events_pb2 as task_events

_LOG = logging.getLogger(__name__)

EXITS_TIMEOUT_S = 15.0
_DRAIN_TIMEOUT_S = 10.0


class ProcessWatch:
    """The watchers of one pod.

    `agent` is asked for the guest each time, and raises KangarooError while it cannot be reached;
    `lost_status` is the exit status of a process whose end the guest did not tell. A process that
    has not ended `kill_timeout_s` after it was `killed` is given up: it counts as killed, and what
    it still says is dropped.
    """

    def __init__(
        self,
        *,
        agent: Callable[[], AgentClient],
        lost_status: Callable[[], int],
        publish: Callable[[Message], None],
        background: Background,
        kill_timeout_s: float,
    ) -> None:
        self._agent = agent
        self._lost_status = lost_status
        self._publish = publish
        self._background = background
        self._kill_timeout_s = kill_timeout_s

    def begin(self, container: Container, process: Process) -> None:
        """Watch a process that is there, once. Of the sandbox's own container there is none."""
        if not container.virtual:
            name = f"watch-{process.event_id}"
            self._background.spawn(self._watch(container, process), name=name)

    async def stop(self, process: Process, *, status: int, result: Exit | None = None) -> None:
        """End a process by `result`, or without one by `status` now, and tell everybody."""
        async with process.starting:  # an exit is never told before its start
            process.stop(result or Exit.now(status))
            self._publish(_exit_event(process))

    async def _watch(self, container: Container, process: Process) -> None:
        result = await self._exit_of(process)
        if process.io is not None:
            ended = process.io.abort() if result is None else process.io.finish(_DRAIN_TIMEOUT_S)
            await ended
        if process is container.init and result is not None:
            await settled(container.execs.values())
        await self.stop(process, status=KILLED, result=result)

    async def _exit_of(self, process: Process) -> Exit | None:
        """How the process ended; None for one that was killed and does not end."""
        ending = asyncio.ensure_future(self._exit_in_guest(process))
        overdue = asyncio.ensure_future(self._killed_in_vain(process))
        try:
            await asyncio.wait({ending, overdue}, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                return await ending
            _LOG.error(
                "killed process does not end, giving it up process=%s after_s=%g",
                process.name,
                self._kill_timeout_s,
            )
            return None
        finally:
            ending.cancel()
            overdue.cancel()

    async def _exit_in_guest(self, process: Process) -> Exit:
        try:
            ended = await self._agent().wait_process(
                container_id=process.container_id, exec_id=process.exec_id
            )
        except KangarooError as error:
            _LOG.warning("process lost process=%s error=%s", process.name, error)
            return Exit.now(self._lost_status())
        return Exit(ended.exit_code, ended.exited_at_ns)

    async def _killed_in_vain(self, process: Process) -> None:
        """Return when the process has had its time after SIGKILL."""
        await process.killed.wait()
        await asyncio.sleep(self._kill_timeout_s)


async def close_io(process: Process) -> None:
    """Give the reader of a process that has ended a last time for what it has not taken."""
    if process.state is ProcessState.STOPPED and process.io is not None:
        await process.io.finish(_DRAIN_TIMEOUT_S)
        await process.io.abort()


async def settled(processes: Iterable[Process]) -> None:
    """Wait, for EXITS_TIMEOUT_S at most, until those that run have ended and been told."""
    running = [p for p in processes if p.state is ProcessState.RUNNING]
    with suppress(TimeoutError):
        async with asyncio.timeout(EXITS_TIMEOUT_S):
            for process in running:
                await process.wait()


def _exit_event(process: Process) -> task_events.TaskExit:
    assert process.exit is not None
    event = task_events.TaskExit(
        container_id=process.container_id,
        id=process.event_id,
        pid=process.pid,
        exit_status=process.exit.status,
    )
    event.exited_at.FromNanoseconds(process.exit.at_ns)
    return event
