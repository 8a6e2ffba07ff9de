"""A guest in memory: the agent's end of the control connection, with the real `ServerConnection`.

Processes are entries of a table; the test ends them. Stdio streams are socket pairs that the test
holds the far end of.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kangaroo.agent import requests
from kangaroo.errors import NotFound
from kangaroo.runtime.agent_client import AgentClient
from kangaroo.wire.agent_protocol import SERVICE, Method, encode
from kangaroo.wire.connection import RequestReceived, ServerConnection
from kangaroo.wire.envelope import Status
from kangaroo.wire.status import Code

Key = tuple[str, str]


@dataclass
class GuestProcess:
    """One process of the fake guest."""

    started: bool = False
    exited: asyncio.Future[int] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    signals: list[int] = field(default_factory=list)


class FakeAgent:
    """Answers the agent protocol. `ignored_signals` are recorded and do not end a process;
    `behind_ns` is how far the guest's clock is behind, `clock_held_up_s` how late it is told.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._connection = ServerConnection()
        self.processes: dict[Key, GuestProcess] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.ignored_signals: set[int] = set()
        self.behind_ns = 0
        self.clock_held_up_s = 0.0
        self.failures: dict[str, Status] = {}
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._tasks = asyncio.TaskGroup()

    async def serve(self) -> None:
        """Answer until the runtime closes the connection."""
        loop = asyncio.get_running_loop()
        async with self._tasks:
            while data := await loop.sock_recv(self._sock, 65536):
                for request in self._connection.receive(data):
                    self._tasks.create_task(self._answer(request))
            raise asyncio.CancelledError

    def die(self) -> None:
        """What the kernel does with the connection when the machine ends."""
        self._sock.shutdown(socket.SHUT_RDWR)

    def exit(self, container_id: str, exec_id: str = "", code: int = 0) -> None:
        """End a process."""
        future = self.processes[container_id, exec_id].exited
        if not future.done():
            future.set_result(code)

    async def _answer(self, request: RequestReceived) -> None:
        assert request.service == SERVICE
        message = requests.read(request.method, request.payload)
        self.calls.append((request.method, message))
        failure = self.failures.get(request.method)
        if failure is None:
            try:
                answer = await self._method(Method(request.method), message)
                data = self._connection.respond(request.stream_id, encode(answer))
            except KeyError:
                failure = Status(Code.NOT_FOUND, "no such process")
        if failure is not None:
            data = self._connection.fail(request.stream_id, failure)
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def _method(self, method: Method, message: dict[str, Any]) -> dict[str, Any]:
        key = (message.get("container_id", ""), message.get("exec_id", ""))
        if method in (Method.CREATE_CONTAINER, Method.EXEC_PROCESS):
            self.processes[key] = GuestProcess(started=method is Method.EXEC_PROCESS)
            return {"pid": 100 + len(self.processes)}
        if method is Method.WAIT_PROCESS:
            code = await asyncio.shield(self.processes[key].exited)
            return {"exit_code": code, "exited_at_ns": time.time_ns()}
        if method is Method.NEXT_EVENT:
            return await self.events.get()
        if method is Method.READ_CLOCK:
            read = {"time_ns": time.time_ns() - self.behind_ns}
            await asyncio.sleep(self.clock_held_up_s)
            return read
        self._change(method, key, message)
        return ANSWERS.get(method, {})

    def _change(self, method: Method, key: Key, message: dict[str, Any]) -> None:
        match method:
            case Method.START_CONTAINER:
                self.processes[key].started = True
            case Method.SIGNAL_PROCESS:
                self._signal(key, message["signal"])
            case Method.DELETE_PROCESS:
                del self.processes[key]
            case Method.ADJUST_CLOCK if not message["interval_s"]:
                self.behind_ns -= message["offset_ns"]
            case Method.SHUTDOWN:
                for name, process in self.processes.items():
                    if not process.exited.done():
                        self._signal(name, 9)

    def _signal(self, key: Key, signal: int) -> None:
        process = self.processes[key]
        if process.exited.done():
            raise KeyError(key)
        process.signals.append(signal)
        if signal not in self.ignored_signals:
            process.exited.set_result(128 + signal)


STATS = {
    "cpu": {"usage_us": 5000, "user_us": 3000, "system_us": 2000, "nr_periods": 1},
    "memory": {
        "current": 4096,
        "max": None,
        "stat": {"anon": 10, "inactive_file": 20, "unknown_figure": 1, "file": -1},
        "events": {"oom_kill": 2},
    },
    "pids": {"current": 3, "max": 100},
}
ANSWERS: dict[Method, dict[str, Any]] = {
    Method.SET_SYSCTLS: {"refused": {}},
    Method.LIST_PIDS: {"pids": [1, 7]},
    Method.CONTAINER_STATS: STATS,
    Method.SHUTDOWN: {"volumes": []},
    Method.VOLUME_STATS: {
        "total_bytes": 500,
        "free_bytes": 300,
        "available_bytes": 200,
        "total_inodes": 50,
        "free_inodes": 40,
        "mountstats": "",
    },
}
# Where the placeholder of the guest's one NAS volume stands on the node.
PLACEHOLDER = "/var/lib/kubelet/pods/1/mount"


class Log(list[str]):
    """What happened, in order; `until` waits for an entry."""

    def __init__(self) -> None:
        super().__init__()
        self._grown = asyncio.Event()

    def append(self, entry: str) -> None:
        super().append(entry)
        self._grown.set()

    async def until(self, entry: str) -> None:
        while entry not in self:
            self._grown.clear()
            await self._grown.wait()


class FakeStream:
    """A stdio stream: awaitable like the real one; `far` is the guest's end."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)

    def __await__(self) -> Any:
        async def ready() -> socket.socket:
            return self.near

        return ready().__await__()


class FakeStreams:
    """What `StreamHub.issue` returns."""

    def __init__(self, *, terminal: bool, stdin: bool, stdout: bool, stderr: bool) -> None:
        self.stdin = FakeStream() if stdin else None
        self.stdout = FakeStream() if stdout else None
        self.stderr = FakeStream() if stderr and not terminal else None
        self.wire = {"terminal": terminal, "stdin": None, "stdout": None, "stderr": None}
        self.revoked = False

    def guest_end(self, name: str) -> socket.socket:
        """The far end of "stdin", "stdout" or "stderr"."""
        stream: FakeStream = getattr(self, name)
        return stream.far

    def revoke(self) -> None:
        self.revoked = True
        self.close()

    def close(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.near.close()
                stream.far.close()

    def close_output(self) -> None:
        """What the agent does when the process's pipes are drained."""
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.far.close()


class FakeHub:
    def __init__(self) -> None:
        self.issued: list[FakeStreams] = []

    def issue(self, **wanted: bool) -> FakeStreams:
        streams = FakeStreams(**wanted)
        self.issued.append(streams)
        return streams


class FakeSandbox:
    """A sandbox without a machine: the real agent client against the fake agent."""

    pid = 4242

    def __init__(self, agent: AgentClient, guest: FakeAgent, log: Log) -> None:
        self.agent = agent
        self.guest = guest
        self.log = log
        self.hub = FakeHub()
        self.removed: list[str] = []
        self._ended = asyncio.Event()

    def streams(self) -> Any:
        return self.hub

    async def create_container(
        self, *, container_id: str, bundle: Path, spec: Any, rootfs: Any, stdio: Any
    ) -> int:
        return await self.agent.create_container(
            container_id=container_id, spec=dict(spec), stdio=stdio.wire, volumes=[]
        )

    async def remove_container(self, container_id: str) -> None:
        self.removed.append(container_id)

    async def wait_exit(self) -> int:
        await self._ended.wait()
        return 0

    async def shutdown(self) -> None:
        if not self._ended.is_set():
            self.log.append("flush")
            await self.agent.shutdown(timeout_s=5)
            await self.agent.power_off()
            self.log.append("power-off")
        self._ended.set()
        await self.agent.aclose()
        for streams in self.hub.issued:
            streams.close()

    async def volume_stats(self, path: str, timeout_s: float) -> dict[str, Any]:
        if path != PLACEHOLDER:
            raise NotFound(f"no NAS volume of {path}")
        return await self.agent.volume_stats(volume_id="nas", timeout_s=timeout_s)

    async def pause(self) -> None:
        self.log.append("pause")

    async def resume(self) -> None:
        self.log.append("resume")

    def crash(self) -> None:
        """The machine dies without being asked."""
        self._ended.set()
        self.guest.die()


def booter(tasks: asyncio.TaskGroup, made: list[FakeSandbox], log: Log) -> Callable[..., Any]:
    """A `Boot` that makes fake sandboxes."""

    async def boot(*, sandbox_id: str, spec: Any) -> FakeSandbox:
        near, far = socket.socketpair()
        guest = FakeAgent(far)
        tasks.create_task(_serve(guest, far))
        agent = await AgentClient.connect(near, timeout_s=5)
        sandbox = FakeSandbox(agent, guest, log)
        made.append(sandbox)
        return sandbox

    return boot


async def _serve(guest: FakeAgent, sock: socket.socket) -> None:
    try:
        await guest.serve()
    except* (asyncio.CancelledError, OSError):
        pass
    finally:
        sock.close()
