"""openat2(2): what lies beneath, and only that."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kangaroo.linux.openat2 import ensure_directory_beneath, open_beneath


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "secret").write_text("outside")
    root = tmp_path / "volume"
    (root / "a/b").mkdir(parents=True)
    (root / "inside").symlink_to("a/b")
    (root / "outside").symlink_to("../secret")
    (root / "absolute").symlink_to("/etc")
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def opened(volume: int, path: str) -> str:
    fd = open_beneath(volume, path, os.O_PATH)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("path", "ends"), [("a/b", "/a/b"), ("inside", "/a/b"), ("", "/volume"), ("a/../a", "/a")]
)
def test_what_lies_beneath_is_opened(volume: int, path: str, ends: str) -> None:
    assert opened(volume, path).endswith(ends)


@pytest.mark.parametrize("path", ["..", "outside", "absolute", "/etc", "a/../../secret"])
def test_what_leads_out_is_refused(volume: int, path: str) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
        opened(volume, path)


@pytest.mark.parametrize("path", ["", "a/b"])
def test_errors_name_the_path_as_it_was_given(volume: int, path: str) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        open_beneath(volume, path, os.O_WRONLY)
    assert caught.value.filename == path


def test_missing_directories_are_made_with_the_mode_whatever_the_umask(volume: int) -> None:
    before = os.umask(0o077)
    try:
        os.close(ensure_directory_beneath(volume, "a/x/y", 0o775))
        os.close(ensure_directory_beneath(volume, "a/x/y", 0o700))
    finally:
        os.umask(before)
    for path in ("a/x", "a/x/y"):
        assert stat.S_IMODE(os.stat(path, dir_fd=volume).st_mode) == 0o775


@pytest.mark.parametrize("path", ["outside/x", "absolute/x", "../x", "a/../../x"])
def test_nothing_is_made_outside(volume: int, path: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
        os.close(ensure_directory_beneath(volume, path, 0o755))
    assert not (tmp_path / "x").exists()
