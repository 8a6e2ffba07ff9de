"""What a pod can do in a sandbox: containers, processes, stdio, limits.

One pod serves many tests, because starting one is slow here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.node import pods, terminal, waiting
from tests.node.pods import IDLE, container, pod

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

# A little more than 1 MiB. kubelet reads logs by line: of short ones an emulated node has too many.
LINES = 8_192
LARGE = "".join(f"{n:0128d}\n" for n in range(1, LINES + 1))
WRITE_LARGE = f"awk 'BEGIN {{ for (n = 1; n <= {LINES}; n++) printf \"%0128d\\n\", n }}'"
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
# The shim reads the guest's clock every 64 s, and this much more on an emulated node. Before the
# first of these it has set it.
KEPT_S, SET_S = 64 + 30, 45
PAUSE_S = 10
FINALIZER = "kangaroo.io/observed"
ANSWER_RESIZE = "trap 'stty size' WINCH; stty size; while :; do sleep 3600 & wait $!; done"


def main_pod() -> pods.Document:
    """A pod that stays: an init container, one that works, one that fails at first."""
    scratch = {"/disk": "disk"}
    return pod(
        "main",
        container(
            "worker",
            f"echo served > /tmp/index.html; httpd -p 8080 -h /tmp; {IDLE}",
            mounts=scratch,
            limits={"cpu": "2", "memory": "256Mi"},
            securityContext={"capabilities": {"add": ["SYS_TIME"]}},
        ),
        container(
            "flaky",
            f"{BOOT_ID} >> /disk/starts; test $(wc -l < /disk/starts) -ge 2 || exit 5; {IDLE}",
            mounts=scratch,
        ),
        initContainers=[container("prepare", "echo prepared > /disk/init", mounts=scratch)],
        volumes=[{"name": "disk", "emptyDir": {}}],
    )


def exits_pod() -> pods.Document:
    """A pod whose containers all end, each in its own way."""
    return pod(
        "exits",
        container("zero", "for i in 1 2 3; do echo out $i; echo err $i >&2; done"),
        container("three", "exit 3"),
        container("big", WRITE_LARGE),
        container("hungry", "tail /dev/zero", limits={"memory": "48Mi"}),
        container("asks", "read line; echo got $line; exit 4", stdin=True, stdinOnce=True),
        restartPolicy="Never",
    )


def stops_pod() -> pods.Document:
    """A pod that is deleted, and held by a finalizer so that the end of its containers can be
    read."""
    return pod(
        "stops",
        container("polite", "trap 'exit 7' TERM; while :; do sleep 3600 & wait $!; done"),
        container("stubborn", "trap '' TERM; while :; do sleep 3600; done"),
        metadata={"finalizers": [FINALIZER]},
    )


@pytest.fixture(scope="module")
def space(lab: Lab) -> Iterator[pods.Space]:
    with pods.opened(lab, "runtime") as space, task_events(space):
        space.apply(main_pod(), exits_pod(), stops_pod())
        waiting.ready(space, "main", timeout_s=2 * waiting.START_S)
        yield space


class task_events:  # noqa: N801 - reads as the verb phrase that it is
    """containerd's events are recorded on the node, in a unit of their own, while this is
    entered."""

    path = "/run/kangaroo-test-events"
    unit = "kangaroo-test-events"

    def __init__(self, space: pods.Space) -> None:
        self._node = space.node

    def __enter__(self) -> None:
        script = f"exec ctr --namespace k8s.io events > {self.path}"
        unit = ["systemd-run", "--collect", f"--unit={self.unit}", "sh", "-c", script]
        self._node.exec(unit)

    def __exit__(self, *_: object) -> None:
        self._node.exec(["systemctl", "stop", self.unit])
        self._node.exec(["rm", self.path])


def recorded(space: pods.Space) -> list[tuple[str, pods.Document]]:
    """The topic and the body of each task event so far, in order. A field of value 0 is absent
    (proto3 in JSON)."""
    log = space.node.exec(["cat", task_events.path]).stdout.splitlines()
    heads = [line.partition("{") for line in log if " /tasks/" in line]
    return [(head.split()[-1], json.loads(mark + rest)) for head, mark, rest in heads]


@pytest.fixture(scope="module")
def answered(space: pods.Space) -> str:
    """What the container that asks answers `kubectl attach`; then the pod `exits` ends."""
    asks = 'jsonpath={.status.containerStatuses[?(@.name=="asks")].state.running.startedAt}'
    waiting.condition(space, asks, "exits", timeout_s=waiting.START_S)
    said = space.attach("exits", "asks", "hello\n", until="got")
    waiting.phase(space, "exits", "Failed")
    return said


@pytest.fixture(scope="module")
def stopped(space: pods.Space) -> Iterator[float]:
    """The pod `stops` has been deleted, gracefully; its object is still there. The seconds that
    it took."""
    waiting.ready(space, "stops")
    started = time.monotonic()
    space.delete("stops", wait=False)
    ended = 'jsonpath={.status.containerStatuses[?(@.name=="stubborn")].state.terminated.exitCode}'
    waiting.condition(space, ended, "stops", timeout_s=waiting.STOP_S)
    yield time.monotonic() - started
    free = json.dumps({"metadata": {"finalizers": None}})
    space.kubectl("patch", "pod", "stops", "--type=merge", "--patch", free)


def test_init_container_ran_first_in_the_same_sandbox(space: pods.Space) -> None:
    ended = space.status("main", "prepare")["state"]["terminated"]
    worker = space.status("main", "worker")["state"]["running"]
    assert (ended["reason"], ended["exitCode"]) == ("Completed", 0)
    assert ended["finishedAt"] <= worker["startedAt"]
    assert space.say("main", "cat /disk/init", container="worker") == "prepared"


def test_all_containers_of_a_pod_share_one_guest(space: pods.Space) -> None:
    waiting.restarted(space, "main", "flaky")
    ids = {space.say("main", BOOT_ID, container=each) for each in ("worker", "flaky")}
    assert len(ids) == 1
    assert space.node.exec(BOOT_ID.split()).stdout.strip() not in ids


def test_failed_container_is_restarted_in_the_same_guest(space: pods.Space) -> None:
    waiting.restarted(space, "main", "flaky")
    first, second = space.say("main", "cat /disk/starts", container="flaky").splitlines()
    assert first == second
    # The status is read from containerd's events, not from the pod's lastState: kubelet's container
    # garbage collection (once a minute; evictableContainers in Kubernetes 1.35) counts a successor
    # that is created and not yet started as a dead container, keeps only the newest one of these,
    # and so can remove the record of the first end.
    ended = [
        event["container_id"]
        for topic, event in recorded(space)
        if topic == "/tasks/exit" and event.get("exit_status") == 5
    ]
    assert len(ended) == 1
    assert ended != [space.container_id("main", "flaky")]


@pytest.mark.parametrize(
    ("name", "reason", "code"),
    [
        ("zero", "Completed", 0),
        ("three", "Error", 3),
        ("hungry", "OOMKilled", 137),
        ("asks", "Error", 4),
    ],
)
def test_exit_is_reported(
    space: pods.Space, answered: str, name: str, reason: str, code: int
) -> None:
    ended = space.status("exits", name)["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == (reason, code)


def test_attach_carries_stdin_and_output(answered: str) -> None:
    assert "got hello" in answered


def test_logs_hold_stdout_and_stderr_each_in_order(space: pods.Space, answered: str) -> None:
    lines = space.kubectl("logs", "exits", "-c", "zero").stdout.splitlines()
    assert [line for line in lines if "out" in line] == ["out 1", "out 2", "out 3"]
    assert [line for line in lines if "err" in line] == ["err 1", "err 2", "err 3"]


def test_large_output_arrives_whole(space: pods.Space, answered: str) -> None:
    logs = space.kubectl("logs", "exits", "-c", "big").stdout
    assert len(logs) == len(LARGE)
    assert pods.sha256(logs.encode()) == pods.sha256(LARGE.encode())


def test_termination_is_polite_then_forced(space: pods.Space, stopped: float) -> None:
    codes = {
        name: space.status("stops", name)["state"]["terminated"]["exitCode"]
        for name in ("polite", "stubborn")
    }
    assert codes == {"polite": 7, "stubborn": 137}
    assert stopped >= 5, "stubborn was killed before its grace period ended"


def test_exec_keeps_streams_apart_and_returns_the_status(space: pods.Space) -> None:
    done = space.run(
        "main", "echo to-out; echo to-err >&2; exit 5", container="worker", check=False
    )
    assert done.stdout == "to-out\n"
    assert "to-err" in done.stderr
    assert "to-err" not in done.stdout
    assert done.status == 5


def test_exec_reads_stdin_to_its_end(space: pods.Space) -> None:
    argv = ["exec", "-i", "main", "-c", "worker", "--", "sha256sum"]
    said = space.kubectl(*argv, stdin=LARGE)
    assert said.stdout.split()[0] == pods.sha256(LARGE.encode())


def test_exec_large_output_arrives_whole(space: pods.Space) -> None:
    said = space.run("main", WRITE_LARGE, container="worker").stdout
    assert pods.sha256(said.encode()) == pods.sha256(LARGE.encode())


def test_exec_with_a_terminal_follows_its_size_and_keys(space: pods.Space) -> None:
    argv = space.argv("exec", "-it", "main", "-c", "worker", "--")
    with terminal.opened([*argv, "sh", "-c", ANSWER_RESIZE], rows=24, columns=80) as window:
        window.expect("24 80")
        window.resize(40, 120)
        window.expect("40 120")
        window.type("\x03")
        assert window.wait() == 130


def test_terminal_shell_session(space: pods.Space) -> None:
    argv = space.argv("exec", "-it", "main", "-c", "worker")
    with terminal.opened([*argv, "--", "sh"]) as window:
        window.type("test -t 0 && test -t 1 && echo on a $((40 + 2)) terminal\n")
        window.expect("on a 42 terminal")
        window.type("exit 6\n")
        assert window.wait() == 6


def test_copy_in_and_out(space: pods.Space, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(bytes(range(256)) * 1024)
    space.kubectl("cp", "-c", "worker", str(there), "main:/tmp/copied")
    space.kubectl("cp", "-c", "worker", "main:/tmp/copied", str(back))
    assert back.read_bytes() == there.read_bytes()


def test_sandbox_is_sized_by_the_limits(space: pods.Space) -> None:
    total_kib = int(
        space.say("main", "awk '/MemTotal/{print $2}' /proc/meminfo", container="worker")
    )
    # "worker" has a limit of 256 MiB, "flaky" has none: so the pod has what one without a limit
    # has, on top of what the guest itself needs, which its kernel has a part of.
    assert 1024 * 1024 < total_kib < (1024 + 256) * 1024
    assert int(space.say("main", "nproc", container="worker")) >= 2
    assert space.say("main", "cat /sys/fs/cgroup/memory.max", container="worker") == str(256 << 20)


def test_overhead_of_the_runtime_class_is_on_the_pod(space: pods.Space) -> None:
    asked = json.loads(space.lab.kubectl("get", "runtimeclass", "runv", "-o", "json").stdout)
    assert asked["overhead"]["podFixed"]["memory"]
    assert space.get("main")["spec"]["overhead"] == asked["overhead"]["podFixed"]


def test_stats_are_of_the_container_in_the_guest(space: pods.Space) -> None:
    argv = ["ctr", "--namespace", "k8s.io", "task", "metrics", "--format", "json"]
    metrics = json.loads(space.node.exec([*argv, space.container_id("main", "worker")]).stdout)
    assert metrics["cpu"]["usage_usec"] > 0
    assert 0 < metrics["memory"]["usage"] <= 256 << 20
    assert metrics["memory"]["usage_limit"] == 256 << 20
    assert metrics["pids"]["current"] >= 2


def test_port_forward_reaches_the_guest(space: pods.Space) -> None:
    assert space.fetch("main", 8080) == "served"


def test_clock_is_kept_by_the_kernels_own_loop(space: pods.Space) -> None:
    deadline = time.monotonic() + KEPT_S
    said = ""
    while "PLL" not in said and time.monotonic() < deadline:
        said = space.say("main", "adjtimex | grep status", container="worker")
    assert "PLL" in said


@pytest.mark.parametrize("ahead_s", [0, 3600])
def test_clock_is_set_after_a_pause(space: pods.Space, ahead_s: int) -> None:
    """The guest's stands still meanwhile. A program may have put it forward before."""
    space.say("main", f"date -s @$(($(date +%s) + {ahead_s}))", container="worker")
    task = ["ctr", "--namespace", "k8s.io", "task"]
    worker = space.container_id("main", "worker")
    space.node.exec([*task, "pause", worker])
    try:
        space.node.exec(["sleep", str(PAUSE_S)])
    finally:
        space.node.exec([*task, "resume", worker])
    behind_s = PAUSE_S
    deadline = time.monotonic() + SET_S
    # At most, for the node's clock is read after the guest's: later than that on a slow node.
    while abs(behind_s) >= PAUSE_S and time.monotonic() < deadline:
        guest_s = int(space.say("main", "date +%s", container="worker"))
        behind_s = int(space.node.exec(["date", "+%s"]).stdout) - guest_s
    assert abs(behind_s) < PAUSE_S


def test_events_come_in_order(space: pods.Space, answered: str) -> None:
    events = recorded(space)
    for status in space.get("exits")["status"]["containerStatuses"]:
        name = status["name"]
        mine = space.container_id("exits", name)
        topics = [topic for topic, event in events if event["container_id"] == mine]
        once = [topic for topic in topics if topic != "/tasks/oom"]
        assert once[:3] == ["/tasks/create", "/tasks/start", "/tasks/exit"], name
        assert once[3:] in ([], ["/tasks/delete"]), name
        assert ("/tasks/oom" in topics) == (name == "hungry")
