"""Which state directories nobody cleans up after."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from kangaroo.runtime import sweep
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


def test_what_the_last_sandbox_left_is_cleaned_up_when_it_is_old_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "MIN_AGE_S", 0.05)
    directory(tmp_path, "predecessor", age_s=0)
    (tmp_path / "predecessor").touch()
    asyncio.run(sweep.keep_clean(tmp_path, lambda _, path: ["rmdir", str(path)]))
    assert list(tmp_path.iterdir()) == []


def test_a_cleanup_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        directory(tmp_path, name, age_s=2 * MIN_AGE_S)
    (tmp_path / "a" / "busy").touch()
    os.utime(tmp_path / "a", (0, 0))
    asyncio.run(sweep.sweep(tmp_path, lambda _, path: ["rmdir", str(path)]))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
