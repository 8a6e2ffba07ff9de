"""What is left of a container that could not be made, and that nothing of it looks at a NAS."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from kangaroo.agent import containers, nas
from kangaroo.agent.containers import Containers
from kangaroo.agent.loop import Loop
from kangaroo.agent.nas import Volumes
from kangaroo.errors import DeadlineExceeded
from kangaroo.linux.mount import UmountFlag

SPEC = {"process": {}, "mounts": [{"destination": "/data", "type": "bind"}], "linux": {}}
STDIO = {"terminal": False, "stdin": None, "stdout": None, "stderr": None}
VOLUME = {"destination": "/data", "volume_id": "nas-1", "subpath": "", "create": False}


class LateVolumes:
    """A bind that comes, and is told to be late."""

    async def bind(self, *, target: str, **_: Any) -> None:
        os.makedirs(target)
        raise DeadlineExceeded("the server did not answer")


class NoChildren:
    def spawn(self, argv: tuple[str, ...], **_: Any) -> NoReturn:
        raise OSError(errno.EAGAIN, f"no process for {argv[0]}")


class Machine:
    """Mounts that are taken away, and paths that are looked at, in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[str, str]] = []
        monkeypatch.setattr(containers, "umount", self._umount)
        monkeypatch.setattr(nas, "umount", self._umount)
        for name in ("stat", "makedirs"):
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))
        isdir = self._watched("stat", os.path.isdir)
        monkeypatch.setattr(os.path, "isdir", isdir)

    def _umount(self, target: str, flags: UmountFlag) -> None:
        assert flags is UmountFlag.DETACH
        self.done.append(("umount", target))

    def _watched(self, name: str, call: Any) -> Any:
        def watched(path: Any, *arguments: Any, **named: Any) -> Any:
            self.done.append((name, os.fspath(path)))
            return call(path, *arguments, **named)

        return watched


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def made(directory: Path) -> Containers:
    return Containers(
        Loop(),
        NoChildren(),  # type: ignore[arg-type]
        LateVolumes(),  # type: ignore[arg-type]
        dial=None,  # type: ignore[arg-type]
        directory=str(directory),
        on_out_of_memory=lambda _: None,
    )


def create(made: Containers) -> None:
    creation = made.create(container_id="c", spec=SPEC, stdio=STDIO, volumes=[VOLUME], timeout_s=1)
    Loop().spawn(creation).result()


def test_a_bind_that_came_too_late_is_taken_away_unseen(tmp_path: Path, machine: Machine) -> None:
    place = str(tmp_path / "c/volumes/0")
    with pytest.raises(DeadlineExceeded):
        create(made(tmp_path))
    assert ("umount", place) in machine.done
    assert ("stat", place) not in machine.done
    assert list(tmp_path.iterdir()) == []


def test_why_a_container_was_not_made_is_told_also_when_it_cannot_be_removed(
    tmp_path: Path, machine: Machine
) -> None:
    (tmp_path / "crun/c").mkdir(parents=True)  # crun's delete has something to do, and fails
    guest = made(tmp_path)
    with pytest.raises(DeadlineExceeded, match="the server did not answer"):
        create(guest)
    assert ("umount", str(tmp_path / "c/volumes/0")) in machine.done
    assert guest._containers == {}


def test_a_mount_that_came_too_late_is_gone_before_its_place_is_looked_at(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nas, "NAS_DIRECTORY", str(tmp_path))
    target = str(tmp_path / "nas-1")

    class Given(Exception):
        pass

    class Children:
        async def call(self, *_: Any, **__: Any) -> NoReturn:
            raise Given

    volumes = Volumes(Loop(), Children())  # type: ignore[arg-type]
    request = nas.Request("nas:/x", "nfs4", ("ro",), "vers=4.2")
    with pytest.raises(Given):
        Loop().spawn(volumes._mount("nas-1", request, 1)).result()
    assert next(call for call in machine.done if call[1] == target) == ("umount", target)
