"""The bench of CSI drivers: who is called when, memory, and the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from kangaroo.errors import CommandFailed, KangarooError
from kangaroo_lab.bench import csi, csi_results
from kangaroo_lab.bench.csi import AT_ONCE, OURS, PEER, CsiResults, DriverMemory, Timed, Verb, Way
from kangaroo_lab.csi_calls import Answer
from kangaroo_lab.data.csi import calls
from kangaroo_lab.node import Completed

if TYPE_CHECKING:
    from kangaroo_lab import csi_calls
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.node import Node


def test_alone_the_drivers_take_turns_with_every_call() -> None:
    rounds = csi.alone([PEER, OURS], Way.ALONE, range(2))
    assert [(one.driver, one.verb, list(one.volumes)) for one in rounds[:4]] == [
        (PEER, Verb.PUBLISH, [0]),
        (OURS, Verb.PUBLISH, [0]),
        (PEER, Verb.PUBLISH, [1]),
        (OURS, Verb.PUBLISH, [1]),
    ]
    assert {one.verb for one in rounds[4:]} == {Verb.UNPUBLISH}


def test_many_at_once_are_one_driver_s() -> None:
    rounds = csi.at_once([OURS, PEER])
    assert [(one.driver, one.verb) for one in rounds] == [
        (OURS, Verb.PUBLISH),
        (OURS, Verb.UNPUBLISH),
        (PEER, Verb.PUBLISH),
        (PEER, Verb.UNPUBLISH),
    ]
    assert {len(one.volumes) for one in rounds} == {AT_ONCE}


def test_a_node_is_filled_with_every_volume_once() -> None:
    rounds = csi.filling(OURS, Verb.PUBLISH, 100)
    assert [number for one in rounds for number in one.volumes] == list(range(100))


def test_a_rollup_is_read_and_something_else_refused() -> None:
    text = "55c0-7ffd ---p 00000000 00:00 0 [rollup]\nRss:   5000 kB\nPss:   3000 kB\n"
    assert csi.parse_rollup(f"{text}Pss_Dirty:   9 kB\n") == (3000, 5000)
    with pytest.raises(KangarooError, match="not a smaps_rollup"):
        csi.parse_rollup("Rss: 5000 kB\n")


class FakeNode:
    """Has these mounts, and a directory that is not removed while there is one."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.base = ""
        self.unmounted: list[str] = []

    def exec(self, argv: Sequence[str], *, input: str = "") -> Completed:  # noqa: A002
        match argv:
            case ["mkdir", base]:
                self.base = base
            case ["rmdir", base] if self.names:
                raise CommandFailed(("rmdir",), 1, f"{base}: not empty")
            case ["cat", "/proc/1/mountinfo"]:
                line = "36 35 0:30 / {} rw shared:1 - nfs 10.0.0.2:/ rw\n"
                points = (*(f"{self.base}/{name}" for name in self.names), "/run", f"{self.base}-2")
                return Completed("".join(map(line.format, points)), "", 0)
            case ["xargs", "umount", "--lazy"]:
                self.unmounted = [target.rpartition("/")[2] for target in input.split()]
                self.names.clear()
        return Completed("", "", 0)


def targets(node: FakeNode, said: list[str]) -> AbstractContextManager[str]:
    return csi._targets(cast("Node", node), said.append)


def test_targets_that_a_failed_call_leaves_are_unmounted_and_named() -> None:
    node, said = FakeNode("kangaroo-csi-7"), list[str]()
    with pytest.raises(KangarooError, match="no answer"), targets(node, said) as base:
        raise KangarooError("no answer")
    assert node.unmounted == ["kangaroo-csi-7"]
    assert f"{base}/kangaroo-csi-7" in said[0]
    with targets(node, said) as another:
        assert another != base


def test_targets_that_a_driver_leaves_are_an_error() -> None:
    node, said = FakeNode("kangaroo-csi-7"), list[str]()
    with pytest.raises(CommandFailed, match="not empty"), targets(node, said):
        pass
    assert node.unmounted == ["kangaroo-csi-7"]


def test_a_round_lasts_until_its_last_answer() -> None:
    class Client:
        def run(self, rounds: Sequence[Sequence[object]]) -> list[list[Answer]]:
            return [[Answer("OK", "", begun_s, 1.0, {}) for begun_s in (0.0, 0.5)] for _ in rounds]

    class FakeLab:
        class nas:  # noqa: N801
            address = "10.88.0.2"

    bench = csi._Bench(
        cast("Lab", FakeLab),
        cast("Node", FakeNode()),
        cast("csi_calls.Client", Client()),
        Path("/nas/csi/bench"),
        "/run/targets",
        {OURS: ("unit", "/sock")},
    )
    (round_,) = bench.make(0, csi.filling(OURS, Verb.PUBLISH, 2))
    assert (round_.seconds, round_.until_last_s) == ((1.0, 1.0), 1.5)


def test_the_client_times_calls_from_the_beginning_of_their_round(tmp_path: Path) -> None:
    """Two rounds of a call that waits for a driver that is not there."""
    one = {"socket": str(tmp_path / "sock"), "method": "NodeGetInfo", "request": {}}
    ((first,), (second,)) = calls.run([[{**one, "timeout_s": 0.05}]] * 2)
    assert first["code"] == second["code"] == "DEADLINE_EXCEEDED"
    assert 0 <= second["begun_s"] < first["seconds"]


def results(*drivers: str) -> CsiResults:
    seconds = {OURS: (0.25, 0.5, 0.75), PEER: (0.5, 1.0, 4.0)}
    return CsiResults(
        where="a node",
        emulated=True,
        drivers=drivers,
        volumes=500,
        timed=tuple(
            Timed(driver, verb, way, 0, seconds[driver], max(seconds[driver]) + 0.25)
            for driver in drivers
            for verb in Verb
            for way in Way
        ),
        memory=tuple(DriverMemory(driver, 500, 2048, 4096) for driver in drivers),
    )


def test_the_report_shows_ratios_of_medians(tmp_path: Path) -> None:
    series, page = csi_results.write(results(OURS, PEER), tmp_path)
    text = page.read_text()
    assert f"| call | {OURS} | {PEER} | {OURS} : {PEER} |" in text
    assert "| publish, alone | 500 ms | 1000 ms | 0.50 × |" in text
    assert "| unpublish, until the last of 64 | 1000 ms | 4250 ms | 0.24 × |" in text
    assert "| PSS at 500 volumes | 2.0 MiB | 2.0 MiB | 1.0 × |" in text
    assert "emulated" in text
    assert json.loads(series.read_text())["timed"][0]["seconds"] == [0.25, 0.5, 0.75]


def test_a_driver_alone_has_no_ratio(tmp_path: Path) -> None:
    _, page = csi_results.write(results(OURS), tmp_path)
    assert "| publish, alone | 500 ms |\n" in page.read_text()
