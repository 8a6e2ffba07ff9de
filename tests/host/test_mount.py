"""Mounts of this machine's kernel, in a mount namespace of the test's own."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kangaroo.linux import libc, mount, mountinfo
from kangaroo.linux.mount import MountFlag, UmountFlag
from kangaroo.nas import placeholder

CLONE_NEWNS = 0x00020000


class Elsewhere:
    """A thread in a mount namespace of its own: what it mounts ends with it."""

    def __init__(self) -> None:
        self._error: BaseException | None = None

    def run(self, test: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._body, args=(test,))
        thread.start()
        thread.join()
        if self._error is not None:
            raise self._error

    def _body(self, test: Callable[[], None]) -> None:
        try:
            libc.call("unshare", CLONE_NEWNS)
            mount.make_private("/", recursive=True)
            test()
        except BaseException as error:
            self._error = error


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    before = mountinfo.read()
    yield Elsewhere()
    assert mountinfo.read() == before


def table() -> tuple[mountinfo.MountEntry, ...]:
    return mountinfo.read("/proc/thread-self/mountinfo")


def test_placeholder_comes_and_goes(elsewhere: Elsewhere, tmp_path: Path) -> None:
    target = tmp_path / "a b\\c"
    target.mkdir()

    def test() -> None:
        mount.mount(
            placeholder.PLACEHOLDER_SOURCE,
            target,
            placeholder.PLACEHOLDER_FSTYPE,
            MountFlag.NOSUID | MountFlag.NODEV,
            placeholder.PLACEHOLDER_DATA,
        )
        entry = mountinfo.at(str(target), table())
        assert entry is not None
        assert placeholder.is_placeholder(entry)
        assert {"nosuid", "nodev"} <= set(entry.options)
        (target / "subpath").mkdir()  # as kubelet does for a subPath
        with pytest.raises(OSError, match="No space") as caught:
            (target / "stray").write_bytes(b"x" * 65536)
        assert caught.value.errno == errno.ENOSPC
        mount.umount(target)
        assert mountinfo.at(str(target), table()) is None

    elsewhere.run(test)


def test_read_only_bind_keeps_other_flags(elsewhere: Elsewhere, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()

    def test() -> None:
        mount.mount("tmpfs", source, "tmpfs", MountFlag.NOEXEC, "size=64k")
        (source / "inner").mkdir()
        mount.mount("tmpfs", source / "inner", "tmpfs", data="size=64k")
        mount.bind(source, target, recursive=True, read_only=True)
        for path in (target, target / "inner"):
            entry = mountinfo.at(str(path), table())
            assert entry is not None
            assert "ro" in entry.options
            with pytest.raises(OSError, match="Read-only"):
                (path / "file").touch()
        entry = mountinfo.at(str(target), table())
        assert entry is not None
        assert "noexec" in entry.options
        (source / "file").touch()

    elsewhere.run(test)


def test_propagation(elsewhere: Elsewhere, tmp_path: Path) -> None:
    def test() -> None:
        mount.bind(tmp_path, tmp_path)
        for make, said in ((mount.make_shared, "shared:"), (mount.make_slave, "")):
            make(tmp_path)
            entry = mountinfo.at(str(tmp_path), table())
            assert entry is not None
            assert "".join(entry.propagation).startswith(said)

    elsewhere.run(test)


def test_stacked_mounts_are_taken_from_the_top(elsewhere: Elsewhere, tmp_path: Path) -> None:
    def test() -> None:
        for source in ("one", "two"):
            mount.mount(source, tmp_path, "tmpfs")
        sources = []
        while (entry := mountinfo.at(str(tmp_path), table())) is not None:
            sources.append(entry.source)
            mount.umount(tmp_path, UmountFlag.DETACH)
        assert sources == ["two", "one"]

    elsewhere.run(test)


def test_errors_name_the_path(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with pytest.raises(FileNotFoundError) as caught:
        mount.mount("tmpfs", absent, "tmpfs")
    assert caught.value.filename == str(absent)
    with pytest.raises(OSError, match="Invalid argument") as invalid:
        mount.umount(tmp_path)
    assert invalid.value.filename == str(tmp_path)
    with pytest.raises(FileNotFoundError):
        mount.bind(absent, tmp_path, read_only=True)
    with pytest.raises(FileNotFoundError) as nowhere:
        mount.bind(tmp_path, absent, read_only=True)
    assert nowhere.value.filename == str(absent)
