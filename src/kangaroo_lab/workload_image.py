"""The workload: its Go source in `data/workload`, the static program, and what its image holds.

Standard library of Go only, so building it downloads nothing.
"""

from __future__ import annotations

import hashlib
import os
from importlib import resources
from pathlib import Path

from kangaroo.linux.process import run_sync

IMAGE = "kangaroo.io/workload:1"
PROGRAM = "bin/workload"  # in the image, beside busybox's applets
_BUILD_TIMEOUT_S = 600.0


def source() -> Path:
    """The directory of the Go module."""
    return Path(str(resources.files("kangaroo_lab").joinpath("data/workload")))


def digest() -> str:
    """Changes when the program would: a hash over the names and bytes of its sources."""
    total = hashlib.sha256()
    for path in sorted(source().iterdir()):
        if path.name == "go.mod" or (path.suffix == ".go" and not path.name.endswith("_test.go")):
            total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def build(target: Path) -> Path:
    """Build the static program at `target`. Raises CommandFailed with the compiler's output."""
    run_sync(
        ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s", "-o", str(target), "."],
        timeout_s=_BUILD_TIMEOUT_S,
        cwd=str(source()),
        env={**os.environ, "CGO_ENABLED": "0", "GOOS": "linux", "GOFLAGS": "-mod=readonly"},
    )
    return target
