"""The Controller service on a real node against a real NAS, called as the sidecars call it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.hostile_tree import ENTRIES, PATHS, inside, plant
from tests.node import nas_client
from tests.node.csi_driver import SOAK, UNIT, Answer, Driver, calling, driving

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

GIB = 1 << 30
# The driver's deadline of what it does on a share, its clean-up, and the node's slowness.
OPERATION_S = 100 + 20
MOUNT = {"mount": {}, "access_mode": {"mode": "MULTI_NODE_MULTI_WRITER"}}


@pytest.fixture(scope="module")
def driver(lab: Lab) -> Iterator[Driver]:
    with driving(lab) as found:
        yield found


class Base:
    """A new directory of the NAS, as the `path` of a class."""

    def __init__(self, driver: Driver, name: str = "") -> None:
        self.driver = driver
        self.path = f"/csi/csi-{secrets.token_hex(4)}{name}"
        self.root = driver.lab.nas.root / self.path.removeprefix("/")
        self.root.mkdir(parents=True)

    def creating(self, name: str, *, size: int = GIB, **parameters: str) -> dict[str, Any]:
        own = {"server": self.driver.lab.nas.address, "path": self.path} | parameters
        request = {
            "name": name,
            "capacity_range": {"required_bytes": str(size)},
            "volume_capabilities": [MOUNT],
            "parameters": own,
        }
        return calling("CreateVolume", request)

    def create(self, name: str, **rest: Any) -> Answer:
        (answer,) = self.driver.calls(self.creating(name, **rest))
        return answer

    def delete(self, volume_id: str) -> Answer:
        (answer,) = self.driver.calls(deleting(volume_id))
        return answer

    def found(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.name != ".kangaroo")


def deleting(volume_id: str) -> dict[str, Any]:
    return calling("DeleteVolume", {"volume_id": volume_id})


def ok(answer: Answer) -> dict[str, Any]:
    assert answer.code == "OK", answer.message
    return dict(answer.response)


def id_of(answer: Answer) -> str:
    text: str = ok(answer)["volume"]["volumeId"]
    return text


@pytest.fixture
def base(driver: Driver) -> Iterator[Base]:
    made = Base(driver)
    yield made
    shutil.rmtree(made.root)


def test_a_volume_from_its_making_to_its_end(driver: Driver, base: Base) -> None:
    """Made twice, published where CreateVolume says, deleted twice; the driver restarts amid."""
    name = f"pvc-{uuid.uuid4()}"
    first = base.create(name, onDelete="delete", mountPermissions="0750")
    assert ok(first) == ok(base.create(name, onDelete="delete", mountPermissions="0750"))
    volume = first.response["volume"]
    assert volume["capacityBytes"] == str(GIB)
    assert (base.root / name).stat().st_mode & 0o7777 == 0o750
    driver.node.exec(["systemctl", "restart", UNIT])
    assert driver.publish("provisioned", **volume["volumeContext"]).code == "OK"
    driver.node.exec(["sh", "-c", f"echo seen > {driver.target('provisioned')}/file"])
    assert (base.root / name / "file").read_text() == "seen\n"
    driver.unpublish("provisioned")
    for _ in range(2):
        ok(base.delete(volume["volumeId"]))
    assert base.found() == []


@pytest.mark.parametrize("vers", ["3", "4.0", "4.1", "4.2"] if SOAK else ["4.2"])
def test_a_snapshot_and_a_clone_by_every_version(driver: Driver, base: Base, vers: str) -> None:
    source = id_of(base.create("v", vers=vers, onDelete="delete"))
    place = base.root / "v"
    fill(place)
    before = facts(place)
    (answer,) = driver.calls(
        calling("CreateSnapshot", {"name": "s", "source_volume_id": source}),
    )
    snapshot = ok(answer)["snapshot"]
    assert snapshot["readyToUse"] is True
    source_path = f"{driver.lab.nas.address}:/csi/{base.root.name}/v"
    nas_client.run_on(driver.node, source_path, "echo changed > file")
    restoring, cloning = (base.creating(name, vers=vers, onDelete="delete") for name in "rc")
    restoring["request"]["volume_content_source"] = {
        "snapshot": {"snapshot_id": snapshot["snapshotId"]}
    }
    cloning["request"]["volume_content_source"] = {"volume": {"volume_id": source}}
    made = [id_of(answer) for answer in driver.calls(restoring, cloning)]
    assert facts(base.root / "r") == before
    assert facts(base.root / "c") == facts(place)
    listing = calling("ListSnapshots", {"source_volume_id": source})
    (listed,) = driver.calls(listing)
    assert [entry["snapshot"] for entry in ok(listed)["entries"]] == [snapshot]
    gone = calling("DeleteSnapshot", {"snapshot_id": snapshot["snapshotId"]})
    for answer in driver.calls(*map(deleting, [source, *made]), gone):
        ok(answer)
    assert base.found() == []
    left = [path.name for path in (base.root / ".kangaroo").rglob("*")]
    assert sorted(left) == ["making", "snapshots", "trash", "volumes"]


def fill(place: Path) -> None:
    """What a copy could lose."""
    (place / "directory").mkdir()
    (place / "file").write_bytes(b"x" * 3_000_000)
    (place / "file").chmod(0o4751)
    os.link(place / "file", place / "directory/same")
    (place / "link").symlink_to("../elsewhere")
    os.mkfifo(place / "fifo")
    with (place / "sparse").open("wb") as sparse:
        sparse.seek(5_000_000)
        sparse.write(b"end")
    os.chown(place / "directory", 1000, 2000)
    (place / "directory").chmod(0o2770)
    os.utime(place / "directory", (1_000_000, 2_000_000))


def facts(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        # The lab's server says that it set the time of a symbolic link, and does not.
        time = None if path.is_symlink() else status.st_mtime
        what = (stat.filemode(status.st_mode), status.st_uid, status.st_gid, time)
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        sparse = status.st_blocks * 512 < status.st_size
        found[str(path.relative_to(root))] = (*what, status.st_nlink, content, sparse)
    return found


def test_what_deletion_keeps(base: Base) -> None:
    made = {name: id_of(base.create(name, onDelete=name)) for name in ("archive", "retain")}
    for name, volume_id in made.items():
        (base.root / name / "file").write_text(name)
        ok(base.delete(volume_id))
        ok(base.delete(volume_id))
    archived, retained = base.found()
    assert archived.startswith("archived-archive.")
    assert (base.root / archived / "file").read_text() == "archive"
    assert (base.root / retained / "file").read_text() == "retain"


def test_the_same_name_with_other_wishes_is_refused(base: Base) -> None:
    ok(base.create("taken", onDelete="delete"))
    for changes in ({"size": 2 * GIB}, {"onDelete": "retain"}, {"subDir": "elsewhere"}):
        answer = base.create("taken", **({"onDelete": "delete"} | changes))
        assert answer.code == "ALREADY_EXISTS", answer
        assert "volume taken: " in answer.message
    assert base.found() == ["taken"]


def test_the_share_itself_is_never_deleted(base: Base) -> None:
    (base.root / "file").write_text("kept")
    made = ok(base.create("whole", volumeAs="sharepath", onDelete="delete"))["volume"]
    assert made["volumeContext"]["path"] == base.path
    ok(base.delete(made["volumeId"]))
    assert base.found() == ["file"]


def test_growth_and_capacity(driver: Driver, base: Base) -> None:
    made = id_of(base.create("grows"))
    sizes = [2 * GIB, GIB]  # never smaller
    for size in sizes:
        request = {"volume_id": made, "capacity_range": {"required_bytes": str(size)}}
        (answer,) = driver.calls(calling("ControllerExpandVolume", request))
        assert ok(answer) == {"capacityBytes": str(2 * GIB)}
    parameters = {"server": driver.lab.nas.address, "path": base.path}
    (answer,) = driver.calls(calling("GetCapacity", {"parameters": parameters}))
    free = shutil.disk_usage(base.root).free
    assert int(ok(answer)["availableCapacity"]) == pytest.approx(free, rel=0.2)


def test_volumes_that_are_not_there(driver: Driver, base: Base) -> None:
    made = id_of(base.create("gone", onDelete="delete"))
    ok(base.delete(made))
    for volume_id in (made, "192.0.2.1#csi#foreign#"):
        ok(base.delete(volume_id))
        size = {"required_bytes": "1"}
        growing = {"volume_id": volume_id, "capacity_range": size}
        validating = {"volume_id": volume_id, "volume_capabilities": [MOUNT]}
        answers = driver.calls(
            calling("ControllerExpandVolume", growing),
            calling("ValidateVolumeCapabilities", validating),
        )
        assert [answer.code for answer in answers] == ["NOT_FOUND"] * 2


def test_an_export_that_is_not_there_and_an_unknown_parameter_are_named(base: Base) -> None:
    absent = base.create("absent", path="/absent")
    assert absent.code in ("NOT_FOUND", "PERMISSION_DENIED")
    assert "/absent" in absent.message
    unknown = base.create("unknown", regionId="cn-1")
    assert (unknown.code, "parameters.regionId" in unknown.message) == ("INVALID_ARGUMENT", True)
    assert base.found() == []


def test_many_at_once_on_one_share(driver: Driver, base: Base) -> None:
    names = [f"many-{n}" for n in range(12)]
    (made, again) = driver.rounds(*[[base.creating(name) for name in names]] * 2)
    assert [id_of(answer) for answer in made] == [id_of(answer) for answer in again]
    assert base.found() == sorted(names)


def test_a_dead_nas_ends_the_call_in_time_and_the_next_one_goes_on(
    driver: Driver, base: Base
) -> None:
    nas = driver.lab.nas
    made = id_of(base.create("dead", onDelete="delete"))
    nas.block([driver.node.address])
    try:
        answers = driver.calls(deleting(made), base.creating("dead-too"))
    finally:
        nas.unblock()
    for answer in answers:
        assert answer.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"), answer
        assert answer.seconds < OPERATION_S
        assert f"{nas.address}:{base.path}" in answer.message
    stray = driver.node.exec(["pgrep", "-f", "share_worker|mount.nfs"], check=False)
    assert stray.stdout == ""
    ok(base.delete(made))
    ok(base.create("dead-too"))
    assert base.found() == ["dead-too"]


ALLOWED = {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "ALREADY_EXISTS"}
FORGED = {"version": 1, "name": "x", "capacity": 0, "on_delete": "delete", "made": True}


@settings(
    max_examples=20 if SOAK else 6,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(entries=ENTRIES, paths=st.lists(PATHS, min_size=1, max_size=4, unique=True))
def test_a_hostile_share_leads_nowhere(
    driver: Driver, entries: list[tuple[str, str]], paths: list[str]
) -> None:
    """Links are resolved by who follows them: outside is the node, and the NAS beside the share."""
    base = Base(driver, "/share")
    around = base.root.parent
    (around / "victim/a").mkdir(parents=True)
    victim = f"{driver.root}-victim"
    driver.node.exec(["mkdir", "--parents", f"{victim}/a/volumes"])
    before = driver.node.exec(["find", victim]).stdout
    for number, (path, kind) in enumerate(entries):
        plant(base.root, path, kind, victim if number % 2 else "../victim")
    made = driver.calls(
        *(base.creating(f"v{n}", subDir=path, onDelete="delete") for n, path in enumerate(paths))
    )
    assert {answer.code for answer in made} <= ALLOWED, made
    records = base.root / ".kangaroo/volumes"
    if inside(base.root, records / "x") and records.is_dir():
        for record in records.glob("*.json"):
            record.write_text(json.dumps({**FORGED, "subdir": paths[0]}))
    ids = [id_of(answer) for answer in made if answer.code == "OK"]
    if ids:
        deleted = driver.calls(*map(deleting, ids))
        assert {answer.code for answer in deleted} <= ALLOWED, deleted
    assert driver.node.exec(["find", victim]).stdout == before
    assert sorted(path.name for path in around.iterdir()) == ["share", "victim"]
    assert [path.name for path in (around / "victim").rglob("*")] == ["a"]
    driver.node.exec(["rm", "-r", victim])
    shutil.rmtree(around)
