"""A real QEMU under the runtime's own command line, emulated and without a guest."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from kangaroo.errors import CommandFailed, DeadlineExceeded, FailedPrecondition
from kangaroo.vmm.child import private_listener
from kangaroo.vmm.confinement import Confinement
from kangaroo.vmm.console import Console
from kangaroo.vmm.machine import LaunchPaths, Machine, guest_memory, require_kvm
from kangaroo.vmm.spec import Accelerator, GuestImage, MachineSpec

pytestmark = pytest.mark.host

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """QEMU 10 or newer: the machine's own, or one from the lab's tools run in their root."""
    if own := shutil.which("qemu-system-x86_64"):
        return Path(own)
    artefacts = pytest.importorskip("kangaroo_lab.artefacts")
    if os.geteuid() != 0 or shutil.which("bwrap") is None:
        pytest.skip("no QEMU, and no root or no bwrap to run the lab's")
    root = artefacts.host_tools()
    script = tmp_path_factory.mktemp("qemu") / "qemu"
    script.write_text(
        f"#!/bin/sh\nexec bwrap --die-with-parent --ro-bind {root} / --dev-bind /dev /dev "
        '--proc /proc --tmpfs /tmp -- /usr/bin/qemu-system-x86_64 "$@"\n'
    )
    script.chmod(0o755)
    return script


@asynccontextmanager
async def machine(
    qemu: Path, directory: Path, *, image: GuestImage | None = None, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[Machine]:
    with ExitStack() as stack:
        listener = stack.enter_context(private_listener(directory / "qmp.sock"))
        console = Console(directory / "console.log")
        stack.callback(console.release_write_end)
        memory = guest_memory()
        stack.callback(os.close, memory)
        spec = MachineSpec(
            name="kangaroo-test",
            qemu=qemu,
            image=image,
            memory_fd=memory,
            memory_mib=64,
            vcpus=1,
            qmp_fd=listener.fileno(),
            console_fd=console.write_fd,
            accelerator=Accelerator.TCG,
        )
        running = await Machine.launch(
            spec,
            paths=LaunchPaths(directory / "qmp.sock", directory / "qemu.log"),
            confinement=Confinement(),
            timeout_s=timeout_s,
        )
    try:
        yield running
    finally:
        await running.kill()
        console.close()


async def state(running: Machine) -> str:
    """QEMU's run state (qapi/run-state.json)."""
    answer = await running._execute("query-status")
    assert isinstance(answer, dict)
    return str(answer["status"])


def test_it_answers_pauses_resumes_and_ends(qemu: Path, tmp_path: Path) -> None:
    async def body() -> None:
        async with machine(qemu, tmp_path) as running:
            assert await state(running) == "running"
            await running.pause()
            await running.pause()
            assert await state(running) == "paused"
            await running.resume()
            await running.resume()
            assert await state(running) == "running"
            assert Path(f"/proc/{running.pid}").exists()
            await running.kill()
            await running.kill()
            assert await running.wait() is not None

    asyncio.run(body())
    assert (tmp_path / "qmp.sock").stat().st_mode & 0o777 == 0o600


def test_a_launch_that_fails_says_what_qemu_said(qemu: Path, tmp_path: Path) -> None:
    async def body() -> None:
        async with machine(qemu, tmp_path, image=GuestImage(Path("/nonexistent/vmlinuz"))):
            pytest.fail("launched without a kernel")

    with pytest.raises(CommandFailed) as raised:
        asyncio.run(body())
    assert raised.value.status == 1
    assert "/nonexistent/vmlinuz" in raised.value.output
    assert "microvm" in " ".join(raised.value.argv)


def test_a_qemu_that_never_answers_is_killed_in_time(tmp_path: Path) -> None:
    sleeper = tmp_path / "qemu"
    sleeper.write_text("#!/bin/sh\nexec sleep 300\n")
    sleeper.chmod(0o755)

    async def body() -> None:
        async with machine(sleeper, tmp_path, timeout_s=0.2):
            pytest.fail("launched a sleep")

    with pytest.raises(DeadlineExceeded, match="QMP greeting"):
        asyncio.run(body())


async def much_is_said(path: Path) -> None:
    """To a console that keeps 1000 bytes in `path`."""
    console = Console(path, limit_bytes=1000)
    for number in range(100):
        os.write(console.write_fd, f"line {number}\n".encode() * 10)
        assert console.tail().endswith(f"line {number}")
    console.close()
    console.close()


def test_the_console_is_kept_in_bounded_space(tmp_path: Path) -> None:
    asyncio.run(much_is_said(tmp_path / "console.log"))
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["console.log", "console.log.1"]
    assert all((tmp_path / name).stat().st_size <= 1000 for name in kept)


def test_a_console_of_which_no_more_can_be_kept_goes_on(tmp_path: Path) -> None:
    (tmp_path / "console.log.1").mkdir()  # as where /run is full: it cannot be written
    asyncio.run(much_is_said(tmp_path / "console.log"))
    assert 0 < (tmp_path / "console.log").stat().st_size <= 1000


def test_a_node_without_kvm_is_told(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"kvm cannot be opened.*virtualisation"):
        require_kvm(tmp_path / "kvm")
