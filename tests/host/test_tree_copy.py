"""Copies of trees: equal to what was copied, whatever is in it and whoever else is at it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kangaroo.csi import file_content, tree_copy
from kangaroo.csi.tree_copy import Progress, Unfit

MIB = 1 << 20


class Trees:
    """A directory to copy from, one to copy to, and one for links, beside each other."""

    def __init__(self, around: Path) -> None:
        self.source, self.target, self.links = (
            around / name for name in ("source", "target", "links")
        )
        for path in (self.source, self.target, self.links):
            path.mkdir()

    def copy(self, tell: Callable[[Progress], None] = lambda _: None) -> Progress:
        progress = Progress(tell)
        with contextlib.ExitStack() as stack:
            fds = []
            for path in (self.source, self.target, self.links):
                fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
                stack.callback(os.close, fds[-1])
            before = set(os.listdir("/proc/self/fd"))
            try:
                tree_copy.copy(fds[0], fds[1], fds[2], progress)
            finally:
                assert set(os.listdir("/proc/self/fd")) == before, "descriptors are left open"
        for path in self.links.iterdir():
            path.unlink()
        return progress

    def same(self) -> None:
        assert described(self.target) == described(self.source)


def described(root: Path) -> dict[str, tuple[Any, ...]]:
    """What a tree is, by path: all that a copy keeps. Files that are one have the same group."""
    groups: dict[int, str] = {}
    found: dict[str, tuple[Any, ...]] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        name = str(path.relative_to(root))
        status = path.lstat()
        facts: list[Any] = [status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns]
        facts += [groups.setdefault(status.st_ino, name), status.st_rdev]
        if path.is_symlink():
            facts.append(os.readlink(path))
        elif path.is_file():
            facts += [path.read_bytes(), status.st_nlink]
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            facts.append({key: os.getxattr(path, key) for key in os.listxattr(path)})
        found[name] = tuple(facts)
    return found


@contextlib.contextmanager
def trees() -> Iterator[Trees]:
    around = tempfile.mkdtemp()
    try:
        yield Trees(Path(around))
    finally:  # shutil.rmtree recurses
        subprocess.run(["rm", "--recursive", around], check=True)


@pytest.fixture
def pair() -> Iterator[Trees]:
    with trees() as made:
        yield made


@pytest.fixture(params=["clone or copy_file_range", "read and write"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the file system offers, and on one that offers nothing and tells of no holes."""
    if request.param != "read and write":
        return
    seek = os.lseek

    def unsupported(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "not here")

    def ignorant(fd: int, position: int, how: int) -> int:
        if how == os.SEEK_DATA:
            return position
        return os.fstat(fd).st_size if how == os.SEEK_HOLE else seek(fd, position, how)

    monkeypatch.setattr(fcntl, "ioctl", unsupported)
    monkeypatch.setattr(os, "copy_file_range", unsupported)
    monkeypatch.setattr(os, "lseek", ignorant)


@pytest.mark.usefixtures("way")
def test_every_kind_of_entry(pair: Trees) -> None:
    source = pair.source
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/file").write_bytes(os.urandom(3 * MIB + 17))
    (source / "empty").touch()
    (source / "tool").write_text("#!/bin/sh\n")
    (source / "tool").chmod(0o6755)
    (source / "link").symlink_to("/nowhere/../else")
    os.link(source / "tool", source / "deep/same tool")
    os.link(source / "link", source / "deep/same link", follow_symlinks=False)
    os.mkfifo(source / "fifo", 0o640)
    os.mknod(source / "device", stat.S_IFCHR | 0o660, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(source / "socket"))
    (source / os.fsdecode(b"not \xff text")).write_text("odd name")
    os.chown(source / "deep", 1000, 2000)
    os.chown(source / "tool", 1001, 2001)
    (source / "tool").chmod(0o6755)
    os.chown(source / "link", 1002, 2002, follow_symlinks=False)
    os.utime(source / "link", ns=(5, 6), follow_symlinks=False)
    os.setxattr(source / "empty", "user.note", b"\0kept")
    os.setxattr(source / "deep", "user.note", b"too")
    (source / "deep").chmod(0o1770)
    os.utime(source / "deep", ns=(1, 2))
    os.utime(source, ns=(3, 4))
    progress = pair.copy()
    pair.same()
    assert progress.vanished == 0
    assert progress.bytes == 3 * MIB + 17 + 18


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "data",
    [[(0, b"head")], [(5 * MIB, b"tail")], [(2 * MIB, b"x" * MIB), (7 * MIB, b"y")], []],
)
def test_holes_are_kept(pair: Trees, data: list[tuple[int, bytes]]) -> None:
    sparse = pair.source / "sparse"
    with sparse.open("wb") as file:
        for offset, content in data:
            file.seek(offset)
            file.write(content)
        file.truncate(8 * MIB)
    pair.copy()
    pair.same()
    copied, original = ((path / "sparse").lstat() for path in (pair.target, pair.source))
    assert copied.st_size == 8 * MIB
    assert copied.st_blocks <= original.st_blocks + 128  # 64 KiB, the hole that is looked for


@pytest.mark.usefixtures("way")
def test_a_large_file_is_written_through_step_by_step(
    pair: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the end of it would look like a copy that gets nowhere."""
    monkeypatch.setattr(file_content, "_UNSYNCED_BYTES", 2 * MIB)
    monkeypatch.setattr(file_content, "_STEP_BYTES", MIB)
    waiting = [0]
    sync = os.fdatasync

    def synced(fd: int) -> None:
        sync(fd)
        waiting.append(0)

    def tell(progress: Progress) -> None:
        waiting[-1] = progress.bytes - MIB * 2 * (len(waiting) - 1)

    monkeypatch.setattr(os, "fdatasync", synced)
    (pair.source / "large").write_bytes(b"x" * (7 * MIB))
    pair.copy(tell)
    pair.same()
    assert len(waiting) == 4
    assert max(waiting) <= 2 * MIB


def test_what_is_written_as_zeros_stays_written(pair: Trees) -> None:
    """Room that a file has taken stays taken."""
    (pair.source / "zeros").write_bytes(bytes(MIB))
    pair.copy()
    assert (pair.target / "zeros").lstat().st_blocks * 512 >= MIB


def test_a_tree_deeper_than_descriptors_and_recursion(pair: Trees) -> None:
    fd = os.open(pair.source, os.O_PATH)
    for _ in range(1500):
        for name in ("b" * 100, "a"):
            os.mkdir(name, dir_fd=fd)
        os.mkfifo("fifo", dir_fd=fd)
        deeper = os.open("b" * 100, os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)
    progress = pair.copy()
    assert progress.files == 1 + 3 * 1500
    fd = os.open(pair.target, os.O_RDONLY)
    for _ in range(1500):
        assert sorted(os.listdir(fd)) == ["a", "b" * 100, "fifo"]
        deeper = os.open("b" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)


def test_links_in_a_tree_lead_nowhere(pair: Trees) -> None:
    victim = pair.source.parent / "victim"
    victim.mkdir()
    (victim / "file").write_text("untouched")
    (pair.source / "dir").symlink_to(victim)
    (pair.source / "file").symlink_to(victim / "file")
    pair.copy()
    pair.same()
    assert [path.name for path in victim.iterdir()] == ["file"]


def test_what_vanishes_is_left_out_and_named(pair: Trees) -> None:
    names = {"one", "two", "three"}
    for name in names:
        (pair.source / name).write_text(name)
    (pair.source / "dir/inner").mkdir(parents=True)
    gone: set[str] = set()

    def remove(progress: Progress) -> None:
        if progress.files == 2:  # the root, and the first file, which is open
            copied = set(os.listdir(pair.target))
            for name in names - copied - gone:
                (pair.source / name).unlink()
                gone.add(name)
        if (pair.target / "dir").exists() and (pair.source / "dir/inner").exists():
            (pair.source / "dir/inner").rmdir()

    progress = pair.copy(remove)
    assert progress.vanished == 2
    assert set(progress.vanished_names) == names - set(os.listdir(pair.target))
    assert os.listdir(pair.target / "dir") == []


def test_a_file_that_grows_and_one_that_shrinks(pair: Trees, monkeypatch: Any) -> None:
    """What was there when the copy of it began is copied, as far as it is still there."""
    monkeypatch.setattr(file_content, "_STEP_BYTES", MIB)
    (pair.source / "file").write_bytes(b"x" * (4 * MIB))

    def change(progress: Progress) -> None:
        if progress.bytes == MIB:
            with (pair.source / "file").open("ab") as file:
                file.truncate(2 * MIB)

    pair.copy(change)
    assert (pair.target / "file").read_bytes() == b"x" * (2 * MIB)


def test_a_directory_that_is_moved_away_amid_leads_nowhere(
    pair: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way back is by "..", which then leads to another directory: it is not gone into."""
    monkeypatch.setattr(tree_copy, "_OPEN_LEVELS", 0)
    (pair.source / "a/b/c").mkdir(parents=True)
    (pair.source / "a/b/c/file").touch()
    outside = pair.source.parent / "outside"
    outside.mkdir()

    def move(_: Progress) -> None:
        if (pair.target / "a/b/c").exists() and (pair.source / "a/b").exists():
            (pair.source / "a/b").rename(outside / "b")
            (outside / "b/c").rename(outside / "c")

    with pytest.raises(Unfit, match="a/b/c was moved while it was copied"):
        pair.copy(move)
    assert sorted(path.name for path in outside.iterdir()) == ["b", "c"]


def test_another_file_system_is_refused(pair: Trees) -> None:
    from kangaroo.linux import mount

    (pair.source / "other").mkdir()
    mount.mount("tmpfs", str(pair.source / "other"), "tmpfs")
    try:
        with pytest.raises(Unfit, match="other is another file system"):
            pair.copy()
    finally:
        mount.umount(str(pair.source / "other"))


NAMES = st.sampled_from(["a", "b", "c", "ü", "-f", "x" * 255, " "])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
CONTENTS = st.lists(
    st.tuples(st.integers(0, 300_000), st.binary(min_size=1, max_size=40)), max_size=3
)
MODES = st.integers(0, 0o7777)
ENTRIES = st.lists(
    st.tuples(PATHS, st.sampled_from(["file", "dir", "link", "fifo", "hard"]), MODES, CONTENTS),
    max_size=14,
)


def plant(root: Path, path: str, kind: str, mode: int, content: list[tuple[int, bytes]]) -> None:
    place = root / path
    with contextlib.suppress(OSError):  # something stands there already
        if kind == "dir":
            place.mkdir(parents=True)
        elif place.parent.is_dir():
            if kind == "file":
                with place.open("xb") as file:
                    for offset, part in content:
                        file.seek(offset)
                        file.write(part)
                    file.truncate(content[-1][0] if content else 0)
                os.setxattr(place, "user.n", bytes([mode & 0xFF]))
            elif kind == "fifo":
                os.mkfifo(place)
            elif kind == "link":
                place.symlink_to(path)
            elif files := [one for one in sorted(root.rglob("*")) if one.is_file()]:
                os.link(files[mode % len(files)], place, follow_symlinks=False)
        if not place.is_symlink() and place.exists():
            place.chmod(mode)
            os.utime(place, ns=(mode, mode * 1_000_003))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(entries=ENTRIES)
def test_a_generated_tree_equals_its_copy(
    entries: list[tuple[str, str, int, list[tuple[int, bytes]]]],
) -> None:
    with trees() as pair:
        for entry in entries:
            plant(pair.source, *entry)
        pair.copy()
        pair.same()
