"""What the node keeps of a sandbox, and what ends while it is taken away."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from kangaroo.errors import FailedPrecondition
from kangaroo.runtime import state
from kangaroo.runtime.config import RuntimeConfig
from kangaroo.runtime.host_side import HostSide, Placement
from kangaroo.runtime.sizing import MachineSize


@pytest.fixture
def host(tmp_path: Path) -> HostSide:
    placement = Placement("sandbox", MachineSize(256, 1), netns=None, cgroups_path=None, pod=None)
    host = HostSide(placement, RuntimeConfig(state_root=tmp_path))
    host.paths.state_dir.mkdir()
    return host


def test_a_container_is_on_record_while_it_is_there(host: HostSide) -> None:
    host.add_container("one")
    host.add_container("one")
    assert state.load(host.paths.state_dir).containers == ("one",)
    host.forget_container("one")
    host.forget_container("one")
    assert state.load(host.paths.state_dir).containers == ()


def test_the_most_precious_container_decides_who_is_ended_first(
    host: HostSide, tmp_path: Path
) -> None:
    """When the node has no memory left."""
    with subprocess.Popen(["sleep", "60"]) as part:
        host._cgroup = tmp_path / "group"
        host._cgroup.mkdir()
        (host._cgroup / "cgroup.procs").write_text(f"{part.pid}\n")
        seen = []
        for score in (900, 1000, 800):
            host.set_oom_score(score)
            seen.append(int(Path(f"/proc/{part.pid}/oom_score_adj").read_text()))
        part.kill()
    assert seen == [900, 900, 800]
    host.set_oom_score(700)  # they have ended


def test_a_container_may_be_deleted_when_its_sandbox_has_gone(host: HostSide) -> None:
    """containerd repeats a delete that fails, and kubelet waits for it for ever."""
    host.add_container("one")
    asyncio.run(host.release())
    host.forget_container("one")
    with pytest.raises(FailedPrecondition, match="sandbox sandbox is gone"):
        host.add_container("two")
    assert not host.paths.state_dir.exists()
