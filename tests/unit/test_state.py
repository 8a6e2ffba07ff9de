"""The state file: round trip, versions, replacement, and processes that are not mistaken."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kangaroo.errors import FailedPrecondition, NotFound
from kangaroo.runtime import state
from kangaroo.runtime.state import PlaceholderState, ProcessIdentity, SandboxState, VolumeState

VOLUME = VolumeState("nas-1", "10.0.0.1:/csi", "nfs", ("rw",), ("rw", "vers=3", "addr=10.0.0.1"))
STATE = SandboxState(
    sandbox_id="abc",
    pod_uid="u-1",
    cgroup="/sys/fs/cgroup/pod",
    qemu=ProcessIdentity(12, 345),
    volumes=(VOLUME,),
    placeholders=(PlaceholderState("/v/mount", "0:99", "nas-1"),),
    containers=("c1",),
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    state.save(tmp_path, STATE)
    assert state.load(tmp_path) == STATE
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600


def test_an_interrupted_write_leaves_the_old_state(tmp_path: Path) -> None:
    state.save(tmp_path, STATE)
    (tmp_path / ".state.json.new").write_bytes(b'{"version":')
    assert state.load(tmp_path) == STATE
    state.save(tmp_path, STATE.with_container("c2"))
    assert state.load(tmp_path).containers == ("c1", "c2")


def test_no_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        state.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"surprise": 1}, {"volumes": [{}]}, {"qemu": {"pid": 1}}, {"placeholders": 3}],
    ids=lambda change: next(iter(change)),
)
def test_another_version_or_shape_is_refused(change: dict[str, object]) -> None:
    document = {**json.loads(state.encode(STATE)), **change}
    with pytest.raises(FailedPrecondition):
        state.decode(json.dumps(document).encode())


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"null"])
def test_not_a_state_is_refused(content: bytes) -> None:
    with pytest.raises(FailedPrecondition):
        state.decode(content)


def test_records_replace_their_like() -> None:
    moved = PlaceholderState("/v/mount", "0:100", "nas-2")
    changed = STATE.with_placeholder(moved).with_volume(VOLUME).with_container("c1")
    assert changed.placeholders == (moved,)
    assert changed.volumes == (VOLUME,)
    assert changed.containers == ("c1",)
    assert changed.without_container("c1").containers == ()


def test_a_volume_becomes_the_mount_it_was() -> None:
    entry = state.mount_entry(VOLUME)
    assert state.volume_state("nas-1", entry, 1024) == dataclasses.replace(
        VOLUME, read_ahead_kib=1024
    )


def test_a_process_is_itself() -> None:
    assert ProcessIdentity.of(os.getpid()).alive()


def test_a_recycled_pid_is_not_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        real = ProcessIdentity.of(child.pid)
        stale = ProcessIdentity(child.pid, real.start_ticks - 1)
        assert not stale.alive()
        stale.kill()
        assert real.alive()
        real.kill()
        assert child.wait() == -9
    assert not real.alive()
    real.kill()
