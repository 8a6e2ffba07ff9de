"""What killed builds leave in the cache goes, and nothing of the machine goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kangaroo.linux import mount, mountinfo
from kangaroo_lab import cache


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Path]:
    """A file system of the machine, shared as systemd has them, with another one in it."""
    path = tmp_path / "machine"
    for each in (path, path / "inner"):
        each.mkdir()
        mount.mount("tmpfs", each, "tmpfs")
        mount.make_shared(each)
        (each / "file").touch()
    yield path
    mount.umount(path, mount.UmountFlag.DETACH)


def test_what_a_killed_build_had_mounted_stays_where_it_came_from(
    tmp_path: Path, machines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KANGAROO_CACHE", str(tmp_path / "cache"))
    left = tmp_path / "cache" / ".thing-deadbeef"
    (left / "dev").mkdir(parents=True)
    mount.bind(machines, left / "dev", recursive=True)
    cache.artefact("thing", "0" * 16, lambda path: None)
    assert not left.exists()
    assert {path.name for path in machines.iterdir()} == {"file", "inner"}
    assert (machines / "inner" / "file").exists()
    points = {entry.mount_point for entry in mountinfo.read()}
    assert str(machines / "inner") in points
    assert not any(point.startswith(str(left)) for point in points)
