"""The results of a bench run of CSI drivers, and the report made of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kangaroo_lab import report
from kangaroo_lab.bench.csi import ALONE, AT_ONCE, OURS, CsiResults, DriverMemory, Timed, Verb, Way
from kangaroo_lab.bench.results import Part, markdown

FORMAT = 1
COMMAND = "make bench-csi"


def write(results: CsiResults, directory: Path) -> tuple[Path, ...]:
    """Write results.json and report.md; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    series, page = directory / "results.json", directory / "report.md"
    document: dict[str, Any] = {"format": FORMAT, "command": COMMAND, **asdict(results)}
    series.write_text(json.dumps(document, indent=2) + "\n")
    page.write_text(markdown("CSI drivers", COMMAND, sections(results)))
    return series, page


def sections(results: CsiResults) -> tuple[Part, ...]:
    """The report's sections, as text."""
    headings = (*results.drivers, *(f"{OURS} : {peer}" for peer in _peers(results)))
    where = f"Measured on {results.where}, in one run."
    notes = (where, report.EMULATED_NOTE) if results.emulated else (where,)
    turns = len({one.turn for one in results.timed})
    calls = (
        f"Medians of {turns} turns: of {ALONE} calls of each kind alone, and of {AT_ONCE} at once."
        f" A full node has {results.volumes} volumes."
    )
    return (
        Part("Latency", ("call", *headings), tuple(_latency_rows(results)), (*notes, calls)),
        Part("Memory", ("driver's process", *headings), tuple(_memory_rows(results)), notes),
    )


def _latency_rows(results: CsiResults) -> Iterator[tuple[str, ...]]:
    for way in (Way.ALONE, Way.AT_ONCE, Way.FULL):
        for verb in Verb:
            rounds = [one for one in results.timed if (one.way, one.verb) == (way, verb)]
            if rounds:
                yield _row(f"{verb}, {way}", results, _seconds(rounds, _median_call), _ms)
            if rounds and way is Way.AT_ONCE:
                last = _seconds(rounds, lambda one: one.until_last_s)
                yield _row(f"{verb}, until the last of {AT_ONCE}", results, last, _ms)


def _seconds(rounds: list[Timed], of_round: Callable[[Timed], float]) -> dict[str, float]:
    """The median over the rounds, by driver."""
    return {
        driver: statistics.median(of_round(one) for one in rounds if one.driver == driver)
        for driver in {one.driver for one in rounds}
    }


def _median_call(one: Timed) -> float:
    return statistics.median(one.seconds)


def _memory_rows(results: CsiResults) -> Iterator[tuple[str, ...]]:
    sizes: dict[str, Callable[[DriverMemory], int]] = {
        "PSS": lambda one: one.pss_kib,
        "RSS": lambda one: one.rss_kib,
    }
    for volumes in sorted({one.volumes for one in results.memory}):
        when = f"at {volumes} volumes" if volumes else "at rest"
        for name, size in sizes.items():
            found = {one.driver: size(one) for one in results.memory if one.volumes == volumes}
            yield _row(f"{name} {when}", results, found, lambda kib: f"{kib / 1024:.1f} MiB")


def _row(
    name: str,
    results: CsiResults,
    found: dict[str, float] | dict[str, int],
    text: Callable[..., str],
) -> tuple[str, ...]:
    values = (text(found[driver]) for driver in results.drivers)
    ratios = (report.ratio_text(found[OURS] / found[peer]) for peer in _peers(results))
    return (name, *values, *ratios)


def _peers(results: CsiResults) -> list[str]:
    return [driver for driver in results.drivers if driver != OURS]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
