"""The agent, for real: containers by crun, streams, terminals, signals, exits, volumes' places."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.host.agent_in_namespace import Agent, AgentError, Streams, container_root, running, spec
from tests.host.stuck_mount import stuck_mount

from kangaroo.agent.service import CONTAINERS_DIRECTORY
from kangaroo.wire.agent_protocol import PROTOCOL_VERSION, Method
from kangaroo.wire.status import Code
from kangaroo_lab import artefacts
from kangaroo_lab.enclosure import enclosed


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest image's root as a directory."""
    image = artefacts.guest_image() / "rootfs.erofs"
    place = tmp_path_factory.mktemp("guest")
    argv = ["fsck.erofs", f"--extract={place}/root", "--overwrite", "/image"]
    subprocess.run(
        enclosed(
            artefacts.host_tools(), argv, binds={place: str(place)}, read_only={image: "/image"}
        ),
        check=True,
        capture_output=True,
    )
    return place / "root"


@pytest.fixture
def agent(unpacked: Path, tmp_path: Path) -> Iterator[Agent]:
    root = tmp_path / "root"
    shutil.copytree(unpacked, root, symlinks=True)
    log = tmp_path / "agent.log"
    try:
        with running(root, log) as agent:
            yield agent
    finally:
        print(log.read_text())  # pytest shows it when the test fails


def create(
    agent: Agent, *arguments: str, streams: Streams | None = None, **changes: Any
) -> dict[str, Any]:
    """Create a container "c" that runs `arguments`."""
    root = container_root(agent.root, "c-root")
    streams = streams or Streams()
    volumes = changes.pop("volumes", [])
    call = agent.send(
        Method.CREATE_CONTAINER,
        wait_s=changes.pop("wait_s", 0),
        container_id="c",
        spec=spec(root, *arguments, **changes),
        stdio=streams.wire,
        volumes=volumes,
    )
    streams.accept(agent)
    return agent.answer(call)


def start(agent: Agent) -> None:
    agent.call(Method.START_CONTAINER, container_id="c")


def wait(agent: Agent, exec_id: str = "") -> int:
    answer = agent.call(Method.WAIT_PROCESS, container_id="c", exec_id=exec_id)
    assert answer["exited_at_ns"] > 0
    return int(answer["exit_code"])


def execute(
    agent: Agent, exec_id: str, streams: Streams, *arguments: str, wait_s: float = 0
) -> int:
    process = {
        "args": list(arguments),
        "env": ["PATH=/bin"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
    }
    call = agent.send(
        Method.EXEC_PROCESS,
        wait_s=wait_s,
        container_id="c",
        exec_id=exec_id,
        process=process,
        stdio=streams.wire,
    )
    streams.accept(agent)
    return int(agent.answer(call)["pid"])


def hello(agent: Agent, protocol: int = PROTOCOL_VERSION) -> dict[str, Any]:
    return agent.call(
        Method.HELLO, protocol=protocol, sandbox_id="s", hostname="pod", time_ns=_now_ns()
    )


def _now_ns() -> int:
    import time

    return time.time_ns()


def test_hello_tells_versions_and_refuses_another_protocol(agent: Agent) -> None:
    assert hello(agent)["protocol"] == PROTOCOL_VERSION
    with pytest.raises(AgentError, match="speaks agent protocol 99") as refused:
        hello(agent, 99)
    assert refused.value.code == Code.FAILED_PRECONDITION


def test_request_with_an_unknown_key_is_refused(agent: Agent) -> None:
    with pytest.raises(AgentError, match="colour") as refused:
        agent.call(Method.POWER_OFF, colour="red")
    assert refused.value.code == Code.INVALID_ARGUMENT


def test_container_runs_and_its_streams_end(agent: Agent) -> None:
    streams = Streams("stdin", "stdout", "stderr")
    pid = create(agent, "sh", "-c", "cat; echo oops >&2; exit 7", streams=streams)["pid"]
    assert pid > 1
    start(agent)
    streams["stdin"].sendall(b"to the container\n")
    streams["stdin"].shutdown(socket.SHUT_WR)
    assert streams.read("stdout") == b"to the container\n"
    assert streams.read("stderr") == b"oops\n"
    assert wait(agent) == 7
    agent.call(Method.DELETE_PROCESS, container_id="c", exec_id="")
    with pytest.raises(AgentError) as gone:
        agent.call(Method.LIST_PIDS, container_id="c")
    assert gone.value.code == Code.NOT_FOUND


def test_output_beyond_a_pipe_is_complete_when_the_process_has_gone(agent: Agent) -> None:
    streams = Streams("stdout")
    create(agent, "dd", "if=/dev/zero", "bs=65536", "count=64", streams=streams)
    start(agent)
    assert len(streams.read("stdout")) == 64 * 65536
    assert wait(agent) == 0


def test_exec_and_exit_codes(agent: Agent) -> None:
    create(agent, "sleep", "1000")
    start(agent)
    streams = Streams("stdout")
    execute(agent, "e1", streams, "sh", "-c", "echo hi; exit 3")
    assert streams.read("stdout") == b"hi\n"
    assert wait(agent, "e1") == 3
    agent.call(Method.DELETE_PROCESS, container_id="c", exec_id="e1")
    with pytest.raises(AgentError, match="nope"):
        execute(agent, "e2", Streams(), "nope")
    agent.call(Method.SIGNAL_PROCESS, container_id="c", exec_id="", signal=9, all=False)
    assert wait(agent) == 137


def test_execs_leave_no_files(agent: Agent) -> None:
    """Probes are execs: thousands a day, in a guest's memory."""
    create(agent, "sleep", "1000")
    start(agent)
    bundle = Path(f"/proc/{agent.pid}/root{CONTAINERS_DIRECTORY}/c")
    before = sorted(path.name for path in bundle.iterdir())
    assert "config.json" in before
    execute(agent, "good", Streams(), "true")
    assert wait(agent, "good") == 0
    agent.call(Method.DELETE_PROCESS, container_id="c", exec_id="good")
    with pytest.raises(AgentError, match="nope"):
        execute(agent, "bad", Streams(), "nope")
    assert sorted(path.name for path in bundle.iterdir()) == before


def test_a_signal_that_an_interpreter_handles_does_not_end_pid_1(agent: Agent) -> None:
    """Who shares the guest's process namespace may send it."""
    os.kill(agent.pid, signal.SIGINT)
    assert hello(agent)["protocol"] == PROTOCOL_VERSION
    os.kill(agent.pid, signal.SIGINT)
    assert hello(agent)["protocol"] == PROTOCOL_VERSION


def test_exec_with_a_terminal(agent: Agent) -> None:
    create(agent, "sleep", "1000")
    start(agent)
    streams = Streams("stdin", "stdout", terminal=True)
    execute(agent, "t", streams, "sh")
    agent.call(Method.RESIZE_PTY, container_id="c", exec_id="t", rows=33, columns=77)
    streams["stdin"].sendall(b"stty size\n")
    assert b"33 77" in streams.read_until("stdout", b"33 77")
    streams["stdin"].sendall(b"exit 5\n")
    streams.read("stdout")
    assert wait(agent, "t") == 5


def test_container_with_a_terminal(agent: Agent) -> None:
    streams = Streams("stdin", "stdout", terminal=True)
    create(agent, "sh", "-c", "stty size; read line; echo got $line; exit 4", streams=streams)
    agent.call(Method.RESIZE_PTY, container_id="c", exec_id="", rows=11, columns=22)
    start(agent)
    streams.read_until("stdout", b"11 22")
    streams["stdin"].sendall(b"this\n")
    assert b"got this" in streams.read("stdout")
    assert wait(agent) == 4


def test_program_that_does_not_exist_says_so_and_leaves_nothing(agent: Agent) -> None:
    with pytest.raises(AgentError, match=r"executable file .?nope.? not found in \$PATH"):
        create(agent, "nope")
    shutil.rmtree(agent.root / "test/c-root")
    create(agent, "true")
    start(agent)
    assert wait(agent) == 0


def test_signal_to_all_ends_the_container_and_a_repeat_finds_nobody(agent: Agent) -> None:
    create(agent, "sh", "-c", "sleep 1000 & sleep 1000")
    start(agent)
    agent.call(Method.SIGNAL_PROCESS, container_id="c", exec_id="", signal=9, all=True)
    assert wait(agent) == 137
    with pytest.raises(AgentError) as gone:
        agent.call(Method.SIGNAL_PROCESS, container_id="c", exec_id="", signal=15, all=False)
    assert gone.value.code == Code.NOT_FOUND


def test_several_waiters_and_a_call_in_between(agent: Agent) -> None:
    create(agent, "sleep", "1000")
    start(agent)
    waits = [agent.send(Method.WAIT_PROCESS, container_id="c", exec_id="") for _ in range(2)]
    assert len(agent.call(Method.LIST_PIDS, container_id="c")["pids"]) == 1
    assert agent.call(Method.CONTAINER_STATS, container_id="c")["cpu"]["usage_us"] >= 0
    agent.call(Method.SIGNAL_PROCESS, container_id="c", exec_id="", signal=15, all=False)
    agent.call(Method.SIGNAL_PROCESS, container_id="c", exec_id="", signal=9, all=False)
    assert [agent.answer(call)["exit_code"] for call in waits] == [137, 137]


def test_volume_that_is_not_mounted_is_refused(agent: Agent) -> None:
    volume = {"destination": "/data", "volume_id": "nas-x", "subpath": "", "create": False}
    mount = {"destination": "/data", "type": "bind", "source": "", "options": ["rbind"]}
    with pytest.raises(AgentError, match="nas-x") as refused:
        create(agent, "true", mounts=[mount], volumes=[volume])
    assert refused.value.code == Code.NOT_FOUND


def test_mount_of_an_unknown_flag_is_refused(agent: Agent) -> None:
    request = {
        "volume_id": "nas-x",
        "source": "192.0.2.1:/x",
        "fstype": "nfs",
        "options": "vers=3,addr=192.0.2.1",
        "read_ahead_kib": None,
        "timeout_s": 5,
    }
    with pytest.raises(AgentError, match="remount"):
        agent.call(Method.MOUNT_NAS, flags=["remount"], **request)
    # This machine's kernel may have no NFS client; whatever it says names the source and the
    # options.
    with pytest.raises(AgentError, match=r"192\.0\.2\.1:/x.*vers=3"):
        agent.call(Method.MOUNT_NAS, flags=[], **request)


def test_shutdown_kills_what_runs_and_repeats(agent: Agent) -> None:
    create(agent, "sleep", "1000")
    start(agent)
    assert agent.call(Method.SHUTDOWN, timeout_s=10) == {"volumes": []}
    assert wait(agent) == 137
    assert agent.call(Method.SHUTDOWN, timeout_s=10) == {"volumes": []}


# As of a pod with shareProcessNamespace: the processes are the guest's.
SHARED: dict[str, Any] = {"namespaces": [{"type": "mount"}]}


def pids(agent: Agent) -> list[int]:
    found: list[int] = agent.call(Method.LIST_PIDS, container_id="c")["pids"]
    return found


def test_with_the_init_all_others_end_also_without_a_namespace_of_their_own(agent: Agent) -> None:
    streams = Streams("stdout")
    create(agent, "sh", "-c", "sleep 1000 & read line < /tmp/end", streams=streams, **SHARED)
    os.mkfifo(agent.root / "test/c-root/tmp/end")
    start(agent)
    execute(agent, "e", Streams(), "sleep", "1000")
    assert len(pids(agent)) == 3
    (agent.root / "test/c-root/tmp/end").write_text("now\n")
    assert wait(agent) == 0
    assert wait(agent, "e") == 137
    assert streams.read("stdout") == b"", "nobody is left who could write"
    assert pids(agent) == []


def test_what_a_process_starts_outlives_it_when_it_is_not_the_init(agent: Agent) -> None:
    create(agent, "sleep", "1000", **SHARED)
    start(agent)
    execute(agent, "e", Streams(), "sh", "-c", "sleep 1000 &")
    assert wait(agent, "e") == 0
    assert len(pids(agent)) == 2


def test_shutdown_waits_for_whoever_is_still_ending(agent: Agent) -> None:
    """What a process has mapped and changed is written back as it ends."""
    with stuck_mount(agent, "/test/c-root/stuck") as server:
        create(agent, "sh", "-c", "cat /stuck/x & exec sleep 1000", **SHARED)
        start(agent)
        server.take_request()
        threading.Timer(0.5, server.close).start()
        agent.call(Method.SHUTDOWN, timeout_s=20)
        assert pids(agent) == []


def test_who_has_no_capability_changes_no_limit_of_the_agent(agent: Agent) -> None:
    """Root of a container that shares the guest's process namespace has the agent's ids."""
    argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "prlimit", "--nofile=0:0"]
    refused = subprocess.run(
        [*argv, "--pid", str(agent.pid)], capture_output=True, text=True, check=False
    )
    assert "Operation not permitted" in refused.stderr
    streams = Streams("stdout")
    create(agent, "cat", "/proc/self/status", streams=streams)
    start(agent)
    assert b"Gid:\t0\t0\t0\t0\n" in streams.read("stdout")


def test_an_exec_that_its_caller_gave_up_never_runs(agent: Agent) -> None:
    create(agent, "sleep", "1000")
    start(agent)
    with agent.frozen(), pytest.raises(AgentError) as late:
        execute(agent, "e", Streams(), "sh", "-c", "echo > /tmp/ran", wait_s=2)
    assert late.value.code == Code.DEADLINE_EXCEEDED
    assert late.value.message == "crun exec: not done within 1.6 s"
    execute(agent, "e", Streams(), "true")
    assert wait(agent, "e") == 0
    while len(pids(agent)) > 1:
        pass  # crun's own, which ends now that it can
    assert not (agent.root / "test/c-root/tmp/ran").exists()


def test_a_container_whose_creation_was_given_up_leaves_nothing(agent: Agent) -> None:
    with agent.frozen():
        with pytest.raises(AgentError) as late:
            create(agent, "true", wait_s=2)
        assert late.value.code == Code.DEADLINE_EXCEEDED
        assert not (agent.cgroup / "c").exists()
    shutil.rmtree(agent.root / "test/c-root")
    create(agent, "true")
    start(agent)
    assert wait(agent) == 0


def test_a_container_that_is_deleted_while_it_is_made_is_not_made(agent: Agent) -> None:
    """So asks a runtime that gave up waiting."""
    root = container_root(agent.root, "c-root")
    with agent.frozen():
        creation = agent.send(
            Method.CREATE_CONTAINER,
            container_id="c",
            spec=spec(root, "true"),
            stdio=Streams().wire,
            volumes=[],
        )
        with pytest.raises(AgentError) as unknown:
            agent.call(Method.DELETE_PROCESS, container_id="c", exec_id="")
        assert unknown.value.code == Code.NOT_FOUND
    with pytest.raises(AgentError, match="deleted while it was made") as given_up:
        agent.answer(creation)
    assert given_up.value.code == Code.FAILED_PRECONDITION
    assert not (agent.cgroup / "c").exists()


def test_sysctls_are_set_and_what_the_kernel_refuses_is_told(agent: Agent) -> None:
    wanted = {
        "net.ipv4.tcp_keepalive_time": "600",
        "net.ipv4.no_such": "1",
        "net.ipv4.tcp_fin_timeout": "soon",
    }
    answer = agent.call(Method.SET_SYSCTLS, sysctls=wanted)
    assert answer == {
        "refused": {
            "net.ipv4.no_such": "No such file or directory",
            "net.ipv4.tcp_fin_timeout": "Invalid argument",
        }
    }
    own = f"/proc/{agent.pid}/root/proc/sys/net/ipv4/tcp_keepalive_time"
    read = ["nsenter", f"--target={agent.pid}", "--net", "cat", own]
    assert subprocess.run(read, check=True, capture_output=True, text=True).stdout == "600\n"
