"""Which state directories nobody cleans up after."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kangaroo.runtime.sweep import MIN_AGE_S, abandoned


def directory(root: Path, name: str, *, age_s: float, pid: str | None = None) -> None:
    path = root / name
    path.mkdir()
    if pid is not None:
        (path / "shim.pid").write_text(f"{pid}\n")
    then = time.time() - age_s
    os.utime(path, (then, then))


def test_directories_without_a_shim_are_abandoned_after_a_while(tmp_path: Path) -> None:
    directory(tmp_path, "starting", age_s=0)
    directory(tmp_path, "never-had-one", age_s=2 * MIN_AGE_S)
    # This process lives, and is no shim: pids are used again.
    directory(tmp_path, "pid-of-another", age_s=2 * MIN_AGE_S, pid=str(os.getpid()))
    (tmp_path / "file").write_text("")
    os.utime(tmp_path / "file", (0, 0))
    assert sorted(abandoned(tmp_path)) == ["never-had-one", "pid-of-another"]
