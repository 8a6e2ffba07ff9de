"""The Task API end to end in memory: a ttrpc client, the real service, pod, events and stdio, and a
fake guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from tests.protocol.fake_guest import FakeSandbox, Log, booter

from kangaroo.errors import Unavailable
from kangaroo.runtime import process_watch
from kangaroo.runtime.background import Background
from kangaroo.runtime.events import EventPublisher
from kangaroo.runtime.pod import Pod
from kangaroo.runtime.spec_read import CONTAINER_TYPE, SANDBOX_ID
from kangaroo.runtime.task_service import SERVICE, TaskService
from kangaroo.runtime.volume_service import VolumeService
from kangaroo.wire.aio import Client, RpcError, Server
from kangaroo.wire.envelope import Status
from kangaroo.wire.gen import event_service_pb2, metrics_pb2, task_events_pb2
from kangaroo.wire.gen import task_pb2 as task
from kangaroo.wire.gen import task_types_pb2 as types
from kangaroo.wire.status import Code

POD = "pod-1"
EVENT_SERVICE = "containerd.services.events.ttrpc.v1.Events"


class Containerd:
    """containerd's side: the Task client and the event service."""

    def __init__(self, directory: Path, client: Client, shim: Shim) -> None:
        self.directory = directory
        self.client = client
        self.shim = shim

    async def call(self, method: str, request: Message, answer: type[Message]) -> Any:
        payload = await self.client.call(SERVICE, method, request.SerializeToString(), timeout_s=10)
        return answer.FromString(payload)

    async def create(self, container_id: str, kind: str | None = "container", **io: Any) -> Any:
        bundle = self.directory / container_id
        bundle.mkdir(exist_ok=True)
        annotations = {CONTAINER_TYPE: kind, SANDBOX_ID: POD} if kind else {}
        (bundle / "config.json").write_text(json.dumps({"annotations": annotations}))
        request = task.CreateTaskRequest(id=container_id, bundle=str(bundle), **io)
        return await self.call("Create", request, task.CreateTaskResponse)

    async def start(self, container_id: str, exec_id: str = "") -> Any:
        request = task.StartRequest(id=container_id, exec_id=exec_id)
        return await self.call("Start", request, task.StartResponse)

    async def run(self, container_id: str, kind: str | None = "container", **io: Any) -> None:
        await self.create(container_id, kind, **io)
        await self.start(container_id)

    async def exec(self, container_id: str, exec_id: str, **io: Any) -> None:
        request = task.ExecProcessRequest(id=container_id, exec_id=exec_id, **io)
        request.spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process"
        request.spec.value = b'{"args": ["ls"], "apparmorProfile": "x"}'
        await self.call("Exec", request, Empty)

    async def kill(self, container_id: str, signal: int = 9, exec_id: str = "") -> None:
        request = task.KillRequest(id=container_id, exec_id=exec_id, signal=signal)
        await self.call("Kill", request, Empty)

    async def wait(self, container_id: str, exec_id: str = "") -> int:
        request = task.WaitRequest(id=container_id, exec_id=exec_id)
        return int((await self.call("Wait", request, task.WaitResponse)).exit_status)

    async def delete(self, container_id: str, exec_id: str = "") -> Any:
        request = task.DeleteRequest(id=container_id, exec_id=exec_id)
        return await self.call("Delete", request, task.DeleteResponse)

    async def state(self, container_id: str, exec_id: str = "") -> Any:
        request = task.StateRequest(id=container_id, exec_id=exec_id)
        return await self.call("State", request, task.StateResponse)

    def fifo(self, name: str) -> str:
        path = str(self.directory / name)
        os.mkfifo(path)
        return path


@dataclass
class Shim:
    """What the test sees of the shim's inside."""

    sandboxes: list[FakeSandbox]
    log: Log
    shutdown: asyncio.Event
    publisher: EventPublisher

    @property
    def sandbox(self) -> FakeSandbox:
        return self.sandboxes[-1]

    async def events(self) -> list[str]:
        """Everything published so far, in containerd's order: topic, id, status."""
        assert await self.publisher.flush(5)
        return [entry for entry in self.log if entry.startswith("/tasks/")]


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Containerd]:
    log = Log()
    sandboxes: list[FakeSandbox] = []
    background = Background()
    address = directory / "events.sock"
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(address))
        listener.listen()
        event_server = Server({EVENT_SERVICE: {"Forward": _record(log)}})
        receiving = tasks.create_task(event_server.serve(listener))
        publisher = EventPublisher(str(address), "k8s.io")
        background.spawn(publisher.run(), name="events")
        shutdown = asyncio.Event()
        boot = booter(tasks, sandboxes, log)
        pod = Pod(boot, publisher.publish, background, kill_timeout_s=0.5)
        service = TaskService(pod, background, shutdown.set, linger_s=0.1)
        near, far = socket.socketpair()
        server = Server({**service.handlers(), **VolumeService(pod).handlers()})
        serving = tasks.create_task(server.serve_connection(far))
        client = await Client.from_socket(near)
        try:
            yield Containerd(directory, client, Shim(sandboxes, log, shutdown, publisher))
        finally:
            await client.aclose()
            await serving
            await pod.ended()
            await background.aclose()
            receiving.cancel()


def _record(log: Log) -> Callable[[bytes], Awaitable[bytes]]:
    async def forward(payload: bytes) -> bytes:
        envelope = event_service_pb2.ForwardRequest.FromString(payload).envelope
        assert envelope.namespace == "k8s.io"
        kind = getattr(task_events_pb2, envelope.event.type_url.rpartition(".")[2])
        event = kind.FromString(envelope.event.value)
        name = getattr(event, "id", "") or getattr(event, "exec_id", "") or event.container_id
        status = f" {event.exit_status}" if hasattr(event, "exit_status") else ""
        log.append(f"{envelope.topic} {name}{status}")
        return b""

    return forward


Scenario = Callable[[Containerd], Awaitable[None]]


def play(directory: Path, scenario: Scenario) -> None:
    async def main() -> None:
        async with running(directory) as containerd:
            await scenario(containerd)

    asyncio.run(main())


async def code_of(call: Awaitable[Any]) -> Code:
    try:
        await call
    except RpcError as error:
        return Code(error.code)
    return Code.OK


def test_a_pod_lives_and_ends_in_order(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        assert (await c.create(POD, "sandbox")).pid == 4242
        assert (await c.start(POD)).pid == 4242
        await c.run("app")
        assert (await c.state("app")).status == types.RUNNING
        c.shim.sandbox.guest.exit("app", code=3)
        assert await c.wait("app") == 3
        assert (await c.delete("app")).exit_status == 3
        assert c.shim.sandbox.removed == ["app"]
        await c.kill(POD, 9)
        assert await c.wait(POD) == 137
        await c.delete(POD)
        await c.call("Shutdown", task.ShutdownRequest(id=POD), Empty)
        assert c.shim.shutdown.is_set()
        assert await c.shim.events() == [
            f"/tasks/create {POD}",
            f"/tasks/start {POD}",
            "/tasks/create app",
            "/tasks/start app",
            "/tasks/exit app 3",
            "/tasks/delete app 3",
            f"/tasks/exit {POD} 137",
            f"/tasks/delete {POD} 137",
        ]
        assert c.shim.log.index("power-off") < c.shim.log.index(f"/tasks/exit {POD} 137")

    play(tmp_path, scenario)


def test_ending_the_sandbox_ends_its_containers_first(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        await c.run("app")
        await c.kill(POD, 15)
        assert [await c.wait("app"), await c.wait(POD)] == [137, 137]
        events = await c.shim.events()
        assert events[-2:] == ["/tasks/exit app 137", f"/tasks/exit {POD} 137"]

    play(tmp_path, scenario)


def test_a_container_without_a_pod_is_its_own_sandbox(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run("solo", None)
        assert await code_of(c.delete("solo")) == Code.FAILED_PRECONDITION
        await c.kill("solo", 15)
        assert await c.wait("solo") == 143
        await c.delete("solo")
        assert c.shim.log[-1] != "flush"
        assert "power-off" in c.shim.log

    play(tmp_path, scenario)


def test_a_crash_of_the_machine_ends_everything_with_255(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        await c.run("app")
        await c.exec("app", "shell")
        await c.start("app", "shell")
        c.shim.sandbox.crash()
        codes = await asyncio.gather(c.wait(POD), c.wait("app"), c.wait("app", "shell"))
        assert list(codes) == [255, 255, 255]
        assert (await c.shim.events())[-3:] == [
            "/tasks/exit shell 255",
            "/tasks/exit app 255",
            f"/tasks/exit {POD} 255",
        ]
        await c.delete("app")
        await c.delete(POD)
        assert c.shim.sandbox.removed == ["app"]

    play(tmp_path, scenario)


def test_exec_runs_and_is_forgotten(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        await c.run("app")
        await c.exec("app", "ls")
        assert await code_of(c.exec("app", "ls")) == Code.ALREADY_EXISTS
        assert (await c.state("app", "ls")).status == types.CREATED
        assert await code_of(c.kill("app", 9, "ls")) == Code.FAILED_PRECONDITION
        await c.start("app", "ls")
        assert await code_of(c.start("app", "ls")) == Code.FAILED_PRECONDITION
        call = c.shim.sandbox.guest.calls[-2:]
        assert {"args": ["ls"]} in [message.get("process") for _, message in call]
        c.shim.sandbox.guest.exit("app", "ls", 1)
        assert await c.wait("app", "ls") == 1
        assert (await c.state("app", "ls")).exit_status == 1
        assert await code_of(c.kill("app", 9, "ls")) == Code.NOT_FOUND
        assert (await c.delete("app", "ls")).exit_status == 1
        assert await code_of(c.state("app", "ls")) == Code.NOT_FOUND
        assert (await c.shim.events())[4:] == [
            "/tasks/exec-added ls",
            "/tasks/exec-started ls",
            "/tasks/exit ls 1",
        ]

    play(tmp_path, scenario)


def test_a_container_that_containerd_forgot_does_not_keep_the_shim(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        await c.create("app")
        await c.kill(POD, 9)
        await c.wait(POD)
        await c.delete(POD)
        await c.call("Shutdown", task.ShutdownRequest(id=POD), Empty)
        assert not c.shim.shutdown.is_set()
        await asyncio.wait_for(c.shim.shutdown.wait(), 10)

    play(tmp_path, scenario)


def test_refusals(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        assert await code_of(c.create("app")) == Code.FAILED_PRECONDITION  # before its sandbox
        await c.run(POD, "sandbox")
        await c.create("app")
        assert await code_of(c.create("app")) == Code.ALREADY_EXISTS
        assert await code_of(c.exec("app", "x")) == Code.OK
        assert await code_of(c.start("app", "x")) == Code.FAILED_PRECONDITION  # init not running
        assert await code_of(c.exec(POD, "x")) == Code.UNIMPLEMENTED
        assert await code_of(c.state("other")) == Code.NOT_FOUND
        checkpoint = task.CheckpointTaskRequest(id="app")
        assert await code_of(c.call("Checkpoint", checkpoint, Empty)) == Code.UNIMPLEMENTED
        await c.call("Shutdown", task.ShutdownRequest(id=POD), Empty)
        assert not c.shim.shutdown.is_set()

    play(tmp_path, scenario)


def test_a_created_container_is_killed_and_deleted(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        await c.create("app")
        assert (await c.delete("app")).exit_status == 137
        assert await code_of(c.delete("app")) == Code.NOT_FOUND
        events = await c.shim.events()
        assert events[-2:] == ["/tasks/exit app 137", "/tasks/delete app 137"]

    play(tmp_path, scenario)


def test_a_process_that_outlives_sigkill_is_given_up(tmp_path: Path) -> None:
    """As one does that waits in the guest's kernel for a dead NAS. A signal that may be ignored
    begins nothing.
    """

    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        await c.run("app", stdout=_fifo_with_reader(c, "out"))
        await c.exec("app", "shell")
        await c.start("app", "shell")
        c.shim.sandbox.guest.ignored_signals = {15, 9}
        await c.kill("app", 15)
        await asyncio.sleep(0.7)
        assert (await c.state("app")).status == types.RUNNING
        await c.kill("app", 9)
        assert await c.wait("app") == 137
        c.shim.sandbox.guest.failures["DeleteProcess"] = Status(Code.FAILED_PRECONDITION, "runs")
        assert (await c.delete("app")).exit_status == 137
        assert c.shim.sandbox.removed == ["app"]
        c.shim.sandbox.guest.ignored_signals.clear()
        await c.kill(POD, 9)
        assert await c.wait(POD) == 137
        events = await c.shim.events()
        assert events.count("/tasks/exit app 137") == 1

    play(tmp_path, scenario)


def test_sigkill_of_a_guest_that_does_not_answer_gives_the_process_up(tmp_path: Path) -> None:
    """containerd says so of the containers first, and of the sandbox only when they have ended."""

    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        await c.run("app", stdout=_fifo_with_reader(c, "out"))
        c.shim.sandbox.guest.failures["SignalProcess"] = Status(Code.DEADLINE_EXCEEDED, "late")
        with pytest.raises(RpcError, match="late"):
            await c.kill("app", 9)
        assert await c.wait("app") == 137
        await c.kill(POD, 9)
        assert await c.wait(POD) == 137

    play(tmp_path, scenario)


def test_a_failed_create_leaves_the_id_free_and_says_why(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        guest = c.shim.sandbox.guest
        guest.failures["CreateContainer"] = Status(Code.NOT_FOUND, "no such file: /data")
        with pytest.raises(RpcError, match="no such file: /data"):
            await c.create("app", stdout=_fifo_with_reader(c, "out"))
        assert c.shim.sandbox.hub.issued[-1].revoked
        guest.failures.clear()
        await c.run("app")

    play(tmp_path, scenario)


def _fifo_with_reader(c: Containerd, name: str) -> str:
    path = c.fifo(name)
    READERS.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    return path


READERS: list[int] = []


@pytest.fixture(autouse=True)
def _close_readers() -> Any:
    yield
    while READERS:
        os.close(READERS.pop())


def test_output_is_in_the_fifo_before_the_exit_is_told(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        out, err = _fifo_with_reader(c, "out"), _fifo_with_reader(c, "err")
        await c.run("app", stdout=out, stderr=err)
        streams = c.shim.sandbox.hub.issued[-1]
        streams.guest_end("stdout").sendall(b"hello\n")
        streams.guest_end("stderr").sendall(b"oops\n")
        streams.close_output()
        c.shim.sandbox.guest.exit("app")
        assert await c.wait("app") == 0
        assert [os.read(fd, 100) for fd in READERS] == [b"hello\n", b"oops\n"]
        assert os.read(READERS[0], 100) == b""  # the shim has closed its ends

    play(tmp_path, scenario)


def test_output_waits_for_a_slow_reader_and_is_not_lost(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        await c.run("app", stdout=_fifo_with_reader(c, "out"))
        far = c.shim.sandbox.hub.issued[-1].guest_end("stdout")
        sent = os.urandom(1 << 20)
        sending = asyncio.create_task(asyncio.to_thread(_send_and_close, far, sent))
        assert await _slowly_read(len(sent)) == sent
        await sending

    play(tmp_path, scenario)


def test_an_exit_does_not_wait_for_a_slow_reader_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of `kubectl exec POD -- cat big.log | less`."""
    monkeypatch.setattr(process_watch, "_DRAIN_TIMEOUT_S", 0.3)

    async def scenario(c: Containerd) -> None:
        sent = os.urandom(400_000)
        sending = await _ended_while_it_sends(c, _send_and_close, sent)
        await asyncio.sleep(1)
        assert await _slowly_read(len(sent)) == sent
        await sending
        await c.delete("app")
        assert os.read(READERS[0], 1) == b""

    play(tmp_path, scenario)


@pytest.mark.parametrize("bytes_sent", [0, 400_000])
def test_whoever_keeps_output_back_keeps_no_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_sent: int
) -> None:
    """A guest that says nothing more and does not close, or nobody who reads."""
    monkeypatch.setattr(process_watch, "_DRAIN_TIMEOUT_S", 0.3)

    async def scenario(c: Containerd) -> None:
        sending = await _ended_while_it_sends(c, _send, bytes(bytes_sent))
        assert (await c.delete("app")).exit_status == 0
        await sending
        while os.read(READERS[0], 1 << 20):  # until its end: the shim has closed
            pass

    play(tmp_path, scenario)


async def _ended_while_it_sends(
    c: Containerd, send: Callable[[socket.socket, bytes], None], data: bytes
) -> asyncio.Task[None]:
    """A container whose exit is told; the sending of what it wrote goes on."""
    await c.run(POD, "sandbox")
    await c.run("app", stdout=_fifo_with_reader(c, "out"))
    far = c.shim.sandbox.hub.issued[-1].guest_end("stdout")
    sending = asyncio.create_task(asyncio.to_thread(send, far, data))
    c.shim.sandbox.guest.exit("app")
    assert await c.wait("app") == 0
    return sending


def _send(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # as far as somebody takes it
        sock.sendall(data)


async def _slowly_read(count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        try:
            received += os.read(READERS[0], 4096)
        except BlockingIOError:
            await asyncio.sleep(0)
    return bytes(received)


def _send_and_close(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.close()


def test_a_reader_may_go_and_come_back(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        out = _fifo_with_reader(c, "out")
        await c.run("app", stdout=out)
        os.close(READERS.pop())
        streams = c.shim.sandbox.hub.issued[-1]
        streams.guest_end("stdout").sendall(b"while containerd was away")
        streams.close_output()
        reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
        READERS.append(reader)
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(reader, readable.set)
        await readable.wait()
        loop.remove_reader(reader)
        assert os.read(reader, 100) == b"while containerd was away"

    play(tmp_path, scenario)


def test_stdin_ends_with_close_io_and_not_before(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        path = c.fifo("in")
        await c.run("app", stdin=path)
        far = c.shim.sandbox.hub.issued[-1].guest_end("stdin")
        far.setblocking(False)
        loop = asyncio.get_running_loop()
        for words in (b"one", b"two"):
            writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            os.write(writer, words)
            assert await loop.sock_recv(far, 100) == words
            os.close(writer)  # containerd restarts: no end-of-file
        request = task.CloseIORequest(id="app", stdin=True)
        await c.call("CloseIO", request, Empty)
        assert await loop.sock_recv(far, 100) == b""

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("binary:///bin/log", Code.UNIMPLEMENTED),
        ("file:///tmp/x", Code.UNIMPLEMENTED),
        ("/nowhere/fifo", Code.NOT_FOUND),
    ],
)
def test_stdio_that_is_no_fifo_is_refused(tmp_path: Path, uri: str, code: Code) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        assert await code_of(c.create("app", stdout=uri)) == code
        assert not c.shim.sandbox.guest.processes

    play(tmp_path, scenario)


def test_pause_stops_calls_into_the_guest(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        await c.run("app")
        await c.call("Pause", task.PauseRequest(id="app"), Empty)
        assert (await c.state("app")).status == types.PAUSED
        assert await code_of(c.kill("app")) == Code.FAILED_PRECONDITION
        await c.call("Resume", task.ResumeRequest(id="app"), Empty)
        await c.kill("app")
        assert await c.wait("app") == 137
        assert [entry for entry in c.shim.log if not entry.startswith("/")] == ["pause", "resume"]

    play(tmp_path, scenario)


def test_figures_of_the_guest_become_cgroup_metrics(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        await c.run("app")
        answer = await c.call("Stats", task.StatsRequest(id="app"), task.StatsResponse)
        assert answer.stats.type_url == "io.containerd.cgroups.v2.Metrics"
        metrics = metrics_pb2.Metrics.FromString(answer.stats.value)
        assert (metrics.cpu.usage_usec, metrics.memory.usage, metrics.pids.limit) == (
            5000,
            4096,
            100,
        )
        assert (metrics.memory.anon, metrics.memory.inactive_file, metrics.memory.file) == (
            10,
            20,
            0,
        )
        assert metrics.memory.usage_limit == 2**64 - 1
        assert metrics.memory_events.oom_kill == 2
        pids = await c.call("Pids", task.PidsRequest(id="app"), task.PidsResponse)
        assert [process.pid for process in pids.processes] == [1, 7]

    play(tmp_path, scenario)


def test_out_of_memory_is_told(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        await c.run("app")
        c.shim.sandbox.guest.events.put_nowait({"type": "oom", "container_id": "stranger"})
        c.shim.sandbox.guest.events.put_nowait({"type": "oom", "container_id": "app"})
        c.shim.sandbox.guest.exit("app", code=137)
        await c.wait("app")
        await c.shim.log.until("/tasks/oom app")
        assert "/tasks/oom stranger" not in c.shim.log

    play(tmp_path, scenario)


def test_update_passes_what_the_guest_has(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        await c.run("app")
        request = task.UpdateTaskRequest(id="app")
        request.resources.value = b'{"cpu": {"shares": 5, "cpus": "0-3"}}'
        await c.call("Update", request, Empty)
        method, message = c.shim.sandbox.guest.calls[-1]
        assert (method, message["resources"]) == ("UpdateContainer", {"cpu": {"shares": 5}})

    play(tmp_path, scenario)


def test_a_create_that_containerd_gives_up_is_carried_out(tmp_path: Path) -> None:
    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        near, far = c.shim.sandbox.hub, asyncio.Event()
        issue = near.issue

        def slow_issue(**wanted: bool) -> Any:
            far.set()
            return issue(**wanted)

        near.issue = slow_issue  # type: ignore[method-assign]
        creating = asyncio.create_task(c.create("app"))
        await far.wait()
        creating.cancel()
        await c.shim.log.until("/tasks/create app")
        assert (await c.state("app")).status == types.CREATED

    play(tmp_path, scenario)


def test_a_boot_that_fails_says_why_and_may_be_repeated(tmp_path: Path) -> None:
    async def main() -> None:
        background = Background()
        attempts: list[str] = []

        async def boot(*, sandbox_id: str, spec: Any) -> Any:
            attempts.append(sandbox_id)
            raise Unavailable("the guest did not connect", hint="console: panic")

        pod = Pod(boot, lambda event: None, background)
        service = TaskService(pod, background, lambda: None)
        (tmp_path / "config.json").write_text("{}")
        request = task.CreateTaskRequest(id="solo", bundle=str(tmp_path)).SerializeToString()
        for _ in range(2):
            with pytest.raises(RpcError, match=r"did not connect \(console: panic\)") as caught:
                await service.handlers()[SERVICE]["Create"](request)
            assert caught.value.code == Code.ABORTED
        assert attempts == ["solo", "solo"]
        assert pod.idle

    asyncio.run(main())


def test_what_is_deleted_while_it_is_created_is_taken_away(tmp_path: Path) -> None:
    """A containerd that was restarted meanwhile finds no process of it, and deletes it."""

    async def scenario(c: Containerd) -> None:
        await c.run(POD, "sandbox")
        issued, go_on = asyncio.Event(), asyncio.Event()
        sandbox = c.shim.sandbox
        create_container = sandbox.create_container

        async def slow(**request: Any) -> int:
            issued.set()
            await go_on.wait()
            return await create_container(**request)

        sandbox.create_container = slow  # type: ignore[method-assign]
        creating = asyncio.create_task(c.create("app"))
        await issued.wait()
        pids = c.call("Pids", task.PidsRequest(id="app"), task.PidsResponse)
        assert await code_of(pids) == Code.NOT_FOUND
        assert await code_of(c.delete("app")) == Code.NOT_FOUND
        go_on.set()
        assert await code_of(creating) == Code.FAILED_PRECONDITION
        assert sandbox.guest.processes == {}
        assert sandbox.removed == ["app"]
        assert "/tasks/create app" not in await c.shim.events()
        await c.create("app")

    play(tmp_path, scenario)


def test_a_container_that_is_there_has_pids(tmp_path: Path) -> None:
    """containerd takes one without for a leak when it starts."""

    async def scenario(c: Containerd) -> None:
        async def pids(container_id: str) -> list[int]:
            request = task.PidsRequest(id=container_id)
            answer = await c.call("Pids", request, task.PidsResponse)
            return [process.pid for process in answer.processes]

        await c.run(POD, "sandbox")
        await c.run("app")
        await c.call("Pause", task.PauseRequest(id="app"), Empty)
        assert await pids("app") == await pids(POD) == [4242]
        await c.call("Resume", task.ResumeRequest(id="app"), Empty)
        assert await pids("app") == [1, 7]
        c.shim.sandbox.guest.exit("app", code=3)
        await c.wait("app")
        assert await pids("app") == [4242]
        assert (await c.delete("app")).exit_status == 3

    play(tmp_path, scenario)


def test_a_boot_is_given_up_when_the_shim_ends(tmp_path: Path) -> None:
    async def main() -> None:
        background = Background()
        booting, released = asyncio.Event(), asyncio.Event()

        async def boot(*, sandbox_id: str, spec: Any) -> Any:
            booting.set()
            try:
                await asyncio.Event().wait()
            finally:
                released.set()

        pod = Pod(boot, lambda event: None, background)
        service = TaskService(pod, background, lambda: None)
        (tmp_path / "config.json").write_text("{}")
        request = task.CreateTaskRequest(id="solo", bundle=str(tmp_path)).SerializeToString()
        creating = asyncio.ensure_future(service.handlers()[SERVICE]["Create"](request))
        await booting.wait()
        await pod.close()
        assert released.is_set()
        with pytest.raises(RpcError, match="ended while it booted"):
            await creating
        with pytest.raises(RpcError, match="the sandbox is ending"):
            await service.handlers()[SERVICE]["Create"](request)
        await background.aclose()

    asyncio.run(main())
