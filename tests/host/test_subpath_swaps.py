"""A subPath of which a component is swapped for a symbolic link while it is bound never leads out.

A process exchanges a directory and a link as fast as it can (renameat2(2), RENAME_EXCHANGE), which
a client of the NAS may do, too. What the links point to has the same tree inside as the volume, so
a walk that followed one would succeed.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import multiprocessing
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kangaroo.agent.nas import _bind_beneath
from kangaroo.linux import libc
from kangaroo.linux.mount import make_private, umount
from kangaroo.linux.openat2 import open_beneath

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CLONE_NEWNS = 0x00020000

# Binds and refusals that are wanted of each kind of swap, and the seconds that they may take.
TRIES = 20
DEADLINE_S = 5
# Swapped component → the subPath with it, and how deep it lies.
POSITIONS = {"first": ("x/inner/leaf", 0), "middle": ("top/x/leaf", 1), "last": ("top/x", 1)}
LINKS = ("absolute", "relative", "dots", "absolute-inside")
REFUSED = (errno.EXDEV, errno.ELOOP)


@dataclass(frozen=True)
class Scene:
    """A volume in a directory with other things; `real` is the directory that is swapped."""

    base: Path
    subpath: str
    rest: str  # of the subpath, below the swapped component
    real: int
    swap: tuple[Path, Path]

    @property
    def volume(self) -> Path:
        return self.base / "volume"

    def outside(self) -> set[str]:
        """Everything that is not in the volume."""
        return {str(path) for path in self.base.rglob("*") if self.volume not in path.parents}


def tree(directory: Path) -> None:
    (directory / "inner/leaf").mkdir(parents=True)
    (directory / "leaf").mkdir()


@pytest.fixture(params=[f"{where}-{link}" for where in POSITIONS for link in LINKS])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    where, _, link = request.param.partition("-")
    subpath, depth = POSITIONS[where]
    base = tmp_path / "nas"
    for directory in (base, base / "outside", base / "volume", base / "volume/top"):
        tree(directory)
    place = base / "volume" / subpath.partition("x")[0]
    tree(place / "x")
    up = "../" * (depth + 1)
    texts = {
        "absolute": f"{base}/outside",
        "relative": f"{up}outside",
        "dots": up.rstrip("/"),
        "absolute-inside": f"{base}/volume/top",
    }
    (place / "link").symlink_to(texts[link])
    real = os.open(place / "x", os.O_PATH)
    rest = subpath.partition("x")[2].lstrip("/")
    yield Scene(base, subpath, rest, real, (place / "x", place / "link"))
    os.close(real)


def exchange(one: Path, other: Path) -> None:
    names = os.fsencode(one), os.fsencode(other)
    libc.call("renameat2", _AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)


@dataclass(frozen=True)
class Count:
    """Exchanges so far, in memory that processes share."""

    place: mmap.mmap

    def add(self) -> None:
        self.place[:8] = struct.pack("q", self.now + 1)

    @property
    def now(self) -> int:
        return int(struct.unpack("q", self.place[:8])[0])


@contextlib.contextmanager
def swapping(one: Path, other: Path) -> Iterator[Count]:
    """Exchange the two until the block ends."""
    count = Count(mmap.mmap(-1, 8))

    def forever() -> None:
        while True:
            exchange(one, other)
            count.add()

    process = multiprocessing.get_context("fork").Process(target=forever)
    process.start()
    try:
        yield count
    finally:
        process.kill()
        process.join()


@pytest.fixture
def own_mounts() -> Iterator[None]:
    """A mount namespace for this process, and back."""
    before = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    libc.call("unshare", _CLONE_NEWNS)
    make_private("/", recursive=True)
    yield
    libc.call("setns", before, _CLONE_NEWNS)
    os.close(before)


def bound(scene: Scene, subpath: str, target: Path, *, create: bool) -> os.stat_result | None:
    """What was bound on `target`, which is free again afterwards; None when that was refused."""
    try:
        _bind_beneath(str(scene.volume), subpath, create, str(target))
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        return None
    found = target.stat()
    umount(target)
    target.rmdir()
    return found


@pytest.mark.usefixtures("own_mounts")
def test_what_is_bound_is_the_directory_and_never_the_links_target(
    scene: Scene, tmp_path: Path
) -> None:
    before = scene.outside()
    real = os.stat(scene.rest or ".", dir_fd=scene.real)
    refused = taken = 0
    deadline = time.monotonic() + DEADLINE_S
    with swapping(*scene.swap) as count:
        # As long as it takes for both to be met often, on a machine that is busy, too.
        while min(refused, taken, count.now // 50) < TRIES and time.monotonic() < deadline:
            found = bound(scene, scene.subpath, tmp_path / "targets/one", create=False)
            assert found is None or os.path.samestat(found, real)
            refused += found is None
            taken += found is not None
        assert min(refused, taken) > 0, (refused, taken, count.now)
    assert scene.outside() == before


@pytest.mark.usefixtures("own_mounts")
def test_what_is_created_is_in_the_directory_and_nothing_outside(
    scene: Scene, tmp_path: Path
) -> None:
    before = scene.outside()
    refused = taken = 0
    deadline = time.monotonic() + DEADLINE_S
    with swapping(*scene.swap) as count:
        while min(refused, taken, count.now // 50) < TRIES and time.monotonic() < deadline:
            new = f"new-{refused + taken}/deep"
            target = tmp_path / "targets/one"
            found = bound(scene, f"{scene.subpath}/{new}", target, create=True)
            if found is not None:
                made = os.stat(Path(scene.rest, new), dir_fd=scene.real)
                assert os.path.samestat(found, made)
            refused += found is None
            taken += found is not None
        assert min(refused, taken) > 0, (refused, taken, count.now)
    assert scene.outside() == before


def test_a_link_with_dots_that_stays_inside_is_followed_whatever_is_renamed(
    tmp_path: Path,
) -> None:
    """The kernel gives up on `..` when anything was renamed meanwhile: EAGAIN."""
    (tmp_path / "volume/a").mkdir(parents=True)
    (tmp_path / "volume/b").mkdir()
    (tmp_path / "volume/a/link").symlink_to("../b")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    volume = os.open(tmp_path / "volume", os.O_PATH)
    with swapping(tmp_path / "one", tmp_path / "other") as count:
        while count.now < 200 * TRIES:
            os.close(open_beneath(volume, "a/link", os.O_PATH))
    os.close(volume)
