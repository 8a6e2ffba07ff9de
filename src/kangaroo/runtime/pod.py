"""A pod: one sandbox, its containers and their processes, from Create to Delete.

The task service calls it with plain values and gets plain values or `kangaroo.errors`. What a
method changes it also publishes. Every started process is ended by its watcher (`process_watch`)
alone. A sandbox ends after all of its containers, and durably: stop, flush, power off.
"""

from __future__ import annotations

import asyncio
import logging
import signal as signals
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.message import Message

from kangaroo.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    KangarooError,
    NotFound,
    Unavailable,
    Unsupported,
)
from kangaroo.runtime.agent_client import AgentClient
from kangaroo.runtime.background import Background
from kangaroo.runtime.oci import guest_process, guest_resources
from kangaroo.runtime.paths import check_id
from kangaroo.runtime.process import (
    KILLED,
    Container,
    ExecProcess,
    Exit,
    Process,
    ProcessState,
)
from kangaroo.runtime.process_watch import EXITS_TIMEOUT_S, ProcessWatch, close_io, settled
from kangaroo.runtime.shared_dir import RootfsMount
from kangaroo.runtime.spec_read import MEMBER, POD, grouping, read_spec
from kangaroo.runtime.stdio import ProcessIo, StdioPaths
from kangaroo.runtime.streams import StreamHub, StreamSet
from kangaroo.wire.gen import task_events_pb2 as task_events
from kangaroo.wire.gen import types_pb2

_LOG = logging.getLogger(__name__)

LOST = 255

# How long a killed process may take to die. One that waits in the guest's kernel for a dead NAS
# does not, and neither would the pod.
_KILL_TIMEOUT_S = 20.0
_EVENT_PAUSE_S = 1.0
_ENDING_SIGNALS = {
    signals.SIGKILL,
    signals.SIGTERM,
    signals.SIGINT,
    signals.SIGQUIT,
    signals.SIGHUP,
}


class Sandbox(Protocol):
    """What a pod needs of `kangaroo.runtime.sandbox.Sandbox`."""

    @property
    def pid(self) -> int: ...
    @property
    def agent(self) -> AgentClient: ...
    async def create_container(
        self,
        *,
        container_id: str,
        bundle: Path,
        spec: Mapping[str, Any],
        rootfs: Sequence[RootfsMount],
        stdio: StreamSet,
    ) -> int: ...
    async def remove_container(self, container_id: str) -> None: ...
    async def wait_exit(self) -> int: ...
    async def shutdown(self) -> None: ...
    async def pause(self) -> None: ...
    async def resume(self) -> None: ...
    async def volume_stats(self, path: str, timeout_s: float) -> dict[str, Any]: ...
    def streams(self) -> StreamHub: ...


class Boot(Protocol):
    """Boots the pod's sandbox from its specification."""

    def __call__(self, *, sandbox_id: str, spec: dict[str, Any]) -> Awaitable[Sandbox]: ...


@dataclass(frozen=True)
class CreateOptions:
    """What containerd says when it creates a container's task."""

    container_id: str
    bundle: Path
    rootfs: tuple[RootfsMount, ...]
    paths: StdioPaths


class Pod:
    """One shim's pod. `publish` takes an event's message; it must not block."""

    def __init__(
        self,
        boot: Boot,
        publish: Callable[[Message], None],
        background: Background,
        *,
        kill_timeout_s: float = _KILL_TIMEOUT_S,
    ) -> None:
        self._boot = boot
        self._publish = publish
        self._background = background
        self._watch = ProcessWatch(
            agent=self._agent,
            lost_status=self._lost_status,
            publish=publish,
            background=background,
            kill_timeout_s=kill_timeout_s,
        )
        self._sandbox: Sandbox | None = None
        self._containers: dict[str, Container] = {}
        self._creating: set[str] = set()
        self._given_up: set[str] = set()  # of those: containerd asked to delete them meanwhile
        self._booting: asyncio.Task[Sandbox] | None = None
        self._closing = False
        self._ending: asyncio.Task[None] | None = None
        self.paused = False
        self.over = False
        """Whether containerd has deleted the sandbox itself."""

    @property
    def idle(self) -> bool:
        """Whether the pod has no container left and none under way."""
        return not self._containers and not self._creating

    def container(self, container_id: str) -> Container:
        """Raises NotFound."""
        try:
            return self._containers[container_id]
        except KeyError:
            raise NotFound(f"no container {container_id} in this sandbox") from None

    async def create(self, options: CreateOptions) -> int:
        """Create a task: boot the sandbox for the pod's first one, otherwise a container in the
        guest.

        Returns the task's pid on the node. A failure leaves nothing, and neither does a container
        that containerd asked to delete meanwhile. Raises AlreadyExists for an id in use.
        """
        container_id = check_id(options.container_id)
        if container_id in self._containers or container_id in self._creating:
            raise AlreadyExists(f"container {container_id} already exists")
        self._creating.add(container_id)
        try:
            container = await self._create(options)
            if container_id in self._given_up:
                await self._undo(container)
                raise FailedPrecondition(f"container {container_id} was deleted while it was made")
        finally:
            self._creating.discard(container_id)
            self._given_up.discard(container_id)
        self._containers[container_id] = container
        self._publish(_create_event(options, container.init.pid))
        self._watch.begin(container, container.init)
        return container.init.pid

    async def start(self, container_id: str, exec_id: str) -> int:
        """Run a created process; its pid. Raises FailedPrecondition when it is in another state."""
        container = self.container(container_id)
        process = container.process(exec_id)
        async with process.starting:
            process.require(ProcessState.CREATED, verb="start")
            if exec_id:
                await self._start_exec(container, process)
                self._publish(
                    task_events.TaskExecStarted(
                        container_id=container_id, exec_id=exec_id, pid=process.pid
                    )
                )
                self._watch.begin(container, process)
            else:
                if not container.virtual:
                    await self._agent().start_container(container_id=container_id)
                process.enter(ProcessState.RUNNING)
                self._publish(task_events.TaskStart(container_id=container_id, pid=process.pid))
        return process.pid

    def exec(
        self, container_id: str, exec_id: str, paths: StdioPaths, spec: dict[str, Any]
    ) -> None:
        """Register one more process; `start` runs it. Raises AlreadyExists, FailedPrecondition."""
        container = self.container(container_id)
        if container.virtual:
            raise Unsupported(f"container {container_id} is the sandbox: it has no processes")
        if not exec_id:
            raise InvalidRequest("exec_id", "must not be empty")
        process = ExecProcess(container_id, check_id(exec_id), paths, spec=guest_process(spec))
        container.add(process)
        self._publish(task_events.TaskExecAdded(container_id=container_id, exec_id=exec_id))

    async def kill(self, container_id: str, exec_id: str, signal: int, *, everything: bool) -> None:
        """Signal a process. Raises NotFound when it has ended, FailedPrecondition when it never
        ran.

        The sandbox's own container ends the whole sandbox on a signal that ends processes, and
        ignores others. A process that SIGKILL does not end in time is given up: it counts as
        ended, and its remains go with the sandbox.
        """
        container = self.container(container_id)
        process = container.process(exec_id)
        if process.state is ProcessState.STOPPED:
            raise NotFound(f"{process.name} has already ended")
        if container.virtual:
            if signal in _ENDING_SIGNALS:
                self.end()
            return
        if exec_id:
            process.require(ProcessState.RUNNING, verb="signal")
        try:
            await self._agent().signal_process(
                container_id=container_id, exec_id=exec_id, signal=signal, all=everything
            )
        except DeadlineExceeded:
            # Of a guest that does not answer, too: containerd kills a pod's containers before it
            # ends the sandbox, and would do so for ever.
            if signal == signals.SIGKILL:
                process.killed.set()
            raise
        if signal == signals.SIGKILL:
            process.killed.set()

    async def delete(self, container_id: str, exec_id: str) -> Process:
        """Forget a process that has ended or never ran; with the init goes the container.

        Returns the process with its exit. Raises NotFound, FailedPrecondition when it runs. One
        that is being created is not there yet, and will not be: containerd asks so when it gave up
        waiting, or when it was restarted and does not know what became of it.
        """
        if container_id in self._creating:
            self._given_up.add(container_id)
        container = self.container(container_id)
        process = container.process(exec_id)
        process.require(ProcessState.CREATED, ProcessState.STOPPED, verb="delete")
        await close_io(process)
        if exec_id:
            await self._delete_exec(container, process)
            return process
        if process.state is ProcessState.CREATED:
            await self._discard(container)
        await self._release(container)
        if self._containers.pop(container_id, None) is not None:
            self._publish(_delete_event(process))
            self.over |= container.virtual
        return process

    async def pause(self, container_id: str) -> None:
        """Stop the sandbox's virtual CPUs: all of the pod's containers. Idempotent."""
        self.container(container_id)
        if not self.paused:
            await self._require_sandbox().pause()
            self.paused = True
        self._publish(task_events.TaskPaused(container_id=container_id))

    async def resume(self, container_id: str) -> None:
        """Let the sandbox run again. Idempotent."""
        self.container(container_id)
        if self.paused:
            await self._require_sandbox().resume()
            self.paused = False
        self._publish(task_events.TaskResumed(container_id=container_id))

    async def resize(self, container_id: str, exec_id: str, *, rows: int, columns: int) -> None:
        """Set a terminal's size. Raises FailedPrecondition when the process has ended."""
        process = self.container(container_id).process(exec_id)
        process.require(ProcessState.CREATED, ProcessState.RUNNING, verb="resize")
        if exec_id and process.state is ProcessState.CREATED:
            return  # it has no terminal yet
        await self._agent().resize_pty(
            container_id=container_id, exec_id=exec_id, rows=rows, columns=columns
        )

    def close_stdin(self, container_id: str, exec_id: str) -> None:
        """Let end-of-file through once containerd has closed its end. Idempotent."""
        process = self.container(container_id).process(exec_id)
        process.stdin_closed = True
        if process.io is not None:
            process.io.close_stdin()

    async def pids(self, container_id: str) -> list[int]:
        """The pids of a container's processes, as the guest counts them; QEMU's for the sandbox's
        own.

        Never none for a container that is there: a containerd that starts takes one without pids
        for a leak, and deletes it. So QEMU stands for processes that the guest cannot tell, being
        paused, or of which there are no more, before containerd has heard how they ended.
        """
        container = self.container(container_id)
        pids: list[int] = []
        if not container.virtual and container.init.state is not ProcessState.STOPPED:
            with suppress(KangarooError):
                pids = await self._agent().list_pids(container_id=container_id)
        return pids or [container.init.pid]

    async def stats(self, container_id: str) -> dict[str, Any]:
        """The container's figures from the guest; empty for the sandbox's own."""
        container = self.container(container_id)
        if container.virtual:
            return {}
        return await self._agent().container_stats(container_id=container_id)

    async def volume_stats(self, path: str, timeout_s: float) -> dict[str, Any]:
        """The figures of the NAS volume whose placeholder stands at `path`, from the guest."""
        return await self._require_sandbox().volume_stats(path, timeout_s)

    async def update(self, container_id: str, resources: dict[str, Any]) -> None:
        """Change a container's limits; the sandbox's own has none in the guest."""
        if not self.container(container_id).virtual:
            await self._agent().update_container(
                container_id=container_id, resources=guest_resources(resources)
            )

    def end(self) -> None:
        """Begin to end the sandbox, durably. A repeat does nothing."""
        if self._ending is None and self._sandbox is not None:
            self._ending = self._background.spawn(self._end(self._sandbox), name="end-sandbox")

    async def ended(self) -> None:
        """Wait until the sandbox, if there is one, has gone with all that it held; begin that if
        nobody did.
        """
        self.end()
        if self._ending is not None:
            await asyncio.shield(self._ending)

    async def close(self) -> None:
        """End for good: give up a boot that is under way, and then as `ended`. Nothing is created
        any more.
        """
        self._closing = True
        if self._booting is not None:
            self._booting.cancel()
            await asyncio.wait({self._booting})
        await self.ended()

    async def _end(self, sandbox: Sandbox) -> None:
        if self.paused:
            with suppress(KangarooError, OSError):
                await sandbox.resume()
            self.paused = False
        await sandbox.shutdown()

    async def _create(self, options: CreateOptions) -> Container:
        spec = read_spec(str(options.bundle))
        kind, _ = grouping(spec, options.container_id)
        process = Process(options.container_id, "", options.paths)
        container = Container(options.container_id, options.bundle, process, kind == POD)
        if self._closing or self._ending is not None:
            raise FailedPrecondition(f"cannot create {process.name}: the sandbox is ending")
        if kind != MEMBER:
            await self._boot_sandbox(options, spec)
        sandbox = self._require_sandbox()
        process.pid = sandbox.pid
        if not container.virtual:
            try:
                await self._create_in_guest(sandbox, options, spec, process)
            except BaseException:
                if kind != MEMBER:
                    await self.ended()
                raise
        return container

    async def _boot_sandbox(self, options: CreateOptions, spec: dict[str, Any]) -> None:
        if self._sandbox is not None:
            raise AlreadyExists(f"sandbox {options.container_id} is already running")
        booting = self._booting = asyncio.create_task(self._booted(options, spec), name="boot")
        try:
            sandbox = await booting
        except asyncio.CancelledError:
            if booting.cancelled() and self._closing:
                raise Unavailable("the sandbox was ended while it booted") from None
            raise
        finally:
            self._booting = None
        self._background.spawn(self._watch_machine(sandbox), name="watch-machine")
        self._background.spawn(self._watch_events(sandbox.agent), name="watch-events")

    async def _booted(self, options: CreateOptions, spec: dict[str, Any]) -> Sandbox:
        """Known from the moment it is there, so that whoever ends the pod ends it, too."""
        self._sandbox = await self._boot(sandbox_id=options.container_id, spec=spec)
        return self._sandbox

    async def _create_in_guest(
        self, sandbox: Sandbox, options: CreateOptions, spec: dict[str, Any], process: Process
    ) -> None:
        async with _stdio(sandbox, process) as streams:
            await sandbox.create_container(
                container_id=options.container_id,
                bundle=options.bundle,
                spec=spec,
                rootfs=options.rootfs,
                stdio=streams,
            )

    async def _start_exec(self, container: Container, process: Process) -> None:
        if container.init.state is not ProcessState.RUNNING:
            raise FailedPrecondition(f"container {container.container_id} is not running")
        assert isinstance(process, ExecProcess)
        sandbox = self._require_sandbox()
        async with _stdio(sandbox, process) as streams:
            await sandbox.agent.exec_process(
                container_id=process.container_id,
                exec_id=process.exec_id,
                process=process.spec,
                stdio=streams.wire,
            )
        process.pid = sandbox.pid
        process.enter(ProcessState.RUNNING)

    async def _watch_machine(self, sandbox: Sandbox) -> None:
        """When the machine is gone, wait for its processes to be told, release it, end the
        sandbox's container.
        """
        status = await sandbox.wait_exit()
        lost = self._lost_status()
        _LOG.info("machine ended status=%d asked=%s", status, self._ending is not None)
        others = [c.init for c in self._containers.values() if not c.virtual]
        await settled(others)
        with suppress(KangarooError, OSError):
            await self.ended()
        for container in self._containers.values():
            if container.virtual and container.init.state is not ProcessState.STOPPED:
                await self._watch.stop(container.init, status=lost)

    async def _watch_events(self, agent: AgentClient) -> None:
        try:
            while True:
                event = await agent.next_event()
                killed = event.get("container_id") if event.get("type") == "oom" else None
                if isinstance(killed, str) and killed in self._containers:
                    self._publish(task_events.TaskOOM(container_id=killed))
                # containerd writes each down: a hostile guest is not to have it write all the time.
                await asyncio.sleep(_EVENT_PAUSE_S)
        except KangarooError as error:
            _LOG.debug("no more events from the guest error=%s", error)

    def _lost_status(self) -> int:
        return LOST if self._ending is None else KILLED

    async def _delete_exec(self, container: Container, process: Process) -> None:
        if process.state is ProcessState.STOPPED:
            await self._delete_in_guest(process)
        else:
            process.stop(Exit.now(KILLED))
        container.execs.pop(process.exec_id, None)

    async def _discard(self, container: Container) -> None:
        """End a container that was created and never started."""
        if container.virtual:
            await self.ended()
        else:
            with suppress(KangarooError):
                await self._kill_in_guest(container)
        try:
            async with asyncio.timeout(EXITS_TIMEOUT_S):
                await container.init.wait()
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"{container.init.name} did not end within {EXITS_TIMEOUT_S:g} s of being killed"
            ) from error

    async def _undo(self, container: Container) -> None:
        """Take away a container that nobody heard of."""
        if container.virtual:
            await self.ended()
            return
        init = container.init
        with suppress(KangarooError, TimeoutError):
            await self._kill_in_guest(container)
            async with asyncio.timeout(EXITS_TIMEOUT_S):
                await self._agent().wait_process(container_id=container.container_id, exec_id="")
        await self._delete_in_guest(init)
        if init.io is not None:
            await init.io.abort()
        await self._require_sandbox().remove_container(container.container_id)

    async def _release(self, container: Container) -> None:
        """Free what the container holds in the guest and on the node; the sandbox with its own
        container.
        """
        if container.virtual:
            await self.ended()
            return
        await self._delete_in_guest(container.init)
        sandbox = self._require_sandbox()
        await sandbox.remove_container(container.container_id)
        if not any(c.virtual for c in self._containers.values()) and len(self._containers) == 1:
            await self.ended()

    async def _kill_in_guest(self, container: Container) -> None:
        await self._agent().signal_process(
            container_id=container.container_id, exec_id="", signal=signals.SIGKILL, all=True
        )

    async def _delete_in_guest(self, process: Process) -> None:
        try:
            await self._agent().delete_process(
                container_id=process.container_id, exec_id=process.exec_id
            )
        except KangarooError as error:
            _LOG.info("not deleted in the guest process=%s error=%s", process.name, error)

    def _require_sandbox(self) -> Sandbox:
        if self._sandbox is None:
            raise FailedPrecondition("the sandbox is not running")
        return self._sandbox

    def _agent(self) -> AgentClient:
        sandbox = self._require_sandbox()
        if self.paused:
            raise FailedPrecondition("the sandbox is paused")
        return sandbox.agent


@asynccontextmanager
async def _stdio(sandbox: Sandbox, process: Process) -> AsyncIterator[StreamSet]:
    """The streams by which the guest makes the process meanwhile. They are joined to its fifos once
    it is made; nothing of either is left when it fails.
    """
    paths = process.paths
    io = await ProcessIo.open(paths)
    streams = sandbox.streams().issue(
        terminal=paths.terminal,
        stdin=bool(paths.stdin),
        stdout=bool(paths.stdout),
        stderr=bool(paths.stderr),
    )
    try:
        yield streams
    except BaseException:
        streams.revoke()
        io.close()
        raise
    io.attach(streams)
    process.io = io
    if process.stdin_closed:
        io.close_stdin()


def _create_event(options: CreateOptions, pid: int) -> task_events.TaskCreate:
    paths = options.paths
    return task_events.TaskCreate(
        container_id=options.container_id,
        bundle=str(options.bundle),
        rootfs=[
            types_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options)
            for m in options.rootfs
        ],
        io=task_events.TaskIO(
            stdin=paths.stdin, stdout=paths.stdout, stderr=paths.stderr, terminal=paths.terminal
        ),
        pid=pid,
    )


def _delete_event(process: Process) -> task_events.TaskDelete:
    event = task_events.TaskDelete(container_id=process.container_id, pid=process.pid)
    if process.exit is not None:
        event.exit_status = process.exit.status
        event.exited_at.FromNanoseconds(process.exit.at_ns)
    return event
