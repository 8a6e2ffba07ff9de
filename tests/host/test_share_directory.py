"""A volume's missing directory made on a share, here a local directory that others write to."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from tests.hostile_tree import ENTRIES, PATHS, plant

from kangaroo.csi import share_directory


def ensure(root: Path, path: str, permissions: int = 0o777) -> bool:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return share_directory.ensure(fd, path, permissions)
    finally:
        os.close(fd)


def test_made_once_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert ensure(tmp_path, "a/b") is True
    finally:
        os.umask(before)
    (tmp_path / "a/b").chmod(0o700)
    assert ensure(tmp_path, "a/b") is False
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o777
    assert (tmp_path / "a/b").stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("kind", ["file", "inside", "outside", "loop"])
def test_what_is_no_directory_is_an_error(tmp_path: Path, kind: str) -> None:
    plant(tmp_path, "odd", kind, "/")
    with pytest.raises(OSError):  # noqa: PT011 - which one is the kernel's
        ensure(tmp_path, "odd/sub")


@settings(max_examples=200, deadline=None)
@given(entries=ENTRIES, path=PATHS)
def test_nothing_is_made_outside_the_share(entries: list[tuple[str, str]], path: str) -> None:
    with tempfile.TemporaryDirectory() as around:
        root, outside = Path(around) / "share", Path(around) / "outside"
        root.mkdir()
        outside.mkdir()
        for place, kind in entries:
            plant(root, place, kind, outside)
        try:
            ensure(root, path)
        except OSError:
            pass
        else:
            assert (root / path).is_dir()
        assert sorted(os.listdir(around)) == ["outside", "share"]
        assert os.listdir(outside) == []
