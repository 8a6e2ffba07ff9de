"""What is done on a share, here a local directory: repeats, kills, and others who write there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.hostile_tree import ENTRIES, PATHS, inside, plant

import kangaroo
from kangaroo.csi import share_volumes
from kangaroo.csi.share_records import OnDelete, Record, Refused
from kangaroo.csi.volume_id import token_of
from kangaroo.linux import process

TOKEN = token_of("pvc-1")
OTHER = token_of("pvc-2")
RECORD = Record(name="pvc-1", subdir="a/pvc-1", capacity=10, on_delete=OnDelete.DELETE)


@dataclass(frozen=True)
class Share:
    """The share, in a directory that has more in it than the share."""

    path: Path
    fd: int

    @property
    def around(self) -> Path:
        return self.path.parent

    def create(self, record: Record = RECORD, token: str = TOKEN, mode: int = 0o755) -> Record:
        return share_volumes.create(self.fd, token, record, mode)

    def delete(self, token: str = TOKEN) -> None:
        share_volumes.delete(self.fd, token, contextlib.nullcontext)

    def record(self, token: str = TOKEN) -> Path:
        return self.path / f".kangaroo/volumes/{token}.json"

    def tree(self) -> list[str]:
        """What is on the share beside the driver's own."""
        found = (str(path.relative_to(self.path)) for path in self.path.rglob("*"))
        return sorted(name for name in found if not name.startswith(".kangaroo"))


@contextlib.contextmanager
def shared() -> Iterator[Share]:
    with tempfile.TemporaryDirectory() as around:
        path = Path(around) / "share"
        path.mkdir()
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield Share(path, fd)
        finally:
            os.close(fd)


@pytest.fixture
def share() -> Iterator[Share]:
    with shared() as made:
        yield made


def test_made_with_its_mode_whatever_the_umask(share: Share) -> None:
    before = os.umask(0o077)
    try:
        assert share.create(mode=0o2775) == RECORD
    finally:
        os.umask(before)
    assert (share.path / "a/pvc-1").stat().st_mode & 0o7777 == 0o2775
    assert share.record().stat().st_mode & 0o777 == 0o600


def test_a_repeat_keeps_the_first_record(share: Share) -> None:
    share.create()
    (share.path / "a/pvc-1/file").write_text("kept")
    assert share.create(replace(RECORD, capacity=99)) == RECORD
    assert share.tree() == ["a", "a/pvc-1", "a/pvc-1/file"]


def test_a_kill_after_the_record_is_gone_on_from(share: Share) -> None:
    share.create()
    (share.path / "a/pvc-1").rmdir()
    assert share.create().made
    assert share.tree() == ["a", "a/pvc-1"]


def test_deleted_twice(share: Share) -> None:
    share.create()
    (share.path / "a/pvc-1/deep/er").mkdir(parents=True)
    share.delete()
    share.delete()
    assert share.tree() == ["a"]
    assert list((share.path / ".kangaroo/trash").iterdir()) == []
    assert not share.record().exists()


def test_a_kill_amid_deletion_is_gone_on_from(share: Share) -> None:
    """Killed after the directory left its place; what stands there since then is not touched."""
    share.create()
    trash = share.path / ".kangaroo/trash"
    trash.mkdir()
    (share.path / "a/pvc-1").rename(trash / TOKEN)
    (trash / TOKEN / "rest").write_text("rest")
    assert share.create(replace(RECORD, name="pvc-2"), OTHER).made
    share.delete()
    assert list(trash.iterdir()) == []
    assert share.tree() == ["a", "a/pvc-1"]
    assert share.record(OTHER).exists()


def test_a_tree_deeper_than_any_recursion_is_deleted(share: Share) -> None:
    share.create()
    fd = os.open(share.path / "a/pvc-1", os.O_PATH)
    for _ in range(1500):
        os.mkdir("d" * 100, dir_fd=fd)
        deeper = os.open("d" * 100, os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)
    share.delete()
    assert share.tree() == ["a"]


@pytest.mark.parametrize("on_delete", OnDelete)
def test_a_volume_whose_parent_directory_was_removed_is_deleted(
    share: Share, on_delete: OnDelete
) -> None:
    share.create(replace(RECORD, on_delete=on_delete))
    shutil.rmtree(share.path / "a")
    share.delete()
    share.delete()
    assert share.tree() == []
    assert not share.record().exists()


def test_archived_and_retained(share: Share) -> None:
    for kind in (OnDelete.ARCHIVE, OnDelete.RETAIN):
        share.create(replace(RECORD, on_delete=kind, subdir=kind))
        (share.path / kind / "file").write_text(kind)
        share.delete()
        share.delete()
    archived, retained = sorted(path for path in share.path.iterdir() if path.name[0] != ".")
    assert archived.name.startswith("archived-archive.2")
    assert (archived / "file").read_text() == "archive"
    assert retained.name == "retain"


def test_the_longest_name_is_archived(share: Share) -> None:
    share.create(replace(RECORD, on_delete=OnDelete.ARCHIVE, subdir="ü" * 127))
    share.delete()
    (name,) = share.tree()
    assert name.startswith("archived-üü")


def test_what_was_there_before_stays(share: Share) -> None:
    (share.path / "a/pvc-1").mkdir(parents=True)
    assert not share.create().made
    share.delete()
    assert share.tree() == ["a", "a/pvc-1"]


def test_a_shared_directory_goes_with_the_first_volume_and_only_after_the_last(
    share: Share,
) -> None:
    assert share.create().made
    assert not share.create(replace(RECORD, name="pvc-2"), OTHER).made
    share.delete()
    assert share.tree() == ["a", "a/pvc-1"]
    share.delete(OTHER)
    assert share.tree() == ["a", "a/pvc-1"]  # nobody remembers who made it: never deleted wrongly


def test_a_volume_that_holds_another_is_not_deleted(share: Share) -> None:
    share.create(replace(RECORD, subdir="outer"))
    share.create(replace(RECORD, subdir="outer/inner", name="pvc-2"), OTHER)
    with pytest.raises(Refused, match="outer holds the volume pvc-2 in outer/inner"):
        share.delete()
    share.delete(OTHER)
    share.delete()
    assert share.tree() == []


def test_resize_only_grows(share: Share) -> None:
    share.create()
    sizes = (5, 20, 15)
    grown = [share_volumes.resize(share.fd, TOKEN, size) for size in sizes]
    assert [record and record.capacity for record in grown] == [10, 20, 20]
    assert share_volumes.resize(share.fd, OTHER, 5) is None


def document(**changes: Any) -> str:
    fields = {"version": 1, "name": "pvc-1", "subdir": "x", "capacity": 0, "on_delete": "delete"}
    return json.dumps({**fields, "made": True, **changes})


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", "{}", "\0", document()[:-1], document(version=2), document(more=1)),
        *(document(subdir=path) for path in ("", ".", "..", "/", "../victim", "/etc", "a/../..")),
        *(document(subdir=path) for path in (".kangaroo", ".kangaroo/volumes", "a//b", "a\0b")),
        *(document(subdir=other) for other in (None, 7, ["x"])),
        *(document(on_delete=other) for other in ("burn", None, 3)),
        *(document(**{key: []}) for key in ("name", "capacity", "made")),
        *(document(capacity=number) for number in (-1, 2**63, 10**20)),
        *(document(**{key: "a\udcff"}) for key in ("name", "subdir", "id")),
        document(source={"kind": "volume", "token": TOKEN, "id": "\ud800"}),
    ],
)
def test_a_damaged_or_forged_record_deletes_nothing(share: Share, text: str) -> None:
    share.create()
    victim = share.around / "victim"
    victim.mkdir()
    share.record().write_text(text)
    before = share.tree()
    with pytest.raises((Refused, OSError)):
        share.delete()
    assert share.tree() == before
    assert victim.exists()


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR])
def test_a_record_that_is_no_file_is_refused(share: Share, kind: int) -> None:
    share.create()
    odd = share.record(OTHER)
    if kind == stat.S_IFDIR:
        odd.mkdir()
    else:
        os.mknod(odd, kind | 0o600)
    with pytest.raises((Refused, OSError)):
        share.delete()
    assert share.tree() == ["a", "a/pvc-1"]


@pytest.mark.parametrize("where", ["a", "a/pvc-1", ".kangaroo", ".kangaroo/volumes"])
def test_links_are_not_followed(share: Share, where: str) -> None:
    """A pod that mounts the share puts links to what lies outside in every place."""
    victim = share.around / "victim"
    (victim / "pvc-1").mkdir(parents=True)
    (victim / "volumes").mkdir()
    share.create()
    if where.startswith(".kangaroo"):
        shutil.copytree(share.path / where, victim, dirs_exist_ok=True)
    shutil.rmtree(share.path / where)
    (share.path / where).symlink_to(victim)
    before = sorted(map(str, victim.rglob("*")))
    with contextlib.suppress(Refused, OSError):
        share.create(replace(RECORD, name="pvc-2"), OTHER)
    with contextlib.suppress(Refused, OSError):
        share.delete()
    assert sorted(map(str, victim.rglob("*"))) == before


STEPS = st.lists(
    st.tuples(st.sampled_from(["create", "delete", "forge"]), PATHS, st.sampled_from(OnDelete)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("target", ["other", "../share/other"])
def test_a_link_to_another_volume_is_not_followed(share: Share, target: str) -> None:
    share.create(replace(RECORD, name="pvc-2", subdir="other/pvc-1"), OTHER)
    share.create()
    shutil.rmtree(share.path / "a")
    (share.path / "a").symlink_to(target)
    with pytest.raises(OSError, match="a"):
        share.delete()
    with pytest.raises(OSError, match="a"):
        share.create(replace(RECORD, name="pvc-3", subdir="a/new"), token_of("pvc-3"))
    assert share.tree() == ["a", "other", "other/pvc-1"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(entries=ENTRIES, steps=STEPS)
def test_nothing_outside_a_hostile_share_is_touched(
    entries: list[tuple[str, str]], steps: list[tuple[str, str, OnDelete]]
) -> None:
    with shared() as share:
        victim = share.around / "victim"
        (victim / "a/volumes").mkdir(parents=True)
        (victim / "a/file").write_text("untouched")
        for path, kind in entries:
            plant(share.path, path, kind, victim)
        for operation, path, on_delete in steps:
            token = token_of(path)
            record = replace(RECORD, name=path, subdir=path, on_delete=on_delete)
            with contextlib.suppress(Refused, OSError):
                if operation == "create":
                    share.create(record, token)
                elif operation == "delete":
                    share.delete(token)
                elif inside(share.path, share.record(token)):
                    share.record(token).write_text(document(subdir=path, on_delete=on_delete))
        found = sorted(str(path.relative_to(share.around)) for path in victim.rglob("*"))
        assert found == ["victim/a", "victim/a/file", "victim/a/volumes"]
        assert (victim / "a/file").read_text() == "untouched"
        assert sorted(path.name for path in share.around.iterdir()) == ["share", "victim"]


def worker(directory: Path, mount: list[str], request: dict[str, Any]) -> dict[str, Any]:
    """Run the worker's process with another command in the place of the mount."""
    library = str(Path(kangaroo.__file__).parent.parent)
    module = ["-P", "-S", "-m", "kangaroo.csi.share_worker"]
    argv = [sys.executable, *module, str(directory / "lock"), str(directory / "share"), *mount]
    done = subprocess.run(
        argv,
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": library},
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_process_answers_what_happened(share: Share) -> None:
    creating = {
        "operation": "create",
        "token": TOKEN,
        "record": {"name": "pvc-1", "subdir": "v", "capacity": 1, "on_delete": "delete"},
        "permissions": 0o700,
    }
    made = worker(share.around, ["true"], creating)
    rest = {"made": True, "id": "", "source": {"kind": "", "token": "", "id": ""}, "whole": True}
    assert made["result"] == {**creating["record"], **rest}  # type: ignore[dict-item]
    total, available = worker(share.around, ["true"], {"operation": "capacity"})["result"]
    assert total > available > 0
    (share.path / "v").rmdir()
    (share.path / "v").symlink_to("/")
    refused = worker(share.around, ["true"], creating)
    assert refused["failed"] == "operation"
    assert refused["errno"] > 0
    failed = worker(share.around, ["sh", "-c", "echo no such export >&2; exit 32"], creating)
    assert failed == {"failed": "mount", "status": 32, "output": "no such export\n"}


def test_the_process_ends_with_the_driver(share: Share) -> None:
    """Here in its mount, which a FIFO holds up; a copy would go on for hours."""
    begun, gate = share.around / "begun", share.around / "gate"
    for path in (begun, gate):
        os.mkfifo(path)
    mount = ["sh", "-c", f"echo > {begun}; read end < {gate}"]
    module = ["-P", "-S", "-m", "kangaroo.csi.share_worker"]
    argv = [sys.executable, *module, str(share.around / "lock"), str(share.path), *mount]
    driver = (
        "import subprocess, sys\n"
        "worker = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\n"
        "worker.stdin.write(b'{}')\n"
        "worker.stdin.close()\n"
        "print(worker.pid, flush=True)\n"
        "worker.wait()\n"
    )
    library = str(Path(kangaroo.__file__).parent.parent)
    with subprocess.Popen(
        [sys.executable, "-c", driver, *argv],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": library},
    ) as parent:
        assert parent.stdout is not None
        worker_pid = int(parent.stdout.readline())
        begun.read_text()
        parent.kill()
    assert process.ended(worker_pid, 10)
    gate.write_text("end\n")
