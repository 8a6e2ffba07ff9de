"""Snapshots and volumes made from others, on a share that is a local directory: repeats, kills at
every point, and others who write there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.hostile_tree import ENTRIES, PATHS, inside, plant
from tests.killed import killed_at

from kangaroo.csi import share_copies, share_listing, share_snapshots, share_volumes, tree_copy
from kangaroo.csi.share_records import (
    SNAPSHOTS,
    VOLUMES,
    Absent,
    Busy,
    OnDelete,
    Record,
    Refused,
    Snapshot,
    Source,
    SourceKind,
    TooSmall,
)
from kangaroo.csi.tree_copy import Progress, Unfit
from kangaroo.csi.volume_id import token_of

VOLUME = token_of("pvc-1")
CLONE = token_of("pvc-2")
SNAPSHOT = token_of("snap-1")
RECORD = Record(name="pvc-1", subdir="v", capacity=10, on_delete=OnDelete.DELETE)
FROM_VOLUME = replace(RECORD, name="pvc-2", subdir="a/c", source=Source(SourceKind.VOLUME, VOLUME))
FROM_SNAPSHOT = replace(FROM_VOLUME, source=Source(SourceKind.SNAPSHOT, SNAPSHOT))
ASKED = Snapshot("snap-1", "", VOLUME, "id", 0, 1_700_000_000, whole=False)

none = contextlib.nullcontext


class Share:
    def __init__(self, around: Path) -> None:
        self.around = around
        self.path = around / "share"
        self.path.mkdir()
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)

    def volume(self, record: Record = RECORD, token: str = VOLUME) -> None:
        """A volume with something in it."""
        share_volumes.create(self.fd, token, record, 0o750)
        place = self.path / record.subdir
        (place / "dir").mkdir()
        (place / "dir/file").write_text("content")
        os.link(place / "dir/file", place / "same")
        (place / "link").symlink_to("dir/file")
        os.utime(place / "dir", ns=(1, 2))

    def snapshot(self) -> Snapshot:
        share_snapshots.begin(self.fd, SNAPSHOT, ASKED)
        return share_snapshots.fill(self.fd, SNAPSHOT, Progress(), none)

    def clone(self, record: Record = FROM_VOLUME) -> Record:
        there = share_volumes.create(self.fd, CLONE, record, 0o755)
        if there.whole:
            return there
        return share_volumes.fill(self.fd, CLONE, 0o755, Progress(), none)

    def delete(self, token: str = CLONE) -> None:
        share_volumes.delete(self.fd, token, none)

    def delete_snapshot(self) -> None:
        share_snapshots.delete(self.fd, SNAPSHOT, none)

    @property
    def data(self) -> Path:
        return self.path / share_snapshots.data(SNAPSHOT)

    def leftovers(self) -> list[str]:
        """What is being made or deleted."""
        own = self.path / ".kangaroo"
        places = [own / "making", own / "trash"]
        return [path.name for place in places if place.exists() for path in place.iterdir()]


def facts(root: Path) -> list[tuple[Any, ...]]:
    found = []
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        content = path.read_text() if stat.S_ISREG(status.st_mode) else ""
        same = (status.st_mode, status.st_mtime_ns, status.st_nlink, content)
        found.append((str(path.relative_to(root)), *same))
    return found


@contextlib.contextmanager
def shared() -> Iterator[Share]:
    with tempfile.TemporaryDirectory() as around:
        share = Share(Path(around))
        try:
            yield share
        finally:
            os.close(share.fd)


@pytest.fixture
def share() -> Iterator[Share]:
    with shared() as made:
        yield made


def test_a_snapshot_is_what_the_volume_was(share: Share) -> None:
    share.volume()
    before = facts(share.path / "v")
    begun = share_snapshots.begin(share.fd, SNAPSHOT, ASKED)
    assert (begun.whole, begun.size, begun.created_s) == (False, 10, 1_700_000_000)
    made = share.snapshot()
    assert made == replace(begun, whole=True)
    (share.path / "v/dir/file").write_text("changed since")
    assert share.snapshot() == made
    assert facts(share.data) == before
    assert share.leftovers() == []
    share.delete(VOLUME)  # the snapshot stands for itself
    share.clone(FROM_SNAPSHOT)
    assert facts(share.path / "a/c") == before


def test_a_clone_is_independent_and_repeated_at_no_cost(share: Share) -> None:
    share.volume()
    made = share.clone()
    assert (made.whole, made.made, made.capacity) == (True, True, 10)
    assert facts(share.path / "a/c") == facts(share.path / "v")
    (share.path / "a/c/dir/file").write_text("its own")
    assert share.clone() == made
    assert (share.path / "v/dir/file").read_text() == "content"
    assert (share.path / "a/c/same").read_text() == "its own"
    assert share.leftovers() == []
    share.delete()
    assert not (share.path / "a/c").exists()


def test_nothing_is_made_of_what_is_not_there_or_not_whole(share: Share) -> None:
    with pytest.raises(Absent):
        share_snapshots.begin(share.fd, SNAPSHOT, ASKED)
    for record in (FROM_VOLUME, FROM_SNAPSHOT):
        with pytest.raises(Absent):
            share.clone(record)
    share.volume()
    share_snapshots.begin(share.fd, SNAPSHOT, ASKED)
    with pytest.raises(Refused, match="the snapshot snap-1 is not whole yet"):
        share.clone(FROM_SNAPSHOT)
    share_volumes.create(share.fd, CLONE, FROM_VOLUME, 0o755)
    with pytest.raises(Refused, match="the volume pvc-2 is not whole yet"):
        share_snapshots.begin(share.fd, token_of("snap-2"), replace(ASKED, source=CLONE))
    assert not (share.path / "a").exists()


def test_sizes(share: Share) -> None:
    share.volume()
    with pytest.raises(TooSmall, match="9 bytes are less than the source's 10"):
        share.clone(replace(FROM_VOLUME, capacity=9))
    assert VOLUMES.tokens(share.fd) == [VOLUME]
    assert share.clone(replace(FROM_VOLUME, capacity=0)).capacity == 10


def test_a_place_that_is_taken_is_refused(share: Share) -> None:
    share.volume()
    (share.path / "a/c").mkdir(parents=True)
    with pytest.raises(Refused, match="a/c is there already"):
        share.clone()
    (share.path / "a/c").rmdir()
    share_volumes.create(share.fd, CLONE, FROM_VOLUME, 0o755)
    (share.path / "a/c/other").mkdir(parents=True)
    with pytest.raises(Refused, match="something stands where the copy is to go"):
        share.clone()
    assert (share.path / "a/c/other").exists()
    (share.path / "a/c/other").rmdir()
    share.clone()
    assert facts(share.path / "a/c") == facts(share.path / "v")


def test_a_volume_that_grows_while_it_is_made_stays_grown(share: Share) -> None:
    share.volume()
    share_volumes.create(share.fd, CLONE, FROM_VOLUME, 0o755)

    def grow(_: Progress) -> None:
        share_volumes.resize(share.fd, CLONE, 99)

    made = share_volumes.fill(share.fd, CLONE, 0o755, Progress(grow), none)
    assert (made.capacity, VOLUMES.require(share.fd, CLONE).capacity) == (99, 99)


def test_a_copy_that_fails_leaves_nothing(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    share.volume()

    def copy(_: int, into: int, *rest: object) -> None:
        os.mkdir("half", dir_fd=into)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tree_copy, "copy", copy)
    for act in (share.snapshot, share.clone):
        with pytest.raises(OSError, match="No space left"):
            act()
    assert share.leftovers() == []
    assert (SNAPSHOTS.tokens(share.fd), VOLUMES.tokens(share.fd)) == ([], [VOLUME])


def test_a_source_that_goes_before_it_is_copied_leaves_nothing(share: Share) -> None:
    share.volume()
    share_snapshots.begin(share.fd, SNAPSHOT, ASKED)
    share_volumes.create(share.fd, CLONE, FROM_VOLUME, 0o755)
    share.delete(VOLUME)
    for act in (share.snapshot, share.clone):
        with pytest.raises(Absent):
            act()
    assert (SNAPSHOTS.tokens(share.fd), VOLUMES.tokens(share.fd)) == ([], [])


def test_a_directory_that_is_gone_leaves_nothing(share: Share) -> None:
    share.volume()
    shutil.rmtree(share.path / "v")
    with pytest.raises(Absent, match="v is gone"):
        share.snapshot()
    assert SNAPSHOTS.tokens(share.fd) == []
    assert share.leftovers() == []


@pytest.mark.parametrize("fails", [True, False])
def test_a_copy_that_another_node_took_over_is_that_one_s(
    share: Share, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    share.volume()
    taken = share.path / f".kangaroo/making/snapshot-{SNAPSHOT}"
    links = taken.with_name(f"{taken.name}.links")
    copy = tree_copy.copy

    def copied(*args: Any) -> None:
        copy(*args)
        share_copies.clear(share.fd, share_copies.of_snapshot(SNAPSHOT))
        for path in (taken / "theirs", links):
            path.mkdir(parents=True)
        if fails:
            raise OSError(errno.ESTALE, "Stale file handle")

    begun = share_snapshots.begin(share.fd, SNAPSHOT, ASKED)
    with monkeypatch.context() as during:
        during.setattr(tree_copy, "copy", copied)
        with pytest.raises(Busy):
            share.snapshot()
    assert not share.data.exists()
    assert SNAPSHOTS.read(share.fd, SNAPSHOT) == begun
    assert sorted(share.leftovers()) == [taken.name, links.name]
    assert (taken / "theirs").exists()
    assert share.snapshot().whole


def test_what_another_node_has_finished_stays(share: Share) -> None:
    """This one was held up, and comes to the end of its own copy, or of what it was made of."""
    share.volume()
    share_snapshots.begin(share.fd, SNAPSHOT, ASKED)
    share_volumes.create(share.fd, CLONE, FROM_VOLUME, 0o755)
    for finish, fill in (
        (share.snapshot, lambda of: share_snapshots.fill(share.fd, SNAPSHOT, of, none)),
        (share.clone, lambda of: share_volumes.fill(share.fd, CLONE, 0o755, of, none)),
    ):
        held_up = True

        def meanwhile(progress: Progress, finish: Any = finish) -> None:
            nonlocal held_up
            if held_up and progress.files == 3:
                held_up = False
                finish()

        with pytest.raises(Busy):
            fill(Progress(meanwhile))
    assert SNAPSHOTS.require(share.fd, SNAPSHOT).whole
    assert VOLUMES.require(share.fd, CLONE).whole
    for made in (share.data, share.path / "a/c"):
        assert facts(made) == facts(share.path / "v")
    assert share.leftovers() == []


def test_a_record_is_not_given_up_once_its_copy_is_whole(share: Share) -> None:
    """This node finds the source gone, of which another has made all that it was to make."""
    share.volume()
    whole = share.clone()
    VOLUMES.give_up(share.fd, CLONE)
    assert VOLUMES.read(share.fd, CLONE) == whole
    VOLUMES.write(share.fd, CLONE, replace(whole, whole=False))
    VOLUMES.give_up(share.fd, CLONE)
    assert VOLUMES.read(share.fd, CLONE) is None


def test_a_copy_that_is_nowhere_is_not_taken_for_placed(share: Share) -> None:
    with pytest.raises(Busy, match="was taken away"):
        share_copies.place(share.fd, share_copies.of_volume(CLONE), share.fd, "c")
    (share.path / "c").mkdir()
    share_copies.place(share.fd, share_copies.of_volume(CLONE), share.fd, "c")


def kill_everywhere(set_up: str, act: str, then: Any) -> int:
    """Do `act` on a share that `set_up` prepared, once for each point at which it can be killed;
    how many there were.
    """
    for number in range(2000):
        with shared() as share:
            share.volume()
            if set_up:
                getattr(share, set_up)()
            killed = killed_at(number, getattr(share, act))
            then(share, number)
            assert share.leftovers() == []
            if not killed:
                return number
    raise AssertionError("it does not end")


@pytest.mark.timeout(180)
def test_a_snapshot_that_is_killed_at_any_point_is_whole_or_not_ready() -> None:
    def then(share: Share, number: int) -> None:
        snapshot = SNAPSHOTS.read(share.fd, SNAPSHOT)
        if snapshot is not None and snapshot.whole:
            assert facts(share.data) == facts(share.path / "v")
        if number % 2:
            share.snapshot()
            assert facts(share.data) == facts(share.path / "v")
        else:
            share.delete_snapshot()
            assert not share.data.exists()
            assert SNAPSHOTS.tokens(share.fd) == []

    assert kill_everywhere("", "snapshot", then) > 50


@pytest.mark.timeout(180)
def test_a_clone_that_is_killed_at_any_point_is_whole_or_not_there() -> None:
    def then(share: Share, number: int) -> None:
        if (share.path / "a/c").exists():
            assert facts(share.path / "a/c") == facts(share.path / "v")
        if number % 2:
            assert share.clone().whole
            assert facts(share.path / "a/c") == facts(share.path / "v")
        else:
            share.delete()
            assert not (share.path / "a/c").exists()
            assert VOLUMES.tokens(share.fd) == [VOLUME]

    assert kill_everywhere("", "clone", then) > 50


@pytest.mark.timeout(180)
def test_a_deletion_that_is_killed_at_any_point_is_gone_on_with() -> None:
    def then(share: Share, _: int) -> None:
        share.delete_snapshot()
        assert not share.data.exists()
        assert SNAPSHOTS.tokens(share.fd) == []

    assert kill_everywhere("snapshot", "delete_snapshot", then) > 5


def test_a_half_made_clone_is_deleted_whatever_its_class_says(share: Share) -> None:
    """There is nothing in it that was not elsewhere before."""
    share.volume()
    for kind in (OnDelete.ARCHIVE, OnDelete.RETAIN):
        share_volumes.create(share.fd, CLONE, replace(FROM_VOLUME, on_delete=kind), 0o755)
        (share.path / "a/c").mkdir(parents=True)
        (share.path / "a/c/somebody's").touch()
        share.delete()
        assert (share.path / "a/c/somebody's").exists()
        shutil.rmtree(share.path / "a")
        assert VOLUMES.tokens(share.fd) == [VOLUME]


def test_volumes_and_their_condition(share: Share) -> None:
    share.volume()
    tokens = {}
    for name in ("gone", "file", "link", "damaged", "half"):
        tokens[name] = token_of(name)
        record = replace(RECORD, name=name, subdir=name)
        share_volumes.create(share.fd, tokens[name], record, 0o755)
        if name != "half":
            (share.path / name).rmdir()
    (share.path / "file").touch()
    (share.path / "link").symlink_to("v")
    (share.path / f".kangaroo/volumes/{tokens['damaged']}.json").write_text("{")
    VOLUMES.write(share.fd, tokens["half"], replace(FROM_VOLUME, name="half", whole=False))
    (share.path / ".kangaroo/volumes/not a token.json").write_text("x")
    found = share_listing.volumes(share.fd, "", 0)
    assert found["more"] is False
    listed = {entry["token"]: entry["problem"] for entry in found["entries"]}
    assert list(listed) == sorted([VOLUME, *tokens.values()])
    assert listed[VOLUME] == ""
    assert listed[tokens["gone"]] == "its directory gone is gone"
    assert "Not a directory" in listed[tokens["file"]]
    assert "cannot be opened" in listed[tokens["link"]]
    assert "is damaged" in listed[tokens["damaged"]]
    assert listed[tokens["half"]] == "its content is still being copied"


def test_pages(share: Share) -> None:
    tokens = sorted(token_of(str(number)) for number in range(7))
    for number, token in enumerate(tokens):
        VOLUMES.write(share.fd, token, replace(RECORD, name="n" * 60_000, subdir=str(number)))
    found, after, more = [], "", True
    while more:
        page = share_listing.volumes(share.fd, after, 2)
        assert len(page["entries"]) <= 2
        found += [entry["token"] for entry in page["entries"]]
        after, more = found[-1], page["more"]
    assert found == tokens
    large = share_listing.volumes(share.fd, "", 0)
    assert large["more"] is False
    for number in range(30):
        VOLUMES.write(share.fd, token_of(f"n{number}"), replace(RECORD, name="n" * 60_000))
    large = share_listing.volumes(share.fd, "", 0)
    assert large["more"] is True
    assert len(json.dumps(large)) < 1 << 20


def document(**changes: Any) -> str:
    fields = {
        "version": 1,
        "name": "snap-1",
        "id": "",
        "source": VOLUME,
        "source_id": "",
        "size": 0,
    }
    return json.dumps({**fields, "created_s": 0, "whole": True, **changes})


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", "{}", "\0", document()[:-1], document(version=2), document(more=1)),
        *(document(source=token) for token in ("", "..", "../../victim", 7, None, VOLUME + "\n")),
        *(document(**{key: []}) for key in ("name", "id", "size", "created_s", "whole")),
        *(document(**{key: number}) for key in ("size", "created_s") for number in (-1, 2**63)),
        *(document(**{key: "a\udcff"}) for key in ("name", "id", "source_id")),
    ],
)
def test_a_damaged_snapshot_record_is_refused_and_can_be_deleted(share: Share, text: str) -> None:
    share.volume()
    share.snapshot()
    (share.path / f".kangaroo/snapshots/{SNAPSHOT}.json").write_text(text)
    for act in (share.snapshot, lambda: share.clone(FROM_SNAPSHOT)):
        with pytest.raises(Refused, match=r"damaged|another version"):
            act()
    (entry,) = share_listing.snapshots(share.fd, "", 0)["entries"]
    assert (entry["record"], bool(entry["problem"])) == (None, True)
    share.delete_snapshot()
    assert not share.data.exists()
    assert share_listing.snapshots(share.fd, "", 0)["entries"] == []


@pytest.mark.parametrize("token", ["..", "../..", "x/../../victim", "", "A" * 26])
def test_a_forged_source_is_damage(share: Share, token: str) -> None:
    share.volume()
    share_volumes.create(share.fd, CLONE, FROM_VOLUME, 0o755)
    path = share.path / f".kangaroo/volumes/{CLONE}.json"
    forged = json.loads(path.read_text())
    forged["source"]["token"] = token
    path.write_text(json.dumps(forged))
    with pytest.raises(Refused, match="is not a token"):
        share.clone()
    with pytest.raises(Refused, match="is not a token"):
        share.delete()


PLACES = ["v", ".kangaroo/snapshots", ".kangaroo/making", ".kangaroo/trash", ".kangaroo"]


@pytest.mark.parametrize("where", PLACES)
def test_links_are_not_followed(share: Share, where: str) -> None:
    share.volume()
    share.snapshot()
    victim = share.around / "victim"
    shutil.copytree(share.path / where, victim / "x", symlinks=True)
    (victim / "x/file").write_text("secret")
    shutil.rmtree(share.path / where)
    (share.path / where).symlink_to(victim / "x")
    before = facts(victim)
    acts = (share.delete_snapshot, share.snapshot, share.clone, share.delete)
    for act in acts:
        with contextlib.suppress(Refused, OSError, Unfit):
            act()
    assert facts(victim) == before
    assert not list(share.path.glob("a/c/file"))


STEPS = st.lists(
    st.tuples(st.sampled_from(["create", "snapshot", "clone", "restore", "delete"]), PATHS),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(entries=ENTRIES, steps=STEPS)
def test_nothing_outside_a_hostile_share_is_touched(
    entries: list[tuple[str, str]], steps: list[tuple[str, str]]
) -> None:
    with shared() as share:
        victim = share.around / "victim"
        (victim / "a").mkdir(parents=True)
        (victim / "a/file").write_text("untouched")
        before = facts(victim)
        for path, kind in entries:
            plant(share.path, path, kind, victim)
        for operation, path in steps:
            record = share.path / f".kangaroo/snapshots/{SNAPSHOT}.json"
            with contextlib.suppress(Refused, OSError, Unfit, ValueError):
                if operation == "create":
                    record_of = replace(RECORD, subdir=path)
                    share_volumes.create(share.fd, VOLUME, record_of, 0o755)
                elif operation == "snapshot":
                    share.snapshot()
                elif operation == "delete":
                    share.delete_snapshot()
                    share.delete()
                else:
                    source = FROM_VOLUME if operation == "clone" else FROM_SNAPSHOT
                    share.clone(replace(source, subdir=path))
                if inside(share.path, record) and operation == "restore":
                    record.write_text(document(source=path))
        assert facts(victim) == before
        assert sorted(path.name for path in share.around.iterdir()) == ["share", "victim"]
