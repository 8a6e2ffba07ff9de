"""The shim's commands as containerd runs them: real processes, no guest."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kangaroo.errors import DeadlineExceeded
from kangaroo.linux import process
from kangaroo.runtime import state
from kangaroo.runtime.ending import end_all
from kangaroo.runtime.spec_read import CONTAINER_TYPE, SANDBOX_ID
from kangaroo.runtime.state import ProcessIdentity, SandboxState
from kangaroo.runtime.task_service import SERVICE
from kangaroo.wire.aio import Client
from kangaroo.wire.gen import task_pb2 as task

SOURCE = Path(__file__).parents[2] / "src"
TIMEOUT_S = 30


class Shim:
    """The entry script with a state directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.config = directory / "runtime.toml"
        self.config.write_text(f'state_root = "{self.state}"\n')
        self.script = directory / "containerd-shim-kangaroo-v2"
        self.script.write_text(
            f"import sys\nsys.path[:0] = {[str(SOURCE), *filter(None, sys.path)]!r}\n"
            "from kangaroo.runtime.shim import main\nsys.exit(main())\n"
        )

    def bundle(self, name: str, pod: str) -> Path:
        bundle = self.directory / name
        bundle.mkdir()
        kind = "sandbox" if name == pod else "container"
        annotations = {CONTAINER_TYPE: kind, SANDBOX_ID: pod}
        (bundle / "config.json").write_text(json.dumps({"annotations": annotations}))
        return bundle

    def run(self, command: str, bundle: Path) -> subprocess.CompletedProcess[bytes]:
        argv = [sys.executable, "-I", "-S", str(self.script), "-namespace", "test"]
        argv += ["-config", str(self.config), "-id", bundle.name, "-bundle", str(bundle), command]
        return subprocess.run(
            argv,
            cwd=bundle,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )

    def start(self, bundle: Path) -> str:
        done = self.run("start", bundle)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode()

    def delete(self, bundle: Path) -> task.DeleteResponse:
        done = self.run("delete", bundle)
        assert done.returncode == 0, done.stderr  # containerd logs what else is there as warnings
        return task.DeleteResponse.FromString(done.stdout)

    def daemon(self, pod: str) -> int:
        return int((self.state / pod / "shim.pid").read_text())


@pytest.fixture
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    shim = Shim(tmp_path_factory.mktemp("s"))
    yield shim
    for pid_file in shim.state.glob("*/shim.pid"):
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


def _connect(address: str, container_id: str) -> task.ConnectResponse:
    async def call() -> task.ConnectResponse:
        client = await Client.connect_unix(address.removeprefix("unix://"))
        request = task.ConnectRequest(id=container_id).SerializeToString()
        payload = await client.call(SERVICE, "Connect", request, timeout_s=TIMEOUT_S)
        await client.aclose()
        return task.ConnectResponse.FromString(payload)

    return asyncio.run(call())


def test_a_pod_has_one_shim(shim: Shim) -> None:
    pod, app = shim.bundle("pod", "pod"), shim.bundle("app", "pod")
    address = shim.start(pod)
    assert address == f"unix://{shim.state}/pod/shim.sock"
    assert (pod / "address").read_text() == address
    daemon = shim.daemon("pod")
    assert _connect(address, "pod").shim_pid == daemon
    assert os.getsid(daemon) == daemon

    assert shim.start(app) == shim.start(pod) == address
    assert (app / "address").read_text() == address
    assert shim.daemon("pod") == daemon


def test_delete_spares_the_pod_of_a_container(shim: Shim) -> None:
    pod, app = shim.bundle("pod", "pod"), shim.bundle("app", "pod")
    address = shim.start(pod)
    shim.start(app)
    answer = shim.delete(app)
    assert (answer.exit_status, answer.pid) == (137, 0)
    assert answer.exited_at.seconds > 0
    assert _connect(address, "app").task_pid == 0


def test_delete_of_the_sandbox_ends_the_shim_and_may_be_repeated(shim: Shim) -> None:
    pod = shim.bundle("pod", "pod")
    address = shim.start(pod)
    _connect(address, "pod")  # it is up: the signal handlers are set
    daemon = shim.daemon("pod")
    assert shim.delete(pod).exit_status == 137
    assert process.ended(daemon, TIMEOUT_S)
    assert not (shim.state / "pod").exists()
    assert shim.delete(pod).exit_status == 137


def test_all_shims_are_ended_at_once(shim: Shim) -> None:
    """As the node goes down. One that is gone and a file that is no shim's do not matter."""
    for name in ("one", "two", "crashed"):
        _connect(shim.start(shim.bundle(name, name)), name)
    _kill_and_wait(shim.daemon("crashed"))
    (shim.state / "file").touch()
    assert {name for name, _ in end_all(shim.state, TIMEOUT_S)} == {"one", "two"}
    assert {path.name for path in shim.state.iterdir()} == {"crashed", "file"}
    assert list(end_all(shim.state, TIMEOUT_S)) == []
    assert list(end_all(shim.state / "none", TIMEOUT_S)) == []


def test_a_shim_that_does_not_end_is_named(shim: Shim) -> None:
    _connect(shim.start(shim.bundle("stopped", "stopped")), "stopped")
    os.kill(shim.daemon("stopped"), signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded, match=r"not ended within 0\.5 s: stopped"):
        list(end_all(shim.state, 0.5))


def test_delete_after_a_crash(shim: Shim) -> None:
    pod, app = shim.bundle("pod", "pod"), shim.bundle("app", "pod")
    shim.start(pod)
    daemon = shim.daemon("pod")
    _kill_and_wait(daemon)
    assert shim.delete(app).exit_status == 137
    assert shim.delete(pod).exit_status == 137
    assert not (shim.state / "pod").exists()


def test_delete_leaves_a_guest_that_writes_back_to_a_cleaner(shim: Shim) -> None:
    pod = shim.bundle("pod", "pod")
    shim.start(pod)
    _kill_and_wait(shim.daemon("pod"))
    directory = shim.state / "pod"
    with subprocess.Popen(["sleep", "1000"]) as guest:
        state.save(directory, SandboxState("pod", qemu=ProcessIdentity.of(guest.pid)))
        done = shim.run("delete", pod)
        assert done.returncode == 0
        assert b"the cleanup goes on" in done.stderr
        assert guest.poll() is None
        again = shim.run("start", pod)
        assert b"sandbox pod is still being cleaned up" in again.stderr
        descriptor = os.open(directory, os.O_RDONLY)
        guest.terminate()
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # until the cleaner has ended
    os.close(descriptor)
    assert not directory.exists()


def _kill_and_wait(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert process.ended(pid, TIMEOUT_S)


def test_start_replaces_a_dead_shim(shim: Shim) -> None:
    pod = shim.bundle("pod", "pod")
    address = shim.start(pod)
    daemon = shim.daemon("pod")
    _kill_and_wait(daemon)
    assert shim.start(pod) == address
    assert _connect(address, "pod").shim_pid == shim.daemon("pod") != daemon


def test_a_container_without_its_sandbox_is_refused(shim: Shim) -> None:
    done = shim.run("start", shim.bundle("app", "pod"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"its sandbox pod is not running" in done.stderr
    assert not shim.state.exists()


@pytest.mark.parametrize("command", ["start", "delete"])
def test_what_containerd_waits_for_imports_little(command: str) -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(SOURCE)!r}]\n"
        f"import kangaroo.runtime.shim, kangaroo.runtime.{command}\n"
        "heavy = {'asyncio', 'dataclasses', 'google', 'logging', 'pathlib', 'typing'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        capture_output=True,
        timeout=TIMEOUT_S,
        text=True,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr


def test_a_new_shim_cleans_up_after_one_that_died_before_containerd_connected(shim: Shim) -> None:
    """containerd runs no `delete` for it. That of a pod that lives is left alone."""
    dead, lives = shim.bundle("dead", "dead"), shim.bundle("lives", "lives")
    shim.start(dead)
    address = shim.start(lives)
    _kill_and_wait(shim.daemon("dead"))
    for name in ("dead", "lives"):
        os.utime(shim.state / name, (0, 0))
    directory = os.open(shim.state / "dead", os.O_RDONLY | os.O_DIRECTORY)
    try:
        shim.start(shim.bundle("new", "new"))
        _await_removal(directory)
    finally:
        os.close(directory)
    assert not (shim.state / "dead").exists()
    assert _connect(address, "lives").shim_pid == shim.daemon("lives")


def _await_removal(directory: int) -> None:
    """Until an open directory has been removed: its parent then tells (inotify would race)."""
    deadline = time.monotonic() + TIMEOUT_S
    while os.fstat(directory).st_nlink and time.monotonic() < deadline:
        time.sleep(0.05)
