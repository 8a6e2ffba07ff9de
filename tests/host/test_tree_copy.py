"""Copies of trees: equal to what was copied, whatever is in it and whoever else is at it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
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
                # What other tests left open the collector may close meanwhile.
                assert set(os.listdir("/proc/self/fd")) <= before, "descriptors are left open"
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


STALE = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
ON_THE_SHARE = (
    *("open", "stat", "scandir", "mkdir", "unlink", "link", "symlink", "readlink", "mknod"),
    *("pread", "pwrite", "copy_file_range", "lseek", "ftruncate", "fsync"),
    *("chown", "fchown", "fchmod", "utime", "listxattr", "getxattr", "setxattr"),
)


def interpose(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], before: Callable[..., None]
) -> None:
    """Call `before` with the arguments of each of these functions of `os`."""

    def around(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before(*args, **kwargs)
            return real(*args, **kwargs)

        return call

    for name in names:
        monkeypatch.setattr(os, name, around(getattr(os, name)))


@pytest.mark.parametrize("questions", [1, 2, 3, 8])
def test_a_share_that_is_away_for_a_moment_loses_nothing(questions: int) -> None:
    """To ESTALE comes all that is asked of it then, wherever the copy is: it fails, or is whole."""
    failed = whole = start = 0
    while whole < 2:  # at some time it is away only after the copy is done
        with trees() as pair, pytest.MonkeyPatch.context() as monkeypatch:
            for name in ("a", "b", "c"):
                (pair.source / f"dir/{name}").mkdir(parents=True)
                (pair.source / f"dir/{name}/file").write_text(name)
                (pair.source / f"dir/{name}/link").symlink_to(name)
            os.link(pair.source / "dir/a/file", pair.source / "same")
            calls = 0

            def away(*_: Any, first: int = start, **__: Any) -> None:
                nonlocal calls
                calls += 1
                if first <= calls < first + questions:
                    raise STALE

            try:
                with monkeypatch.context() as during:
                    interpose(during, ON_THE_SHARE, away)
                    progress = pair.copy()
            except OSError as error:
                assert error.errno in (errno.ESTALE, errno.EIO)  # noqa: PT017
                failed += 1
            else:
                assert progress.vanished == 0
                pair.same()
                whole += start > calls
            start += 1
    assert failed > 20


def test_half_a_file_that_cannot_be_removed_is_no_copy(
    pair: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its source has gone, but not as far as is known what was copied of it."""
    (pair.source / "file").write_text("content")

    def vanish(_: object, source: int, target: int) -> None:
        os.write(target, b"con")
        (pair.source / "file").rename(pair.source.parent / "gone")
        raise STALE

    def stays(*_: object, **__: object) -> None:
        raise STALE

    monkeypatch.setattr(file_content.Contents, "copy", vanish)
    with monkeypatch.context() as during:
        during.setattr(os, "unlink", stays)
        with pytest.raises(OSError, match="half a copy stays") as caught:
            pair.copy()
    assert caught.value.errno == errno.EIO


def test_a_file_that_is_replaced_while_it_is_read_is_copied_anew(
    pair: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So programs save; over version 3 what was open before is then stale."""
    (pair.source / "file").write_text("before")
    (pair.source / "link").symlink_to("before")
    copy, readlink = file_content.Contents.copy, os.readlink

    def replaced(self: file_content.Contents, source: int, target: int) -> None:
        copy(self, source, target)
        if (pair.source / "file").read_text() == "before":
            (pair.source / "new").write_text("after")
            (pair.source / "new").rename(pair.source / "file")
            raise STALE

    def replaced_link(*args: Any, **kwargs: Any) -> str:
        if readlink(pair.source / "link") == "before":
            (pair.source / "link").unlink()
            (pair.source / "link").symlink_to("after")
            raise STALE
        return str(readlink(*args, **kwargs))

    monkeypatch.setattr(file_content.Contents, "copy", replaced)
    with monkeypatch.context() as during:
        during.setattr(os, "readlink", replaced_link)
        progress = pair.copy()
    assert progress.vanished == 0
    assert (pair.target / "file").read_text() == "after"
    assert (pair.target / "link").readlink() == Path("after")
    assert sorted(path.name for path in pair.target.iterdir()) == ["file", "link"]


def test_a_name_that_is_listed_twice_is_copied_once(
    pair: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As servers do with what is replaced while they list, if its place is then a later one."""
    (pair.source / "dir").mkdir()
    (pair.source / "dir/inner").write_text("inner")
    (pair.source / "file").write_text("file")
    (pair.source / "link").symlink_to("file")
    os.link(pair.source / "file", pair.source / "same")
    scandir = os.scandir

    @contextlib.contextmanager
    def twice(fd: int) -> Iterator[Any]:
        with scandir(fd) as entries:
            found = list(entries)
        yield iter([*found, *found])

    with monkeypatch.context() as during:
        during.setattr(os, "scandir", twice)
        progress = pair.copy()
    pair.same()
    assert progress.vanished == 0


@pytest.mark.parametrize("open_levels", [1, 64])
def test_a_tree_that_is_removed_while_it_is_copied_is_left_out(
    pair: Trees, monkeypatch: pytest.MonkeyPatch, open_levels: int
) -> None:
    """What was copied of it stays. All that is asked of a directory that another client removed is
    stale, which a share that is away would be, too.
    """
    monkeypatch.setattr(tree_copy, "_OPEN_LEVELS", open_levels)
    deep = pair.source / "dir/sub/deep"
    deep.mkdir(parents=True)
    for name in ("one", "two", "three"):
        (deep / name).write_text(name)
        (pair.source / f"stays/{name}").mkdir(parents=True)
    os.chown(pair.source / "dir", 1000, 2000)
    removed: set[tuple[int, int]] = set()

    def remove(_: Progress) -> None:
        if not removed and any((pair.target / "dir/sub/deep").glob("*")):
            for path in (deep, *deep.parents[:2]):
                removed.add((path.stat().st_dev, path.stat().st_ino))
            subprocess.run(["rm", "--recursive", pair.source / "dir"], check=True)

    def answer(*args: Any, dir_fd: int | None = None, **_: Any) -> None:
        fd = args[0] if dir_fd is None else dir_fd
        if isinstance(fd, int) and removed:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) in removed:
                raise STALE

    with monkeypatch.context() as during:
        interpose(during, ("open", "stat", "scandir", "listxattr", "getxattr"), answer)
        progress = pair.copy(remove)
    assert progress.vanished_names == ["dir"]
    copied, original = described(pair.target), described(pair.source)
    assert copied.pop("dir")[1:3] == (1000, 2000)
    assert original.pop(".") != copied.pop(".")  # its time was changed
    assert {path: copied[path] for path in copied if not path.startswith("dir/")} == original


def test_each_directory_that_is_noted_is_a_step(pair: Trees) -> None:
    """Else a directory of very many looked like a copy that gets nowhere."""
    for name in range(5):
        (pair.source / str(name)).mkdir()
    told: list[int] = []
    pair.copy(lambda progress: told.append(progress.files))
    assert told.count(1) == 1 + 5


def test_nothing_is_inherited_from_where_the_copy_is_made(pair: Trees) -> None:
    """A share's default access control list is one for what is made there, not for copies."""
    entries = ((1, 7, -1), (2, 7, 1234), (4, 5, -1), (16, 7, -1), (32, 5, -1))
    access_list = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *one) for one in entries)
    try:
        os.setxattr(pair.source.parent, "system.posix_acl_default", access_list)
    except OSError as error:
        pytest.skip(f"no access control lists: {error}")
    for path in (pair.target, pair.links):
        path.rmdir()
        path.mkdir()
        assert os.listxattr(path)
    for path in (pair.source / "dir", pair.source / "dir/own", pair.source / "dir/own/dir"):
        path.mkdir(0o770)
    os.setxattr(pair.source / "dir/own", "system.posix_acl_default", access_list)
    for path in (pair.source / "file", pair.source / "dir/file", pair.source / "dir/own/file"):
        path.write_text("secret")
        path.chmod(0o660)
    os.link(pair.source / "file", pair.source / "same")
    os.mkfifo(pair.source / "fifo", 0o660)
    pair.copy()
    pair.same()
    assert os.listxattr(pair.target / "dir/own") == ["system.posix_acl_default"]
    assert [os.listxattr(pair.target / name) for name in ("file", "dir")] == [[], []]


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
