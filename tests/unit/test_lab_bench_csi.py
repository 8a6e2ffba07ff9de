"""The bench of CSI drivers: who is called when, memory, and the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kangaroo.errors import KangarooError
from kangaroo_lab.bench import csi, csi_results
from kangaroo_lab.bench.csi import AT_ONCE, OURS, PEER, CsiResults, DriverMemory, Timed, Verb, Way


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


def results(*drivers: str) -> CsiResults:
    seconds = {OURS: (0.25, 0.5, 0.75), PEER: (0.5, 1.0, 4.0)}
    return CsiResults(
        where="a node",
        emulated=True,
        drivers=drivers,
        volumes=500,
        timed=tuple(
            Timed(driver, verb, way, 0, seconds[driver])
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
    assert "| unpublish, until the last of 64 | 750 ms | 4000 ms | 0.19 × |" in text
    assert "| PSS at 500 volumes | 2.0 MiB | 2.0 MiB | 1.0 × |" in text
    assert "emulated" in text
    assert json.loads(series.read_text())["timed"][0]["seconds"] == [0.25, 0.5, 0.75]


def test_a_driver_alone_has_no_ratio(tmp_path: Path) -> None:
    _, page = csi_results.write(results(OURS), tmp_path)
    assert "| publish, alone | 500 ms |\n" in page.read_text()
