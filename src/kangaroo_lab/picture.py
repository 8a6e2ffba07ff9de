"""The picture of a comparison: for each piece of work, how many times as fast as over virtio-fs."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from kangaroo_lab.comparison import WORKS, Comparison, Way
from kangaroo_lab.report import notes, ratio_text

# Okabe and Ito's blue and orange: told apart by every kind of colour vision, and in grey.
_BARS = ((Way.PASSTHROUGH, "#0072B2", ""), (Way.RUNC, "#E69F00", "//"))
_HEIGHT = 0.36


def draw(comparison: Comparison, directory: Path) -> tuple[Path, Path]:
    """Write `comparison.svg` and `comparison.png` into the directory; their paths."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.add_subplot()
    _bars(comparison, axes)
    axes.set_title("How many times as fast as a sandbox over virtio-fs", loc="left", weight="bold")
    figure.text(0.01, -0.02, "\n".join(notes(comparison)), fontsize=8, va="top", wrap=True)
    directory.mkdir(parents=True, exist_ok=True)
    svg, png = directory / "comparison.svg", directory / "comparison.png"
    # The same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "kangaroo", "svg.fonttype": "none"}):
        figure.savefig(svg, metadata={"Date": None}, bbox_inches="tight")
    figure.savefig(png, dpi=150, bbox_inches="tight")
    return svg, png


def _bars(comparison: Comparison, axes: Axes) -> None:
    """Bars that start at 1 on a logarithmic axis: to the right is faster, to the left slower."""
    places = range(len(WORKS))
    seen = [1.0]
    for index, (way, colour, hatch) in enumerate(_BARS):
        ratios = [comparison.ratio(work, way) for work in WORKS]
        seen.extend(ratios)
        axes.barh(
            [place + (index - 0.5) * _HEIGHT for place in places],
            [ratio - 1 for ratio in ratios],
            left=1,
            height=_HEIGHT,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=way.title,
        )
        for place, ratio in zip(places, ratios, strict=True):
            _label(axes, ratio, place + (index - 0.5) * _HEIGHT)
    axes.set_xscale("log")
    axes.set_xlim(min(seen) / 1.6, max(seen) * 1.6)
    axes.axvline(1, color="black", linewidth=1.2)
    axes.set_yticks(list(places), [work.title for work in WORKS])
    axes.invert_yaxis()
    _scale(axes)


def _label(axes: Axes, ratio: float, place: float) -> None:
    faster = ratio >= 1
    axes.annotate(
        ratio_text(ratio),
        (ratio, place),
        xytext=(4 if faster else -4, 0),
        textcoords="offset points",
        ha="left" if faster else "right",
        va="center",
        fontsize=9,
    )


def _scale(axes: Axes) -> None:
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("slower ←  virtio-fs = 1  → faster (logarithmic)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
