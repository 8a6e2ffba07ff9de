"""Files that the lab gives to its parts, beside the code."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def path(name: str) -> Path:
    """The data file `name`, such as "nas/ganesha.conf"."""
    return _HERE / name


def text(name: str) -> str:
    return path(name).read_text()
