"""What it costs to start the shim's `start` and the agent: interpreter and imports, wall time.

Measured on this machine, not on the node, so that the figures are not emulated.
"""

from __future__ import annotations

import re
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import kangaroo

RUNS = 20
_TIMEOUT_S = 30.0
_IMPORT_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| ( *)(\S+)")
# As on a node: the project first, then its libraries, and nothing of `site`.
_PATHS = [str(Path(kangaroo.__file__).parent.parent), sysconfig.get_path("platlib")]

# What each entry imports before it does its work; an empty list is the interpreter alone.
ENTRIES: dict[str, Sequence[str]] = {
    "python3 -I -S, nothing imported": (),
    "shim: start": ("kangaroo.runtime.shim", "kangaroo.runtime.start"),
    "shim: daemon": ("kangaroo.runtime.shim", "kangaroo.runtime.daemon"),
    "agent": ("kangaroo.agent.main",),
}


@dataclass(frozen=True, slots=True)
class ImportCost:
    """One entry. `slowest` are (module, milliseconds of its own) in falling order."""

    entry: str
    median_ms: float  # wall time
    best_ms: float
    cpu_ms: float  # median processor time: hardly disturbed by what else runs
    modules: int
    slowest: tuple[tuple[str, float], ...]


def measure(entry: str, modules: Sequence[str], *, runs: int = RUNS) -> ImportCost:
    """Start the interpreter `runs` times. Raises CalledProcessError when an import fails."""
    timed = [_timed(modules) for _ in range(runs)]
    times = [wall for wall, _ in timed]
    text = _start(modules, "-X", "importtime")
    own = parse_importtime(text)
    return ImportCost(
        entry=entry,
        median_ms=statistics.median(times) * 1000,
        best_ms=min(times) * 1000,
        cpu_ms=statistics.median(cpu for _, cpu in timed) * 1000,
        modules=len(own),
        slowest=tuple(sorted(own, key=lambda item: -item[1])[:8]),
    )


def parse_importtime(text: str) -> list[tuple[str, float]]:
    """(module, milliseconds of its own) from what `-X importtime` printed."""
    return [(found[4], int(found[1]) / 1000) for found in _IMPORT_LINE.finditer(text)]


def _timed(modules: Sequence[str]) -> tuple[float, float]:
    """Seconds by the clock, and of a processor."""
    begin, used = time.perf_counter(), _children_cpu()
    _start(modules)
    return time.perf_counter() - begin, _children_cpu() - used


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _start(modules: Sequence[str], *flags: str) -> str:
    lines = ["import sys", f"sys.path[:0] = {_PATHS!r}"] if modules else ["pass"]
    lines += [f"import {name}" for name in modules]
    argv = [sys.executable, "-I", "-S", *flags, "-c", "\n".join(lines)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    return done.stderr
