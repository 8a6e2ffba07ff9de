"""What is kept of a node when something failed: all that can be had, and never an error."""

from __future__ import annotations

import socket
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from kangaroo_lab import journals
from kangaroo_lab.node import Node


class FakeNode:
    """Runs here what it is told, with another command for some programs and another /run."""

    name = "node1"

    def __init__(self, run: Path, instead: Mapping[str, list[str]]) -> None:
        self.run, self.instead = run, instead

    def ssh(self, *argv: str) -> list[str]:
        moved = [word.replace("/run/", f"{self.run}/") for word in argv]
        return self.instead.get(argv[0], moved)


def fake(run: Path, **instead: list[str]) -> Node:
    return cast("Node", FakeNode(run, {"journalctl": ["echo", "the journal"], **instead}))


def a_sandbox(run: Path) -> None:
    directory = run / "kangaroo/sandboxes/abc"
    (directory / "shared/volume").mkdir(parents=True)
    (directory / "shared/volume/secret").touch()
    for name in ("console.log", "shim.log", "state.json"):
        (directory / name).write_text(name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "qmp.sock"))


def test_journal_and_logs_of_sandboxes_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    a_sandbox(Path("run"))
    kept = tmp_path / "kept"
    journals.save(fake(tmp_path / "run"), kept, "test[a/b]")
    assert (kept / "test[a-b]-node1.log").read_text() == "the journal\n"
    with tarfile.open(kept / "test[a-b]-node1.tar") as archive:
        names = sorted(archive.getnames())
    assert names == ["./abc/console.log", "./abc/shim.log", "./abc/state.json"]


def test_a_node_without_sandboxes_has_a_journal(tmp_path: Path) -> None:
    journals.save(fake(tmp_path / "run"), tmp_path, "x")
    assert (tmp_path / "x-node1.log").read_text() == "the journal\n"


@pytest.mark.parametrize("command", [["false"], ["/nonexistent"], ["sleep", "60"]])
def test_a_node_that_does_not_answer_is_no_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    command: list[str],
) -> None:
    monkeypatch.setattr(journals, "TIMEOUT_S", 0.1)
    journals.save(fake(tmp_path, journalctl=command), tmp_path / "kept", "x")
    assert "node=node1" in caplog.text
