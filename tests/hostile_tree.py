"""Trees that somebody who can write to a share makes to lead its driver astray."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hypothesis import strategies as st

NAMES = st.sampled_from(
    ["a", "b", "..", ".", ".kangaroo", "volumes", "trash", "ü", "e\u0301", "x" * 255]
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from(["directory", "file", "fifo", "outside", "up", "loop", "inside"])
ENTRIES = st.lists(st.tuples(PATHS, KINDS), max_size=12)


def inside(root: Path, place: Path) -> bool:
    """Whether what writes to `place`, following links, writes beneath `root`."""
    with contextlib.suppress(RuntimeError, OSError):
        return (place.parent.resolve() / place.name).is_relative_to(root.resolve())
    return False


def plant(root: Path, path: str, kind: str, outside: str | Path) -> None:
    """Make one entry, if that can be done; a link of kind "outside" points there."""
    place = root / path
    if not inside(root, place):
        return
    links = {"outside": outside, "up": "..", "loop": place.name, "inside": "a"}
    with contextlib.suppress(OSError):
        if kind == "directory":
            place.mkdir(parents=True)
        elif kind == "file":
            place.touch(exist_ok=False)  # another open of a FIFO would wait
        elif kind == "fifo":
            os.mkfifo(place)
        else:
            place.symlink_to(links[kind])
