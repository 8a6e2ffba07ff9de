"""Tables of a comparison: for a terminal, in Markdown, and as one HTML page with the picture."""

from __future__ import annotations

import html
from collections.abc import Sequence

from rich.table import Table

from kangaroo_lab.comparison import WORKS, Comparison, Way, Work

HEADINGS = (
    "work",
    *(way.title for way in Way),
    "passthrough : virtio-fs",
    "passthrough : runc",
)
EMULATED_NOTE = (
    "Figures are emulated: the node is a virtual machine on an emulated CPU, and a sandbox "
    "runs inside it. Times mean nothing; ratios hold within this run only."
)
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{border-bottom:1px solid #bbb;padding:.3em .8em;"
    "text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


def rate_text(work: Work, rate: float) -> str:
    """A rate with its unit, to three figures."""
    if work.per_byte:
        return f"{rate / (1 << 20):.3g} MiB/s"
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s"


def ratio_text(ratio: float) -> str:
    """`3.1 ×`; two figures are all that an emulated run supports."""
    return f"{ratio:.1f} ×" if ratio >= 1 else f"{ratio:.2f} ×"


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """One row of text for each test, under HEADINGS."""
    return [
        (
            work.title,
            *(rate_text(work, comparison.rate(work, way)) for way in Way),
            ratio_text(comparison.ratio(work, Way.PASSTHROUGH)),
            ratio_text(comparison.ratio(work, Way.PASSTHROUGH, Way.RUNC)),
        )
        for work in WORKS
    ]


def notes(comparison: Comparison) -> list[str]:
    """Where it was measured, and that it was emulated when it was."""
    rounds = f"medians of {comparison.rounds} rounds" if comparison.rounds > 1 else "one round"
    where = f"Measured on {comparison.where}; {rounds}, in one run."
    return [where, EMULATED_NOTE] if comparison.emulated else [where]


def table(comparison: Comparison) -> Table:
    """The comparison for a terminal."""
    made = Table(
        title="The same work, three ways to the same NAS", caption=" ".join(notes(comparison))
    )
    for number, heading in enumerate(HEADINGS):
        made.add_column(heading, justify="left" if number == 0 else "right")
    for row in rows(comparison):
        made.add_row(*row)
    return made


def markdown_table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first column left, the others right."""
    ruler = [":---", *("---:" for _ in headings[1:])]
    lines = [headings, ruler, *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def html_table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """The same in HTML, escaped."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in headings)
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def html_page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """A page of its own: sections of (heading, HTML)."""
    body = "".join(f"<h2>{html.escape(heading)}</h2>{content}" for heading, content in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{body}</body></html>\n"
    )
