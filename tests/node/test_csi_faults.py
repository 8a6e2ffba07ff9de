"""The CSI driver killed, its NAS dead, many calls at once; with KANGAROO_SOAK=1 in full counts.

A run that failed is repeated with the seed that it printed: KANGAROO_SEED.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.node import kernel_server
from tests.node.csi_driver import SOAK, UNIT, Answer, Driver, calling, driving

from kangaroo.csi import mount_helper
from kangaroo.linux import mountinfo
from kangaroo_lab.nas import Failure

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

KILLS = 200 if SOAK else 2
VOLUMES, ROUNDS = (500, 20) if SOAK else (32, 2)
PARALLEL = 64 if SOAK else 32
DEAD_VOLUMES = 16
# Tried again and again until the driver's own deadline, long after the healthy ones.
ENDLESS = Failure.DROPPED
OPTIONS = "nolock,proto=tcp,noresvport"
# What the driver promises of a dead server: its own deadlines, and the emulated node's slowness.
PUBLISH_S, UNPUBLISH_S = 110, 30
READY_S = 180
LIFE_S = 300
_GROUP = f"/sys/fs/cgroup/system.slice/{UNIT}.service/cgroup.procs"
# What the driver keeps on a share that has no volume.
DRIVERS_OWN = {".kangaroo"} | {
    f".kangaroo/{name}" for name in ("making", "snapshots", "trash", "volumes")
}
_DEAD = {"DEADLINE_EXCEEDED", "UNAVAILABLE"}


@pytest.fixture(scope="module")
def driver(lab: Lab) -> Iterator[Driver]:
    with driving(lab) as found:
        yield found


@pytest.fixture
def base(lab: Lab) -> Iterator[Path]:
    """A new directory beneath /csi, as the NAS itself sees it."""
    path: Path = lab.nas.root / "csi" / f"faults-{secrets.token_hex(4)}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def second(lab: Lab) -> Iterator[str]:
    """An address of the NAS that a test may let fail."""
    with lab.nas.second_address() as address:
        yield address


def codes(answers: Sequence[Answer]) -> set[str]:
    return {answer.code for answer in answers}


def longest(answers: Sequence[Answer]) -> float:
    return max(answer.seconds for answer in answers)


def main_pid(driver: Driver) -> int:
    show = ["systemctl", "show", "--value", "--property=MainPID", UNIT]
    return int(driver.node.exec(show).stdout)


def restarted(driver: Driver, killed: int) -> None:
    """Return when the driver that was killed has a successor, which is ready."""
    gone = f"tail --pid={killed} --sleep-interval=0.1 --follow /dev/null"
    driver.node.exec(["sh", "-c", f"{gone} && systemctl start {UNIT}"], timeout_s=READY_S)


def children(driver: Driver) -> list[int]:
    """Processes of the driver's service beside the driver itself."""
    members = driver.node.exec(["cat", _GROUP]).stdout.split()
    return [pid for pid in map(int, members) if pid != main_pid(driver)]


def mounts(driver: Driver, name: str) -> list[mountinfo.MountEntry]:
    table = mountinfo.parse(driver.node.exec(["cat", "/proc/1/mountinfo"]).stdout)
    return [entry for entry in table if entry.mount_point == driver.target(name)]


def await_child(driver: Driver, program: str) -> None:
    """Return when the driver runs a child of this name."""
    script = f"until pgrep --parent {main_pid(driver)} --exact {program}; do sleep 0.1; done"
    driver.node.exec(["sh", "-c", script])


def test_no_mount_outlives_the_driver(driver: Driver) -> None:
    """Killed while mount waits for the server. The call comes again, then the server. A mount of
    before would come beside that of the new call, or after the volume was taken away.
    """
    nas = driver.lab.nas
    publishing = driver.publishing("outlived")
    nas.block([driver.node.address])
    with ThreadPoolExecutor(1) as pool:
        try:
            first = pool.submit(driver.calls, publishing)
            await_child(driver, mount_helper.PROGRAM)
            killed = main_pid(driver)
            driver.node.exec(["kill", "-KILL", str(killed)])
            assert first.result()[0].code == "UNAVAILABLE"
            restarted(driver, killed)
            assert children(driver) == []
            second = pool.submit(driver.calls, publishing)
            await_child(driver, mount_helper.PROGRAM)
        finally:
            nas.unblock()
        assert second.result()[0].code == "OK"
    assert children(driver) == []
    assert len(mounts(driver, "outlived")) == 1
    assert driver.unpublish("outlived").code == "OK"


@dataclass
class Life:
    """A volume that is made, published, grown, copied to a snapshot, taken away and deleted, the
    snapshot too. `fatal` is the step in which the driver is killed, `delay_s` after its begin.
    """

    driver: Driver = field(repr=False)
    base: Path
    name: str
    fatal: str = ""
    delay_s: float = 0.0

    def run(self) -> dict[str, float]:
        """How long each step took. After each, everything is as without a kill."""
        seconds = {}
        here = repr(self)
        creating = {
            "name": self.name,
            "capacity_range": {"required_bytes": 1 << 20},
            "volume_capabilities": [
                {"mount": {}, "access_mode": {"mode": "MULTI_NODE_MULTI_WRITER"}}
            ],
            "parameters": {
                "server": self.driver.lab.nas.address,
                "path": f"/csi/{self.base.name}",
                "onDelete": "delete",
            },
        }
        made, seconds["create"] = self.step("create", calling("CreateVolume", creating))
        volume = made["volume"]
        directory = self.base / self.name
        assert directory.is_dir(), here

        publishing = self.driver.publishing(self.name, **volume["volumeContext"])
        _, seconds["publish"] = self.step("publish", publishing)
        assert len(mounts(self.driver, self.name)) == 1, here
        file = f"{self.driver.target(self.name)}/file"
        self.driver.node.exec(["sh", "-c", f"echo {self.name} > {file}"])

        more = {"volume_id": volume["volumeId"], "capacity_range": {"required_bytes": 2 << 20}}
        grown, seconds["expand"] = self.step("expand", calling("ControllerExpandVolume", more))
        assert grown["capacityBytes"] == str(2 << 20), here

        name = {"name": f"{self.name}-copy", "source_volume_id": volume["volumeId"]}
        copying = calling("CreateSnapshot", name)
        copied, seconds["snapshot"] = self.step("snapshot", copying)
        while not copied["snapshot"].get("readyToUse"):  # each call waits for it, for a while
            (answer,) = self.driver.calls(copying)
            assert answer.code == "OK", (self, answer)
            copied = answer.response

        _, seconds["unpublish"] = self.step("unpublish", self.driver.unpublishing(self.name))
        assert self.driver.left() == [], here
        assert (directory / "file").read_text() == f"{self.name}\n", here

        deleting = calling("DeleteVolume", {"volume_id": volume["volumeId"]})
        _, seconds["delete"] = self.step("delete", deleting)
        forgetting = calling("DeleteSnapshot", {"snapshot_id": copied["snapshot"]["snapshotId"]})
        _, seconds["delete snapshot"] = self.step("delete snapshot", forgetting)
        left = {str(path.relative_to(self.base)) for path in self.base.rglob("*")}
        assert left <= DRIVERS_OWN, here
        assert children(self.driver) == [], here
        return seconds

    def step(self, name: str, request: Mapping[str, Any]) -> tuple[Mapping[str, Any], float]:
        if name == self.fatal:
            pid = main_pid(self.driver)
            kill = {"pid": pid, "after_s": self.delay_s}
            (cut_off,) = self.driver.calls({**request, "kill": kill})
            assert cut_off.code in ("OK", "UNAVAILABLE"), (self, cut_off)
            restarted(self.driver, pid)
        (answer,) = self.driver.calls(request)
        assert answer.code == "OK", (self, answer)
        return answer.response, answer.seconds


@pytest.mark.timeout((KILLS + 1) * LIFE_S)
def test_a_killed_driver_goes_on_at_any_point_of_any_verb(driver: Driver, base: Path) -> None:
    """The same call again succeeds, nothing is mounted twice, nothing is left, nothing is lost."""
    seed = int(os.environ.get("KANGAROO_SEED", secrets.randbits(32)))
    print(f"KANGAROO_SEED={seed}")
    chance = random.Random(seed)
    seconds = Life(driver, base, "unharmed").run()
    killed = dict.fromkeys(seconds, 0)
    first = chance.randrange(len(seconds))
    for number in range(KILLS):
        # Every verb in turn, from any on: so runs that are short have them all together.
        fatal = list(seconds)[(first + number) % len(seconds)]
        delay_s = chance.uniform(0, 1.2 * seconds[fatal])
        Life(driver, base, f"killed-{number}", fatal, delay_s).run()
        killed[fatal] += 1
    print(f"drivers killed, by verb: {killed}")


@dataclass(frozen=True)
class Mortal:
    """A server that a test lets fail: what volumes say of it, its end, and its return."""

    attributes: Mapping[str, Any]
    fail: Callable[[], None]
    recover: Callable[[], None]


@pytest.mark.parametrize(
    "failure",
    [pytest.param(each, marks=pytest.mark.soak) if each is ENDLESS else each for each in Failure],
)
def test_a_dead_nas_holds_up_nobody_of_a_healthy_one(
    driver: Driver, second: str, failure: Failure
) -> None:
    """The dead one is another address of the NAS."""
    nas = driver.lab.nas
    endless = failure is ENDLESS
    attributes = {"server": second, "options": OPTIONS + (",retry=2" if endless else "")}
    mortal = Mortal(attributes, lambda: nas.fail(second, failure), nas.unblock)
    volumes = DEAD_VOLUMES if SOAK or endless else DEAD_VOLUMES // 4
    hold_up_nobody(driver, mortal, volumes, failure.name, endless=endless)


@pytest.mark.soak
def test_a_dead_server_of_version_4_holds_up_nobody_of_a_healthy_one(driver: Driver) -> None:
    """Its mounts are of one client, which waits for it until it is back."""
    with kernel_server.serving(driver.node) as server:
        where = {"server": server.address, "path": kernel_server.SHARING}
        attributes = {**where, "vers": "4.2", "options": "hard"}
        mortal = Mortal(attributes, server.fail, server.recover)
        hold_up_nobody(driver, mortal, DEAD_VOLUMES, "DROPPED, version 4", endless=True)


def hold_up_nobody(
    driver: Driver, mortal: Mortal, volumes: int, title: str, *, endless: bool
) -> None:
    """Volumes of a server that fails, and as many of the NAS, are published and taken away at the
    same time. With `endless`, publishes of the dead are to outlast the others."""
    dead, healthy = ([f"{kind}-{n}" for n in range(volumes)] for kind in ("dead", "healthy"))
    living = {"server": driver.lab.nas.address, "options": OPTIONS}
    attributes = dict.fromkeys(dead, mortal.attributes) | dict.fromkeys(healthy, living)

    def publishing(names: Sequence[str], suffix: str = "") -> list[dict[str, Any]]:
        return [driver.publishing(f"{name}{suffix}", **attributes[name]) for name in names]

    def unpublishing(names: Sequence[str], suffix: str = "") -> list[dict[str, Any]]:
        return [driver.unpublishing(f"{name}{suffix}") for name in names]

    (before,) = driver.rounds([*publishing(dead), *publishing(healthy)])
    assert codes(before) == {"OK"}
    mortal.fail()
    try:
        (answers,) = driver.rounds(
            [
                *publishing(dead, "-more"),
                *unpublishing(dead),
                *publishing(healthy, "-more"),
                *unpublishing(healthy),
            ]
        )
        left = children(driver)
    finally:
        mortal.recover()
    published, unpublished = answers[:volumes], answers[volumes : 2 * volumes]
    well = answers[2 * volumes :]
    slowest, fastest = longest(well), min(answer.seconds for answer in published)
    print(
        f"{title}, {volumes} volumes: healthy at most {slowest:.1f} s, before"
        f" {longest(before):.1f} s; dead published in {fastest:.1f} to {longest(published):.1f} s,"
        f" unpublished in at most {longest(unpublished):.1f} s"
    )
    assert codes(well) == {"OK"}
    assert codes(published) <= _DEAD, published
    assert codes(unpublished) <= {"OK", *_DEAD}, unpublished
    assert longest(published) < PUBLISH_S
    assert longest(unpublished) < UNPUBLISH_S
    if endless:
        assert slowest < fastest, "the healthy ones waited for the dead"
    assert left == []
    (after,) = driver.rounds(publishing(dead, "-more"))
    assert codes(after) == {"OK"}, after
    both = [*dead, *healthy]
    (gone,) = driver.rounds([*unpublishing(both), *unpublishing(both, "-more")])
    assert codes(gone) == {"OK"}, gone


@pytest.mark.timeout(VOLUMES * ROUNDS * 5 + 300)
def test_many_calls_at_once_leave_no_trace(driver: Driver) -> None:
    """Every answer is that of its own call, also of those that have to fail."""
    names = [f"many-{n}" for n in range(VOLUMES)]
    turns = [names[start : start + PARALLEL] for start in range(0, VOLUMES, PARALLEL)]
    asked = [odd_call(driver, number) for number in range(PARALLEL)]
    table = driver.node.exec(["cat", "/proc/1/mountinfo"]).stdout.count("\n")
    memory = []
    for _ in range(ROUNDS):
        *published, odd = driver.rounds(
            *([driver.publishing(name) for name in turn] for turn in turns),
            [request for request, _ in asked],
        )
        assert {code for answers in published for code in codes(answers)} == {"OK"}, published
        for answer, (request, code) in zip(odd, asked, strict=True):
            assert answer.code == code, (request, answer)
        lines = driver.node.exec(["cat", "/proc/1/mountinfo"]).stdout.count("\n")
        assert lines == table + VOLUMES
        gone = driver.rounds(*([driver.unpublishing(name) for name in turn] for turn in turns))
        assert {code for answers in gone for code in codes(answers)} == {"OK"}, gone
        memory.append(resident_kib(driver))
    print(f"{VOLUMES} volumes, {ROUNDS} rounds, {PARALLEL} at once; driver's memory: {memory} KiB")
    assert driver.node.exec(["cat", "/proc/1/mountinfo"]).stdout.count("\n") == table
    assert children(driver) == []
    # The first round makes the interpreter's own pools; what grows after it is a leak.
    assert memory[-1] <= memory[0] * 1.1, memory


def odd_call(driver: Driver, number: int) -> tuple[dict[str, Any], str]:
    """A call about the published volume `number`, and what the answer has to be."""
    name = f"many-{number}"
    stats = {"volume_id": name, "volume_path": driver.target(name)}
    kinds = (
        (driver.publishing(name), "OK"),
        (driver.publishing(name, path="/nodeonly"), "ALREADY_EXISTS"),
        (calling("NodeGetVolumeStats", stats), "OK"),
        (driver.unpublishing(f"never-{number}"), "OK"),
        (driver.publishing(name, path="/../etc"), "INVALID_ARGUMENT"),
        (calling("NodeGetVolumeStats", {**stats, "volume_path": "/never"}), "NOT_FOUND"),
    )
    return kinds[number % len(kinds)]


def resident_kib(driver: Driver) -> int:
    status = driver.node.exec(["cat", f"/proc/{main_pid(driver)}/status"]).stdout
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1])
