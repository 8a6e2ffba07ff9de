"""Unmounting on the node, and the placeholder with its record, on real mounts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from kangaroo.errors import FailedPrecondition
from kangaroo.linux import mount, mountinfo
from kangaroo.nas.placeholder import is_placeholder
from kangaroo.runtime import recovery, state
from kangaroo.runtime.node_mounts import NodeMounts
from kangaroo.runtime.placeholder import RECORD_NAME, put_placeholder, read_record
from kangaroo.runtime.state import PlaceholderState, SandboxState, VolumeState

RECORD = VolumeState("nas-1", "10.0.0.9:/csi", "nfs", ("rw",), ("rw", "vers=3", "addr=10.0.0.9"))


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mount"
    path.mkdir()
    yield path
    while mountinfo.at(str(path), mountinfo.read()) is not None:
        mount.umount(path, mount.UmountFlag.DETACH)


def mounted(path: Path) -> mountinfo.MountEntry | None:
    return mountinfo.at(str(path), mountinfo.read())


def test_the_placeholder_tells_what_it_stands_for(target: Path) -> None:
    placed = put_placeholder(str(target), RECORD)
    entry = mounted(target)
    assert entry is not None
    assert is_placeholder(entry)
    assert placed == PlaceholderState(str(target), entry.device, "nas-1")
    assert read_record(str(target)) == RECORD
    assert (target / RECORD_NAME).stat().st_mode & 0o777 == 0o400


def test_a_placeholder_that_stands_is_kept(target: Path) -> None:
    assert put_placeholder(str(target), RECORD) == put_placeholder(str(target), RECORD)
    mount.umount(target)
    assert mounted(target) is None


def test_a_stray_writer_gets_no_room(target: Path) -> None:
    put_placeholder(str(target), RECORD)
    (target / "subpath").mkdir()  # kubelet must be able to
    with pytest.raises(OSError, match="No space"):
        (target / "stray").write_bytes(b"x" * 8192)


def test_a_placeholder_without_its_record_is_refused(target: Path) -> None:
    put_placeholder(str(target), RECORD)
    (target / RECORD_NAME).unlink()
    with pytest.raises(FailedPrecondition, match="placeholder"):
        read_record(str(target))


def test_unmount(target: Path) -> None:
    mount.mount("none", target, "tmpfs")
    asyncio.run(NodeMounts(unmount_timeout_s=10).unmount(str(target)))
    assert mounted(target) is None


def test_a_busy_mount_is_detached(target: Path) -> None:
    mount.mount("none", target, "tmpfs")
    with (target / "open").open("w"):
        asyncio.run(NodeMounts(unmount_timeout_s=10).unmount(str(target)))
        assert mounted(target) is None


def test_nothing_mounted_is_fine(target: Path) -> None:
    asyncio.run(NodeMounts(unmount_timeout_s=10).unmount(str(target)))


def test_recovery_puts_the_placeholder_that_a_crash_left_out(target: Path, tmp_path: Path) -> None:
    directory = tmp_path / "sandbox"
    directory.mkdir()
    unfinished = PlaceholderState(str(target), "", "nas-1")
    state.save(directory, SandboxState("s1").with_volume(RECORD).with_placeholder(unfinished))
    recovery.cleanup(directory, flush_s=0)
    recovery.cleanup(directory, flush_s=0)
    assert read_record(str(target)) == RECORD
    assert not directory.exists()


def test_recovery_leaves_what_kubelet_unmounted(target: Path, tmp_path: Path) -> None:
    directory = tmp_path / "sandbox"
    directory.mkdir()
    finished = PlaceholderState(str(target), "0:99", "nas-1")
    state.save(directory, SandboxState("s1").with_volume(RECORD).with_placeholder(finished))
    recovery.cleanup(directory, flush_s=0)
    assert mounted(target) is None


def test_recovery_without_a_readable_state_still_clears_the_directory(tmp_path: Path) -> None:
    directory = tmp_path / "sandbox"
    (directory / "shared" / "c1" / "rootfs").mkdir(parents=True)
    (directory / "state.json").write_text("{")
    mount.mount("none", directory / "shared" / "c1" / "rootfs", "tmpfs")
    recovery.cleanup(directory, flush_s=0)
    assert not directory.exists()
