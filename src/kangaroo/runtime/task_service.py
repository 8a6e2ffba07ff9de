"""containerd's Task API, version 2, over a pod: protobuf in and out, nothing else.

A call that changes something runs to its end even when containerd gives up waiting; containerd then
asks again, and every method answers a repeat as containerd's own shim does.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

import kangaroo
from kangaroo.errors import InvalidRequest, KangarooError, Unsupported
from kangaroo.runtime.background import Background
from kangaroo.runtime.errors_map import to_rpc
from kangaroo.runtime.metrics import metrics
from kangaroo.runtime.pod import CreateOptions, Pod
from kangaroo.runtime.process import Process, ProcessState
from kangaroo.runtime.shared_dir import RootfsMount
from kangaroo.runtime.stdio import StdioPaths
from kangaroo.wire.aio import Handler, RpcError
from kangaroo.wire.gen import task_pb2 as task
from kangaroo.wire.gen import task_types_pb2 as types
from kangaroo.wire.status import Code

SERVICE = "containerd.task.v2.Task"

_STATUS = {
    ProcessState.CREATED: types.CREATED,
    ProcessState.RUNNING: types.RUNNING,
    ProcessState.STOPPED: types.STOPPED,
}
_LINGER_S = 15.0
_WAITING = {"Wait"}  # changes nothing and may last for ever: ends with the call
R = TypeVar("R", bound=Message)


class TaskService:
    """The handlers. `shutdown` is called when containerd wants the shim to end, `linger_s` later
    while there are containers of which it has not spoken.
    """

    def __init__(
        self,
        pod: Pod,
        background: Background,
        shutdown: Callable[[], None],
        *,
        linger_s: float = _LINGER_S,
    ) -> None:
        self._pod = pod
        self._background = background
        self._shutdown = shutdown
        self._linger_s = linger_s

    def handlers(self) -> dict[str, dict[str, Handler]]:
        """For `kangaroo.wire.aio.Server`."""
        methods: dict[str, Handler] = {
            "State": self._unary("State", task.StateRequest, self.state),
            "Create": self._unary("Create", task.CreateTaskRequest, self.create),
            "Start": self._unary("Start", task.StartRequest, self.start),
            "Delete": self._unary("Delete", task.DeleteRequest, self.delete),
            "Pids": self._unary("Pids", task.PidsRequest, self.pids),
            "Pause": self._unary("Pause", task.PauseRequest, self.pause),
            "Resume": self._unary("Resume", task.ResumeRequest, self.resume),
            "Checkpoint": self._unary("Checkpoint", task.CheckpointTaskRequest, self.checkpoint),
            "Kill": self._unary("Kill", task.KillRequest, self.kill),
            "Exec": self._unary("Exec", task.ExecProcessRequest, self.exec),
            "ResizePty": self._unary("ResizePty", task.ResizePtyRequest, self.resize_pty),
            "CloseIO": self._unary("CloseIO", task.CloseIORequest, self.close_io),
            "Update": self._unary("Update", task.UpdateTaskRequest, self.update),
            "Wait": self._unary("Wait", task.WaitRequest, self.wait),
            "Stats": self._unary("Stats", task.StatsRequest, self.stats),
            "Connect": self._unary("Connect", task.ConnectRequest, self.connect),
            "Shutdown": self._unary("Shutdown", task.ShutdownRequest, self.shutdown),
        }
        return {SERVICE: methods}

    def _unary(
        self, name: str, request_type: type[R], method: Callable[[R], Awaitable[Message]]
    ) -> Handler:
        async def run(request: R) -> Message:
            try:
                return await method(request)
            except (KangarooError, OSError) as error:
                raise to_rpc(error) from error

        async def handle(payload: bytes) -> bytes:
            try:
                request = request_type.FromString(payload)
            except DecodeError as error:
                raise RpcError(Code.INVALID_ARGUMENT, f"{name}: {error}") from error
            if name in _WAITING:
                answer = await run(request)
            else:
                answer = await self._background.complete(run(request), name=name)
            return answer.SerializeToString()

        return handle

    async def state(self, request: task.StateRequest) -> task.StateResponse:
        """A process's state; its id is the exec's, or the container's for the init."""
        container = self._pod.container(request.id)
        process = container.process(request.exec_id)
        response = task.StateResponse(
            id=process.event_id,
            exec_id=request.exec_id,
            bundle=str(container.bundle),
            pid=process.pid,
            status=self._status(process),
            stdin=process.paths.stdin,
            stdout=process.paths.stdout,
            stderr=process.paths.stderr,
            terminal=process.paths.terminal,
        )
        _fill_exit(response, process)
        return response

    async def create(self, request: task.CreateTaskRequest) -> task.CreateTaskResponse:
        """Boot the pod's sandbox or create a container in it."""
        if request.checkpoint or request.parent_checkpoint:
            raise Unsupported("restoring from a checkpoint is not supported")
        mounts = (RootfsMount(m.type, m.source, m.target, tuple(m.options)) for m in request.rootfs)
        pid = await self._pod.create(
            CreateOptions(
                container_id=request.id,
                bundle=Path(request.bundle),
                rootfs=tuple(mounts),
                paths=_paths(request),
            )
        )
        return task.CreateTaskResponse(pid=pid)

    async def start(self, request: task.StartRequest) -> task.StartResponse:
        """Run a created container or a registered exec."""
        return task.StartResponse(pid=await self._pod.start(request.id, request.exec_id))

    async def delete(self, request: task.DeleteRequest) -> task.DeleteResponse:
        """Forget an ended process. NOT_FOUND on a repeat."""
        process = await self._pod.delete(request.id, request.exec_id)
        response = task.DeleteResponse(pid=process.pid)
        _fill_exit(response, process)
        return response

    async def pids(self, request: task.PidsRequest) -> task.PidsResponse:
        """The pids in the guest."""
        pids = await self._pod.pids(request.id)
        return task.PidsResponse(processes=[types.ProcessInfo(pid=pid) for pid in pids])

    async def pause(self, request: task.PauseRequest) -> Empty:
        """Pause the whole sandbox."""
        await self._pod.pause(request.id)
        return Empty()

    async def resume(self, request: task.ResumeRequest) -> Empty:
        """Resume the whole sandbox."""
        await self._pod.resume(request.id)
        return Empty()

    async def checkpoint(self, request: task.CheckpointTaskRequest) -> Empty:
        """Not supported."""
        raise Unsupported(f"container {request.id}: checkpoints are not supported")

    async def kill(self, request: task.KillRequest) -> Empty:
        """Signal a process, or all of a container's. NOT_FOUND when it has ended."""
        await self._pod.kill(request.id, request.exec_id, request.signal, everything=request.all)
        return Empty()

    async def exec(self, request: task.ExecProcessRequest) -> Empty:
        """Register a process to start."""
        self._pod.exec(request.id, request.exec_id, _paths(request), _json("spec", request.spec))
        return Empty()

    async def resize_pty(self, request: task.ResizePtyRequest) -> Empty:
        """Set a terminal's size."""
        await self._pod.resize(
            request.id, request.exec_id, rows=request.height, columns=request.width
        )
        return Empty()

    async def close_io(self, request: task.CloseIORequest) -> Empty:
        """Let the process read end-of-file."""
        if request.stdin:
            self._pod.close_stdin(request.id, request.exec_id)
        return Empty()

    async def update(self, request: task.UpdateTaskRequest) -> Empty:
        """Change limits."""
        await self._pod.update(request.id, _json("resources", request.resources))
        return Empty()

    async def wait(self, request: task.WaitRequest) -> task.WaitResponse:
        """Return when the process has ended."""
        process = self._pod.container(request.id).process(request.exec_id)
        await process.wait()
        response = task.WaitResponse()
        _fill_exit(response, process)
        return response

    async def stats(self, request: task.StatsRequest) -> task.StatsResponse:
        """Usage, measured in the guest."""
        message = metrics(await self._pod.stats(request.id))
        stats = AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
        return task.StatsResponse(stats=stats)

    async def connect(self, request: task.ConnectRequest) -> task.ConnectResponse:
        """Who serves. A container that does not exist has pid 0."""
        try:
            pid = self._pod.container(request.id).init.pid
        except KangarooError:
            pid = 0
        return task.ConnectResponse(
            shim_pid=os.getpid(), task_pid=pid, version=kangaroo.__version__
        )

    async def shutdown(self, _request: task.ShutdownRequest) -> Empty:
        """End the shim unless it still has containers. Those that are left when the sandbox has
        been deleted have ended with it: containerd deletes them in `linger_s`, or never. It forgets
        one whose Create was answered as its own caller, kubelet, went away.
        """
        if self._pod.idle:
            self._shutdown()
        elif self._pod.over:
            self._background.spawn(self._linger(), name="linger")
        return Empty()

    async def _linger(self) -> None:
        await asyncio.sleep(self._linger_s)
        self._shutdown()

    def _status(self, process: Process) -> types.Status:
        if self._pod.paused and process.state is ProcessState.RUNNING:
            return types.PAUSED
        return _STATUS[process.state]


def _paths(request: task.CreateTaskRequest | task.ExecProcessRequest) -> StdioPaths:
    return StdioPaths(request.stdin, request.stdout, request.stderr, request.terminal)


def _fill_exit(
    response: task.StateResponse | task.DeleteResponse | task.WaitResponse, process: Process
) -> None:
    if process.exit is not None:
        response.exit_status = process.exit.status
        response.exited_at.FromNanoseconds(process.exit.at_ns)


def _json(field: str, message: AnyMessage) -> dict[str, Any]:
    """The JSON object in an Any: containerd carries the OCI types so."""
    try:
        value = json.loads(message.value)
    except ValueError as error:
        raise InvalidRequest(field, f"{message.type_url}: not JSON") from error
    if not isinstance(value, dict):
        raise InvalidRequest(field, f"{message.type_url}: not a JSON object")
    return value
