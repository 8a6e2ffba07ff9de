"""Where a volume's missing directory is made, and what is said when it cannot be."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kangaroo.csi import missing_directory
from kangaroo.csi.share import Worker
from kangaroo.errors import FailedPrecondition, MountFailed
from kangaroo.nas import volume as nas_volume
from kangaroo.nas.volume import NasVolume


@dataclass(frozen=True, slots=True)
class Server(Worker):
    """A server that has these directories, and denies or lacks all others."""

    directory: Path = Path("/nowhere")
    timeout_s: float = 10
    there: tuple[str, ...] = ()
    lacking: int = errno.ENOENT
    refusal: str = ""
    asked: list[tuple[str, str, int]] = field(default_factory=list)

    async def ensure_directory(self, share: NasVolume, path: str, permissions: int) -> bool:
        assert 0 < self.timeout_s <= 10
        self.asked.append((share.path, path, permissions))
        if share.path not in self.there:
            raise MountFailed(share.source, "", "absent", errno=self.lacking)
        if self.refusal:
            raise FailedPrecondition(self.refusal)
        return True


def volume(path: str, version: str = "4.1") -> NasVolume:
    return nas_volume.parse({"server": "nas", "path": path, "vers": version, "mode": "700"})


def make(server: Server, path: str, version: str = "4.1") -> None:
    wanted = volume(path, version)
    failure = MountFailed(wanted.source, "", "no such directory", errno=server.lacking)
    asyncio.run(missing_directory.make(server, wanted, failure, 10))


@pytest.mark.parametrize(
    ("version", "number", "missing"),
    [
        ("3", errno.ENOENT, True),
        ("3", errno.EACCES, True),
        ("4.1", errno.ENOENT, True),
        ("4.1", errno.EACCES, False),
        ("4.1", errno.ETIMEDOUT, False),
        ("3", None, False),
    ],
)
def test_what_a_missing_directory_looks_like(
    version: str, number: int | None, missing: bool
) -> None:
    failure = MountFailed("nas:/a", "", "failed", errno=number)
    assert missing_directory.may_be_missing(volume("/a", version), failure) is missing
    root = nas_volume.parse({"server": "nas", "path": "/", "vers": version})
    assert missing_directory.may_be_missing(root, failure) is False


def test_made_beneath_the_nearest_directory_that_is_there() -> None:
    server = Server(there=("/", "/a"))
    make(server, "/a/b/c")
    assert server.asked == [("/a/b", "c", 0o777), ("/a", "b/c", 0o777)]


def test_version_3_that_denies_what_is_absent() -> None:
    server = Server(there=("/a",), lacking=errno.EACCES)
    make(server, "/a/b/c", version="3")
    assert [path for path, _, _ in server.asked] == ["/a/b", "/a"]


def test_nothing_to_make_it_in() -> None:
    server = Server()
    with pytest.raises(MountFailed, match=r"nas:/a/b .*no such directory$"):
        make(server, "/a/b")
    assert [path for path, _, _ in server.asked] == ["/a", "/"]


def test_a_refusal_is_said_and_ends_the_search() -> None:
    server = Server(there=("/", "/a"), refusal="read-only file system")
    with pytest.raises(MountFailed, match="is not made: read-only file system") as caught:
        make(server, "/a/b")
    assert caught.value.errno == errno.ENOENT
    assert len(server.asked) == 1


def test_nothing_is_made_in_the_driver_s_own_directory() -> None:
    server = Server(there=("/", "/a"))
    with pytest.raises(MountFailed):
        make(server, "/a/.kangaroo/volumes")
    assert server.asked == []
