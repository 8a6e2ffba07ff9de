"""Processes that outlive their starter: found again, ended whole, told from a reused id."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kangaroo.errors import DeadlineExceeded, Unavailable
from kangaroo_lab import daemon, leftovers, readiness
from kangaroo_lab.network import Network

pytestmark = pytest.mark.host

NETWORK = Network(name="kangaroo-t")


@pytest.fixture
def family(tmp_path: Path) -> Iterator[daemon.Daemon]:
    """A shell with a child, both deaf to SIGTERM; it says so once it is."""
    script = "trap '' TERM; sleep 1000 & echo ready >ready; wait"
    (tmp_path / "nodes").mkdir()
    fifo = tmp_path / "nodes" / "ready"
    subprocess.run(["mkfifo", str(fifo)], check=True)
    argv = ["sh", "-c", f"cd {fifo.parent}/; {script}"]
    one = daemon.start("family", argv, log=tmp_path / "log")
    assert fifo.read_text() == "ready\n"
    yield one
    daemon.stop(one, timeout_s=0)


def test_is_in_a_session_of_its_own_with_its_child(family: daemon.Daemon) -> None:
    assert family.alive()
    assert family.pid in family.session()
    assert len(family.session()) == 2


def test_stop_ends_the_deaf_with_their_children(family: daemon.Daemon) -> None:
    daemon.stop(family, timeout_s=0.2)
    assert family.session() == []
    assert not family.alive()
    daemon.stop(family)  # a repeat does nothing


def test_an_id_that_was_given_out_anew_is_not_touched(family: daemon.Daemon) -> None:
    stale = dataclasses.replace(family, start_ticks=family.start_ticks + 1)
    assert not stale.alive()
    daemon.stop(stale, timeout_s=0)
    assert family.alive()


def test_a_child_that_outlived_its_parent_is_ended(family: daemon.Daemon) -> None:
    (child,) = set(family.session()) - {family.pid}
    daemon.end([family.pid])
    assert family.session() == [child]
    daemon.stop(family, timeout_s=0)
    assert family.session() == []


def test_strays_are_found_by_the_labs_directory_and_ended(tmp_path: Path) -> None:
    program = tmp_path / "qemu-img"
    program.symlink_to("/bin/sh")
    argv = [str(program), "-c", "sleep 100; :", f"{tmp_path}/nodes/node1/disk.qcow2"]
    stray = daemon.start("stray", argv, log=tmp_path / "log")
    try:
        found = leftovers.find(tmp_path, NETWORK)
        assert any(f"process {stray.pid}:" in line for line in found)
        leftovers.stop_strays(tmp_path, NETWORK)
        assert not stray.alive()
    finally:
        daemon.stop(stray, timeout_s=0)


def test_what_somebody_else_runs_on_the_labs_files_is_named_and_lives(
    family: daemon.Daemon, tmp_path: Path
) -> None:
    assert any(f"process {family.pid}:" in line for line in leftovers.strangers(tmp_path))
    assert leftovers.find(tmp_path, NETWORK) == []
    leftovers.stop_strays(tmp_path, NETWORK)
    assert family.alive()


def test_a_notification_is_awaited(tmp_path: Path) -> None:
    # systemd-notify may be absent; a datagram is all there is to it.
    code = "import os,socket;s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM)"
    code += ";s.sendto(b'READY=1',os.environ['NOTIFY_SOCKET']);import time;time.sleep(100)"
    with readiness.notification(tmp_path / "notify") as notified:
        env = {"NOTIFY_SOCKET": str(notified.path)}
        one = daemon.start("one", ["python3", "-c", code], log=tmp_path / "log", env=env)
        try:
            notified.wait(one, timeout_s=20)
        finally:
            daemon.stop(one, timeout_s=0)
    assert not (tmp_path / "notify").exists()


def test_one_that_ends_instead_is_reported_with_its_log(tmp_path: Path) -> None:
    with readiness.notification(tmp_path / "notify") as notified:
        one = daemon.start("one", ["sh", "-c", "echo broken; exit 3"], log=tmp_path / "log")
        with pytest.raises(Unavailable, match="broken"):
            notified.wait(one, timeout_s=20)


def test_one_that_stays_silent_is_reported_in_time(tmp_path: Path) -> None:
    with readiness.notification(tmp_path / "notify") as notified:
        one = daemon.start("one", ["sleep", "100"], log=tmp_path / "log")
        with pytest.raises(DeadlineExceeded, match="not ready"):
            notified.wait(one, timeout_s=0.1)
        daemon.stop(one, timeout_s=0)


def test_signals_of_the_starter_do_not_reach_it(family: daemon.Daemon) -> None:
    assert signal.getsignal(signal.SIGINT) is not None
    with Path(f"/proc/{family.pid}/stat").open() as stat:
        fields = stat.read().rpartition(")")[2].split()
    assert int(fields[2]) == int(fields[3]) == family.pid
