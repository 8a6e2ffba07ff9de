"""What is installed before there is a lab, on a machine whose apt is busy."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kangaroo.errors import CommandFailed
from kangaroo_lab import bootstrap

BUSY = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)\n"
AWAY = "E: Failed to fetch the index of a third party\n"


class Apt:
    """Runs nothing; its `update` fails with each of `failures` in turn."""

    def __init__(self, failures: list[str]) -> None:
        self.failures = failures
        self.ran: list[Sequence[str]] = []

    def __call__(self, argv: Sequence[str], **_: object) -> str:
        self.ran.append(argv)
        if argv[1] == "update" and self.failures:
            raise CommandFailed(
                tuple(argv), 100, self.failures.pop(0), "Reading package lists...\n"
            )
        return ""


def installed(
    failures: list[str], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Sequence[str]]:
    apt = Apt(failures)
    monkeypatch.setenv("KANGAROO_CACHE", str(directory))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(bootstrap, "run_sync", apt)
    bootstrap._install(["thing"])
    return apt.ran


def test_apt_waits_for_the_lock_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, install = installed([], tmp_path, monkeypatch)
    assert "DPkg::Lock::Timeout=600" in install
    assert install[-1] == "thing"


def test_the_lists_are_read_once_another_has_let_them_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = installed([BUSY, BUSY], tmp_path, monkeypatch)
    assert [argv[1] for argv in ran] == ["update", "update", "update", "install"]


def test_a_list_that_cannot_be_had_is_a_warning_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = installed([AWAY], tmp_path, monkeypatch)
    assert [argv[1] for argv in ran] == ["update", "install"]
    assert f"warning: apt-get exited with 100: {AWAY}" in capsys.readouterr().err


def test_a_failure_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_sync(argv: Sequence[str], **_: object) -> str:
        raise CommandFailed(tuple(argv), 100, "W: one\nE: no space\n")

    monkeypatch.setenv("KANGAROO_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(bootstrap, "run_sync", run_sync)
    monkeypatch.setattr(bootstrap, "missing", lambda _: ["thing"])
    assert bootstrap.main(["lab"]) == 1
    said = capsys.readouterr().err
    assert said.count("W: one") == 1
    assert said.splitlines()[-1] == "error: apt-get exited with 100: E: no space"
