"""The workload: its Go source in `data/workload`, the static program, and what its image holds.

Standard library of Go only, so building it downloads nothing.
"""

from __future__ import annotations

from pathlib import Path

from kangaroo_lab import cache, gobuild

IMAGE = "kangaroo.io/workload:1"
MODULE = "workload"
PROGRAM = "bin/workload"  # in the image, beside busybox's applets


def digest() -> str:
    """Changes with the program, its place and the image's name."""
    return cache.digest(gobuild.recipe(MODULE), IMAGE, PROGRAM)


def build(directory: Path) -> Path:
    """Build the static program `workload` in `directory`. Raises CommandFailed."""
    gobuild.build(MODULE, ["."], directory)
    return directory / "workload"
