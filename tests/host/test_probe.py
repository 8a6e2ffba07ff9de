"""The program that compares file systems says the same of one file system every time."""

from __future__ import annotations

import json
from pathlib import Path

from kangaroo.linux.process import run_sync
from kangaroo_lab import artefacts


def observe(directory: Path) -> dict[str, str]:
    argv = [str(artefacts.probe()), "run", "-dir", str(directory)]
    lines = run_sync(argv, timeout_s=120).splitlines()
    return {said["observation"]: said["outcome"] for said in map(json.loads, lines)}


def test_observations_repeat_and_leave_nothing(tmp_path: Path) -> None:
    first = observe(tmp_path)
    assert observe(tmp_path) == first
    assert list(tmp_path.iterdir()) == []
    failed = {name: said for name, said in first.items() if "unexpected" in said or said == "hangs"}
    assert failed == {}
    assert first["flock-by-another-process"] == "held EAGAIN, released ok"
    assert first["inotify-of-another-process"] == "modify a, close a"
