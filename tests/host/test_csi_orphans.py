"""What a crashed driver left running, ended by its successor: in a real control group."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kangaroo.csi import orphans
from kangaroo.linux import mountinfo

# Starts a child that starts another, says so, and ends as a driver that crashes does.
PREDECESSOR = "import subprocess; subprocess.Popen(('sh', '-c', 'sleep 60 & sleep 60'))"
SUCCESSOR = f"import pathlib, sys; from {orphans.__name__} import end; end(pathlib.Path('{{}}'))"


@pytest.fixture
def group() -> Iterator[Path]:
    """A new control group of version 2."""
    unified = (entry for entry in mountinfo.read() if entry.fstype == "cgroup2")
    if (entry := next(unified, None)) is None:
        pytest.skip("no cgroup v2")
    path = Path(entry.mount_point) / f"kangaroo-{secrets.token_hex(4)}"
    path.mkdir()
    yield path
    for pid in members(path):
        os.kill(pid, 9)
    path.rmdir()


def members(group: Path) -> list[int]:
    return [int(word) for word in (group / "cgroup.procs").read_text().split()]


def run_in(group: Path, program: str) -> None:
    """Run it as a process of the group, to its end."""
    enter = f"import os, pathlib; pathlib.Path('{group}/cgroup.procs').write_text(str(os.getpid()))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = (sys.executable, "-c", f"{enter}\n{program}")
    subprocess.run(argv, check=True, timeout=30, env=environment)


def test_a_predecessor_s_children_and_theirs_are_ended(group: Path) -> None:
    run_in(group, PREDECESSOR)
    assert members(group)
    run_in(group, SUCCESSOR.format(group))
    assert members(group) == []


def test_a_process_that_is_no_service_has_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was started from a service's shell inherits the variable, with another's id."""
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getppid()))
    assert orphans.service_group() is None
    monkeypatch.delenv("SYSTEMD_EXEC_PID")
    assert orphans.service_group() is None
