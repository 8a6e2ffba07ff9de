"""The Controller service with its real worker processes, on shares that are local directories."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from kangaroo.csi import controller as controller_module
from kangaroo.csi import mount_helper, share_snapshots, shares, snapshots
from kangaroo.csi.config import Config
from kangaroo.csi.context import Context
from kangaroo.csi.controller import Controller
from kangaroo.csi.copies import Copies
from kangaroo.csi.share import Worker
from kangaroo.csi.volume_id import decode, decode_snapshot, token_of
from kangaroo.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    KangarooError,
    MountFailed,
    NotFound,
    OutOfRange,
    Unavailable,
)
from kangaroo.nas.volume import NasVolume
from kangaroo.wire.gen import csi_pb2 as csi

CAPABILITY = {"mount": {}, "access_mode": {"mode": "MULTI_NODE_MULTI_WRITER"}}
NO_CONTEXT: Any = None
GONE = "mount.nfs: mounting failed, reason given by server: No such file or directory"


class Nas:
    """Shares, as bind mounts of directories; the mount of the server "dead" hangs."""

    def __init__(self, root: Path) -> None:
        self.root = root / "nas"
        self.work = root / "work"
        self.config = Config(
            work_dir=str(self.work), operation_timeout_s=20, copy_stall_timeout_s=20
        )
        self.controller = Controller(self.config)

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    def restart(self) -> None:
        self.controller = Controller(self.config)

    def command(self, volume: NasVolume, target: str) -> tuple[str, ...]:
        if volume.server == "dead":
            return ("sleep", "600")
        directory = self.path(volume.path.lstrip("/"))
        if not directory.exists():
            return ("sh", "-c", f"echo {GONE} >&2; exit 32")
        return ("mount", "--bind", str(directory), target)

    async def call(self, method: str, **fields: Any) -> Any:
        request = getattr(csi, f"{method}Request")()
        json_format.ParseDict(fields, request)
        context: Context = NO_CONTEXT
        return await getattr(self.controller, method)(request, context)

    async def create(self, name: str, *, size: int = 100, **more: Any) -> Any:
        parameters = {"server": "nas", "path": "/a", "onDelete": "delete"}
        answer = await self.call(
            "CreateVolume",
            name=name,
            capacity_range={"required_bytes": size},
            volume_capabilities=[CAPABILITY],
            **{"parameters": parameters, **more},
        )
        return answer.volume

    async def snapshot(self, name: str, volume_id: str) -> Any:
        return (await self.call("CreateSnapshot", name=name, source_volume_id=volume_id)).snapshot


def from_snapshot(text: str) -> dict[str, Any]:
    return {"snapshot": {"snapshot_id": text}}


def from_volume(text: str) -> dict[str, Any]:
    return {"volume": {"volume_id": text}}


@pytest.fixture
def nas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nas]:
    made = Nas(tmp_path)
    for share in ("a", "b"):
        made.path(share).mkdir(parents=True)
    monkeypatch.setattr(mount_helper, "command", made.command)
    yield made
    assert workers(made) == []


def workers(nas: Nas) -> list[int]:
    """The processes that are at work for it."""
    argv = ["pgrep", "--full", f"share_worker {nas.work}"]
    found = subprocess.run(argv, check=False, capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


async def fails(kind: type[KangarooError], call: Awaitable[Any], says: str = "") -> None:
    with pytest.raises(kind) as caught:
        await call
    assert says in str(caught.value)


def test_a_snapshot_from_its_making_to_its_end(nas: Nas) -> None:
    async def test() -> None:
        volume = await nas.create("pvc-1")
        nas.path("a/pvc-1/file").write_text("then")
        made = await nas.snapshot("snap-1", volume.volume_id)
        assert made.ready_to_use
        assert (made.size_bytes, made.source_volume_id) == (100, volume.volume_id)
        nas.path("a/pvc-1/file").write_text("now")
        assert await nas.snapshot("snap-1", volume.volume_id) == made
        nas.restart()
        await nas.call("DeleteVolume", volume_id=volume.volume_id)
        got = await nas.call("GetSnapshot", snapshot_id=made.snapshot_id)
        assert got.snapshot == made
        restored = await nas.create("pvc-2", volume_content_source=from_snapshot(made.snapshot_id))
        assert restored.content_source.snapshot.snapshot_id == made.snapshot_id
        assert nas.path("a/pvc-2/file").read_text() == "then"
        for _ in range(2):
            await nas.call("DeleteSnapshot", snapshot_id=made.snapshot_id)
        await fails(NotFound, nas.call("GetSnapshot", snapshot_id=made.snapshot_id))
        assert nas.path("a/pvc-2/file").read_text() == "then"

    run(test)


def test_growth_and_its_limit(nas: Nas) -> None:
    async def test() -> None:
        made = await nas.create("v", size=100)

        def expand(**asked: int) -> Any:
            return nas.call(
                "ControllerExpandVolume", volume_id=made.volume_id, capacity_range=asked
            )

        assert (await expand(required_bytes=200, limit_bytes=300)).capacity_bytes == 200
        assert (await expand(required_bytes=150)).capacity_bytes == 200
        await fails(OutOfRange, expand(limit_bytes=150), "never shrinks")

    run(test)


def test_a_clone_and_what_it_may_not_be(nas: Nas) -> None:
    async def test() -> None:
        source = (await nas.create("pvc-1")).volume_id
        other = (await nas.create("other")).volume_id
        nas.path("a/pvc-1/file").write_text("content")
        made = await nas.create("pvc-2", volume_content_source=from_volume(source))
        assert await nas.create("pvc-2", volume_content_source=from_volume(source)) == made
        assert nas.path("a/pvc-2/file").read_text() == "content"
        assert made.content_source.volume.volume_id == source

        def clone(name: str, text: str, **more: Any) -> Awaitable[Any]:
            return nas.create(name, volume_content_source=from_volume(text), **more)

        await fails(AlreadyExists, clone("pvc-2", other), "its source is")
        await fails(AlreadyExists, nas.create("pvc-2"), "its source is")
        await fails(AlreadyExists, clone("other", source), "its source is none")
        await fails(OutOfRange, clone("small", source, size=99), "less than the source's 100")
        elsewhere = {"server": "nas", "path": "/b"}
        await fails(InvalidRequest, clone("far", source, parameters=elsewhere), "nas:/a")
        whole = {"server": "nas", "path": "/a", "volumeAs": "sharepath"}
        await fails(InvalidRequest, clone("whole", source, parameters=whole))
        share = (await nas.create("share", parameters=whole)).volume_id
        await fails(InvalidRequest, clone("of-share", share))
        await fails(InvalidRequest, nas.snapshot("of-share", share))
        await fails(NotFound, clone("nothing", "k1#csi"))
        await nas.call("DeleteVolume", volume_id=other)
        await fails(NotFound, clone("gone", other))
        assert sorted(os.listdir(nas.path("a"))) == [".kangaroo", "pvc-1", "pvc-2"]

    run(test)


def test_a_clone_in_a_class_of_several_shares_goes_where_its_source_is(nas: Nas) -> None:
    async def test() -> None:
        both = {"server": "nas:/a,nas:/b"}
        volumes = [await nas.create(f"v{n}", parameters=both) for n in range(6)]
        assert {volume.volume_context["path"][:2] for volume in volumes} == {"/a", "/b"}
        for n, volume in enumerate(volumes):
            source = from_volume(volume.volume_id)
            made = await nas.create(f"c{n}", parameters=both, volume_content_source=source)
            assert made.volume_context["path"][:2] == volume.volume_context["path"][:2]

    run(test)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(controller_module, "_FILL_PATIENCE_S", 0.05)


class Slow:
    """Copies that wait at their beginning until they are let go."""

    def __init__(self, nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.gate = asyncio.Event()
        worker = type(nas.controller._worker)
        for name in ("fill", "fill_snapshot"):
            monkeypatch.setattr(worker, name, self.slow(getattr(worker, name)))

    def slow(self, fill: Any) -> Any:
        async def wrapped(*arguments: Any) -> None:
            self.begun += 1
            await self.gate.wait()
            await fill(*arguments)

        return wrapped


@pytest.mark.usefixtures("impatient")
def test_a_long_copy_is_asked_after_and_not_begun_twice(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        source = (await nas.create("pvc-1")).volume_id
        nas.path("a/pvc-1/file").write_text("content")
        slow = Slow(nas, monkeypatch)
        content = from_volume(source)
        for _ in range(3):
            assert not (await nas.snapshot("snap-1", source)).ready_to_use
            await fails(Aborted, nas.create("pvc-2", volume_content_source=content), "being copied")
        assert slow.begun == 2
        assert not nas.path("a/pvc-2").exists()
        (listed,) = (await nas.call("ListSnapshots")).entries
        assert not listed.snapshot.ready_to_use
        volumes = (await nas.call("ListVolumes")).entries
        assert [one.volume.volume_id for one in volumes] == [source]
        await fails(
            FailedPrecondition,
            nas.create("pvc-3", volume_content_source=from_snapshot(listed.snapshot.snapshot_id)),
            "not whole yet",
        )
        await fails(FailedPrecondition, nas.call("DeleteVolume", volume_id=source), "copied from")
        monkeypatch.setattr(snapshots, "_PATIENCE_S", 20)
        monkeypatch.setattr(controller_module, "_FILL_PATIENCE_S", 20)
        slow.gate.set()
        assert (await nas.snapshot("snap-1", source)).ready_to_use
        await nas.create("pvc-2", volume_content_source=content)
        assert nas.path("a/pvc-2/file").read_text() == "content"
        assert slow.begun == 2

    run(test)


@pytest.mark.usefixtures("impatient")
def test_what_is_being_made_is_deleted(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        source = (await nas.create("pvc-1")).volume_id
        Slow(nas, monkeypatch)
        made = await nas.snapshot("snap-1", source)
        monkeypatch.setattr(snapshots, "_PATIENCE_S", 20)
        waiting = asyncio.create_task(nas.snapshot("snap-1", source))
        await fails(Aborted, nas.create("pvc-2", volume_content_source=from_volume(source)))
        await nas.call("DeleteSnapshot", snapshot_id=made.snapshot_id)
        await fails(FailedPrecondition, waiting)
        assert list((await nas.call("ListSnapshots")).entries) == []

    run(test)


def test_a_failure_is_told_once_to_whoever_asks_next() -> None:
    async def test() -> None:
        copies = Copies()
        gate = asyncio.Event()

        async def fail() -> None:
            await gate.wait()
            raise DeadlineExceeded("no progress")

        async def succeed() -> None:
            return

        def join(run: Callable[[], Awaitable[None]], patience_s: float) -> Awaitable[bool]:
            return copies.join("made", run, share="s", source="source", patience_s=patience_s)

        assert not await join(fail, 0)
        with pytest.raises(FailedPrecondition, match="made is being copied"):
            copies.require_unused("source")
        gate.set()
        await fails(DeadlineExceeded, join(succeed, 5))
        copies.require_unused("source")
        assert await join(succeed, 5)

    run(test)


def test_copies_on_a_dead_share_hold_up_none_on_another() -> None:
    async def test() -> None:
        copies = Copies()
        begun: list[int] = []
        gate = asyncio.Event()

        def waits(number: int) -> Callable[[], Awaitable[None]]:
            async def wait() -> None:
                begun.append(number)
                await gate.wait()

            return wait

        async def succeed() -> None:
            return

        async def join(number: int, run: Callable[[], Awaitable[None]], patience_s: float) -> bool:
            named = {"share": "dead", "source": f"source {number % 3}"}
            return await copies.join(str(number), run, patience_s=patience_s, **named)

        for number in range(6):
            assert not await join(number, waits(number), 0)
        assert await copies.join("made", succeed, share="well", source="source", patience_s=5)
        assert begun == [0, 1, 2, 3]
        gate.set()
        for number in range(6):
            assert await join(number, succeed, 5)
        assert sorted(begun) == [0, 1, 2, 3, 4, 5]

    run(test)


def test_copies_of_one_volume_hold_up_none_of_another() -> None:
    """Reading a sparse file may take days where the server does not tell of holes."""

    async def test() -> None:
        copies = Copies()
        gate = asyncio.Event()

        async def succeed() -> None:
            return

        async def wait() -> None:
            await gate.wait()

        for number in range(6):
            assert not await copies.join(
                str(number), wait, share="nas", source="endless", patience_s=0
            )
        assert await copies.join("made", succeed, share="nas", source="another", patience_s=5)
        gate.set()
        for number in range(6):
            assert await copies.join(
                str(number), succeed, share="nas", source="endless", patience_s=5
            )

    run(test)


def test_a_copy_that_gets_nowhere_is_given_up(nas: Nas) -> None:
    async def test() -> None:
        made = decode((await nas.create("v")).volume_id)
        assert made is not None
        worker = Worker(nas.work, timeout_s=20, stall_timeout_s=0.5)
        dead = replace(shares.of(made, {}), server="dead")
        await fails(DeadlineExceeded, worker.fill(dead, made.token, 0o755), "no progress within")

    run(test)


def test_a_worker_that_is_killed_may_have_begun(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a final error the provisioner would not delete what was begun."""

    def command(_: NasVolume, __: str) -> tuple[str, ...]:
        return ("sh", "-c", "kill -KILL $PPID")

    async def test() -> None:
        monkeypatch.setattr(mount_helper, "command", command)
        await fails(Unavailable, nas.create("v"), "create on nas:/a: its process was killed by")

    run(test)


@pytest.mark.timeout(120)
def test_a_copying_worker_that_is_killed_is_gone_on_from(nas: Nas) -> None:
    """At random points, by the moment; whoever asks next gets the whole."""

    async def test() -> None:
        source = (await nas.create("pvc-1")).volume_id
        for number in range(200):
            nas.path(f"a/pvc-1/{number}").write_bytes(os.urandom(5000))
        expected = {path.name: path.read_bytes() for path in nas.path("a/pvc-1").iterdir()}

        def content(snapshot_id: str) -> dict[str, bytes]:
            found = decode_snapshot(snapshot_id)
            assert found is not None
            data = nas.path("a", share_snapshots.data(found.token))
            return {path.name: path.read_bytes() for path in data.iterdir()}

        killed = 0
        for turn in range(8):
            made = asyncio.create_task(nas.snapshot(f"snap-{turn}", source))
            making = nas.path("a/.kangaroo/making")
            deadline = asyncio.get_running_loop().time() + 20
            while not (making.exists() and os.listdir(making)) and not made.done():
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.01 * turn)
            pids = workers(nas)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            killed += bool(pids)
            try:
                await made
            except Unavailable:  # which says that it may be under way
                # It may have been killed after it had written down that the copy is whole.
                listed = [one.snapshot for one in (await nas.call("ListSnapshots")).entries]
                ready = [one.snapshot_id for one in listed if one.ready_to_use]
                assert all(content(one) == expected for one in ready)
            again = await nas.snapshot(f"snap-{turn}", source)
            assert again.ready_to_use
            assert content(again.snapshot_id) == expected
        assert killed > 2
        assert os.listdir(nas.path("a/.kangaroo/making")) == []
        assert os.listdir(nas.path("a/.kangaroo/trash")) == []

    run(test)


def test_pages_go_over_all_shares(nas: Nas) -> None:
    async def test() -> None:
        made = []
        for path in ("/a", "/b"):
            for number in range(3):
                parameters = {"server": "nas", "path": path, "onDelete": "delete"}
                volume = await nas.create(f"v{number}{path[1]}", parameters=parameters)
                made.append(volume.volume_id)
                await nas.snapshot(f"s{number}{path[1]}", volume.volume_id)
        nas.restart()
        everything = (await nas.call("ListVolumes")).entries
        assert sorted(one.volume.volume_id for one in everything) == sorted(made)
        assert not any(one.status.volume_condition.abnormal for one in everything)
        for method, key in (("ListVolumes", "volume"), ("ListSnapshots", "snapshot")):
            found, token = [], ""
            while True:
                page = await nas.call(method, max_entries=2, starting_token=token)
                assert len(page.entries) <= 2
                found += [getattr(getattr(one, key), f"{key}_id") for one in page.entries]
                token = page.next_token
                if not token:
                    break
            assert len(found) == len(set(found)) == 6
            await fails(Aborted, nas.call(method, starting_token="invalid-token"))
            await fails(InvalidRequest, nas.call(method, max_entries=-1))
        for volume_id in made:
            (one,) = (await nas.call("ListSnapshots", source_volume_id=volume_id)).entries
            assert one.snapshot.source_volume_id == volume_id
        gone = {"snapshot_id": "none"}, {"source_volume_id": "none"}
        for request in gone:
            assert list((await nas.call("ListSnapshots", **request)).entries) == []
        first = await nas.call("ListVolumes", max_entries=2)
        await nas.call("DeleteVolume", volume_id=first.entries[1].volume.volume_id)
        rest = await nas.call("ListVolumes", starting_token=first.next_token)
        assert len(rest.entries) == 4

    run(test)


def test_the_configuration_names_shares(nas: Nas) -> None:
    async def test() -> None:
        made = (await nas.create("v")).volume_id
        shutil.rmtree(nas.work)
        nas.restart()
        assert list((await nas.call("ListVolumes")).entries) == []
        nas.config = Config(work_dir=str(nas.work), shares=("nas:/b", "nas:/a"))
        nas.restart()
        (one,) = (await nas.call("ListVolumes")).entries
        assert one.volume.volume_id == made

    run(test)


def test_the_configuration_says_how_a_share_is_mounted(nas: Nas) -> None:
    """Else it is mounted over version 3, which its server may not have, and as it was used."""
    mounted: list[tuple[str, str]] = []

    async def test() -> None:
        make = nas.command

        def command(volume: NasVolume, target: str) -> tuple[str, ...]:
            mounted.append((volume.version, ",".join(volume.options)))
            return make(volume, target)

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(mount_helper, "command", command)
            for configured in ("nas:/a", "nas:/a,vers=4.1", "nas:/a,vers=4.1,port=2050"):
                nas.config = replace(nas.config, shares=(configured,))
                nas.restart()
                (one,) = (await nas.call("ListVolumes")).entries
                assert one.volume.volume_id == made
                await nas.create("v")  # over version 3
                await nas.call("ListVolumes")
                nas.restart()  # now there is a memory of it
                await nas.call("ListVolumes")

    made = asyncio.run(nas.create("v")).volume_id
    (nas.work / "shares.json").unlink()
    run(test)
    assert [version for version, _ in mounted] == ["3"] * 4 + ["4.1", "3", "4.1", "4.1"] * 2
    assert {options for version, options in mounted[8:] if version == "4.1"} == {"port=2050"}
    assert "hard" in mounted[4][1].split(",")


def test_a_record_that_csi_cannot_say_is_that_volume_s_condition(nas: Nas) -> None:
    """And does not fail the listing of the others."""

    async def test() -> None:
        for name in ("v", "w", "x"):
            await nas.create(name)
        changes: list[dict[str, Any]] = [{"capacity": 10**20}, {"subdir": "gone\udcff"}]
        for name, change in zip(("w", "x"), changes, strict=True):
            path = nas.path(f"a/.kangaroo/volumes/{token_of(name)}.json")
            path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        entries = (await nas.call("ListVolumes")).entries
        said = [entry.status.volume_condition.message for entry in entries]
        assert len([text for text in said if "is damaged" in text]) == 2
        assert len([text for text in said if text == "its directory is there"]) == 1

    run(test)


def test_capacity_is_asked_for_as_volumes_are_mounted(
    nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted: list[str] = []

    def command(volume: NasVolume, target: str) -> tuple[str, ...]:
        mounted.append(volume.version)
        return nas.command(volume, target)

    monkeypatch.setattr(mount_helper, "command", command)
    capability = {**CAPABILITY, "mount": {"mount_flags": ["vers=4.1"]}}
    parameters = {"server": "nas", "path": "/a"}
    fields = {"parameters": parameters, "volume_capabilities": [capability]}
    assert asyncio.run(nas.call("GetCapacity", **fields)).available_capacity > 0
    assert mounted == ["4.1"]


def test_a_damaged_memory_of_shares_is_forgotten(nas: Nas) -> None:
    async def test() -> None:
        await nas.create("v")
        memory = nas.work / "shares.json"
        for text in ("", "[]", "{}", json.dumps({"version": 2}), '{"version":1,"shares":[["x"]]}'):
            memory.write_text(text)
            nas.restart()
            assert list((await nas.call("ListVolumes")).entries) == []
        await nas.create("v")
        nas.restart()
        assert len((await nas.call("ListVolumes")).entries) == 1

    run(test)


def test_a_dead_share_ends_a_listing_in_time(nas: Nas) -> None:
    async def test() -> None:
        nas.config = Config(
            work_dir=str(nas.work), operation_timeout_s=1, shares=("dead:/x", "nas:/a")
        )
        nas.restart()
        async with asyncio.timeout(10):
            await fails(DeadlineExceeded, nas.call("ListVolumes"), "dead:/x")

    run(test)


def test_a_share_that_was_taken_away_is_left_out_of_listings(nas: Nas) -> None:
    async def test() -> None:
        await nas.create("one")
        shutil.rmtree(nas.path("a"))
        for _ in range(2):
            assert list((await nas.call("ListVolumes")).entries) == []
            assert list((await nas.call("ListSnapshots")).entries) == []
            nas.restart()
        nas.controller = Controller(replace(nas.config, shares=("nas:/a",)))
        await fails(MountFailed, nas.call("ListVolumes"), "nas:/a")
        await fails(MountFailed, nas.call("ListVolumes"), "nas:/a")

    asyncio.run(test())


def test_the_condition_of_a_volume(nas: Nas) -> None:
    async def test() -> None:
        made = (await nas.create("v")).volume_id

        async def condition(volume_id: str) -> tuple[bool, str]:
            answer = await nas.call("ControllerGetVolume", volume_id=volume_id)
            assert answer.volume.volume_id == volume_id
            found = answer.status.volume_condition
            return found.abnormal, found.message

        assert not (await condition(made))[0]
        nas.path("a/v").rmdir()
        assert await condition(made) == (True, "its directory v is gone")
        found = decode(made)
        assert found is not None
        record = nas.path(f"a/.kangaroo/volumes/{found.token}.json")
        record.write_text("{")
        abnormal, message = await condition(made)
        assert (abnormal, "damaged" in message) == (True, True)
        record.unlink()
        await fails(NotFound, nas.call("ControllerGetVolume", volume_id=made))
        await fails(NotFound, nas.call("ControllerGetVolume", volume_id="other"))
        await fails(InvalidRequest, nas.call("ControllerGetVolume"))
        gone = made.replace(":/a:", ":/gone:")
        abnormal, message = await condition(gone)
        assert (abnormal, "nas:/gone" in message) == (True, True)

    run(test)


def test_bad_requests_are_named(nas: Nas) -> None:
    async def test() -> None:
        source = (await nas.create("v")).volume_id
        await fails(
            InvalidRequest, nas.call("CreateSnapshot", source_volume_id=source), "name: missing"
        )
        await fails(InvalidRequest, nas.call("CreateSnapshot", name="s"), "source_volume_id")
        odd = nas.call("CreateSnapshot", name="s", source_volume_id=source, parameters={"k": "v"})
        await fails(InvalidRequest, odd, "parameters.k")
        await fails(NotFound, nas.snapshot("s", "other"))
        other = (await nas.create("w")).volume_id
        made = await nas.snapshot("s", source)
        await fails(AlreadyExists, nas.snapshot("s", other), "snapshot s is of another volume")
        await fails(InvalidRequest, nas.call("DeleteSnapshot"), "snapshot_id: missing")
        await nas.call("DeleteSnapshot", snapshot_id=source)  # of another kind: not a snapshot
        await nas.call("DeleteVolume", volume_id=made.snapshot_id)
        assert len((await nas.call("ListSnapshots")).entries) == 1
        assert len((await nas.call("ListVolumes")).entries) == 2
        await fails(InvalidRequest, nas.create("x", volume_content_source={"volume": {}}), "id")

    run(test)


def test_a_mount_that_fails_is_told(nas: Nas) -> None:
    async def test() -> None:
        source = (await nas.create("v")).volume_id
        await fails(MountFailed, nas.snapshot("s", source.replace(":/a:", ":/gone:")))

    run(test)
