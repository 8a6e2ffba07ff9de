"""Modules of ours as programs, for what must not run in the caller's process."""

from __future__ import annotations

import os
import sys


def command(module: str, *arguments: str) -> tuple[str, ...]:
    """argv that runs `module` with this interpreter and without `site`."""
    return (sys.executable, "-P", "-S", "-m", module, *arguments)


def environment() -> dict[str, str]:
    """Ours, in which the child finds its modules where we found ours."""
    return {**os.environ, "LC_ALL": "C", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
