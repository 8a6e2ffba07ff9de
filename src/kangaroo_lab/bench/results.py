"""The results of a bench run, and the report made of them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kangaroo.errors import NotFound
from kangaroo_lab import picture, report
from kangaroo_lab.bench import imports, start
from kangaroo_lab.bench.imports import ImportCost
from kangaroo_lab.bench.memory import Memory
from kangaroo_lab.bench.start import Start
from kangaroo_lab.comparison import Comparison

FORMAT = 1
COMMAND = "make bench"


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that one run measured."""

    where: str
    emulated: bool
    machine: str  # where the imports were measured
    starts: tuple[Start, ...]
    memory: tuple[Memory, ...]
    comparison: Comparison
    imports: tuple[ImportCost, ...]

    def to_json(self) -> dict[str, Any]:
        """The series. `format` counts up when a key changes its meaning."""
        return {
            "format": FORMAT,
            "command": COMMAND,
            "where": self.where,
            "emulated": self.emulated,
            "starts": [asdict(one) for one in self.starts],
            "memory": [asdict(one) for one in self.memory],
            "comparison": self.comparison.to_json(),
            "imports": {"where": self.machine, "entries": [asdict(one) for one in self.imports]},
        }


@dataclass(frozen=True, slots=True)
class Part:
    """A section of the report: a table, and notes under it."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    picture: str | None = None


def write(results: Results, directory: Path) -> tuple[Path, ...]:
    """Write results.json, report.md, report.html and the picture; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    svg, png = picture.draw(results.comparison, directory)
    series = directory / "results.json"
    series.write_text(json.dumps(results.to_json(), indent=2) + "\n")
    text, page = directory / "report.md", directory / "report.html"
    parts = sections(results)
    text.write_text(markdown("What Kangaroo costs", COMMAND, parts))
    page.write_text(_html(parts))
    return series, text, page, svg, png


def sections(results: Results) -> tuple[Part, ...]:
    """The report's sections, as text."""
    where = (f"Measured on {results.where}.",)
    return (
        Part("Sandbox start", ("step", "median", "from", "to"), _start_rows(results), where),
        Part("Memory of an idle sandbox", ("part", "median"), _memory_rows(results), where),
        compared(results.comparison),
        Part(
            "Import cost",
            ("entry", "median", "best", "processor", "modules", "slowest of their own"),
            tuple(_import_row(one) for one in results.imports),
            (f"Measured on {results.machine}, {imports.RUNS} runs each. Not emulated.",),
        ),
    )


def compared(comparison: Comparison) -> Part:
    """A comparison as a section, with the picture that lies beside the report."""
    return Part(
        "The same work, three ways to the same NAS",
        report.HEADINGS,
        tuple(report.rows(comparison)),
        tuple(report.notes(comparison)),
        picture="comparison.svg",
    )


def _start_rows(results: Results) -> tuple[tuple[str, ...], ...]:
    rows = []
    for step in (*start.STEPS, start.TOTAL):
        seconds = [taken for one in results.starts if (taken := _seconds(one, step)) is not None]
        if seconds:
            rows.append((step.name, f"{statistics.median(seconds):.2f} s", step.begin, step.end))
    boots = [one.guest_boot_s for one in results.starts if one.guest_boot_s is not None]
    if boots:
        median = f"{statistics.median(boots):.2f} s"
        rows.append(("of which in the guest", median, "its kernel starts", "agent ready"))
    return tuple(rows)


def _seconds(one: Start, step: start.Step) -> float | None:
    try:
        return one.seconds(step)
    except NotFound:
        return None


def _memory_rows(results: Results) -> tuple[tuple[str, ...], ...]:
    names = sorted({name for one in results.memory for name in one.pss_kib})
    rows = [
        (f"{name}, PSS on the node", _mib(one.pss_kib.get(name, 0) for one in results.memory))
        for name in names
    ]
    rows.append(("together on the node", _mib(one.node_kib for one in results.memory)))
    rows.append(("used in the guest", _mib(one.guest_used_kib for one in results.memory)))
    rows.append(("the guest's size", _mib(one.guest_total_kib for one in results.memory)))
    return tuple(rows)


def _mib(sizes_kib: Iterable[int]) -> str:
    return f"{statistics.median(sizes_kib) / 1024:.1f} MiB"


def _import_row(cost: ImportCost) -> tuple[str, ...]:
    slowest = ", ".join(f"{name} {own:.1f} ms" for name, own in cost.slowest[:3])
    times = tuple(f"{ms:.1f} ms" for ms in (cost.median_ms, cost.best_ms, cost.cpu_ms))
    return (cost.entry, *times, str(cost.modules), slowest)


def markdown(title: str, command: str, parts: tuple[Part, ...]) -> str:
    """A report in Markdown, with the command that made it."""
    made = [f"# {title}\n\nMade by `{command}` on {time.strftime('%Y-%m-%d')}."]
    for part in parts:
        image = f"\n\n![{part.title}]({part.picture})" if part.picture else ""
        table = report.markdown_table(part.headings, part.rows)
        made.append(f"## {part.title}\n\n{table}\n\n{' '.join(part.notes)}{image}")
    return "\n\n".join(made) + "\n"


def _html(parts: tuple[Part, ...]) -> str:
    made = []
    for part in parts:
        image = f'<p><img src="{part.picture}" alt="{part.title}"></p>' if part.picture else ""
        notes = "".join(f"<p>{note}</p>" for note in part.notes)
        made.append((part.title, report.html_table(part.headings, part.rows) + notes + image))
    return report.html_page("What Kangaroo costs", made)
