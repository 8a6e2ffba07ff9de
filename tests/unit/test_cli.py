"""The command line: what arrives where, and what a failure says."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kangaroo.cli import main
from kangaroo.cli.main import parser
from kangaroo.errors import CommandFailed, FailedPrecondition, KangarooError
from kangaroo_lab import artefacts
from kangaroo_lab import lab as lab_module
from kangaroo_lab.lab import Lab


@pytest.mark.parametrize(
    "words",
    [
        ["-n", "default", "get", "pods"],
        ["get", "pods", "-n", "default"],
        ["exec", "pod", "--", "sh", "-c", "true"],
        ["--help"],
    ],
)
def test_kubectl_gets_its_arguments_whole(words: list[str]) -> None:
    assert parser().parse_args(["lab", "kubectl", *words]).arguments == words


@pytest.mark.parametrize(
    ("verb", "name", "words"),
    [
        (["kubectl"], "arguments", ["get", "pods"]),
        (["exec", "node1"], "command", ["ls", "--", "-l"]),
    ],
)
def test_two_dashes_before_a_command_are_no_part_of_it(
    verb: list[str], name: str, words: list[str]
) -> None:
    for before in ([], ["--"]):
        arguments = parser().parse_args(["lab", *verb, *before, *words])
        assert getattr(arguments, name) == words


def test_a_reader_that_goes_ends_a_verb_without_a_word(tmp_path: Path) -> None:
    """`kangaroo lab status | head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "kangaroo.cli.main", "lab", "status"],
        env={**os.environ, "KANGAROO_LAB": str(tmp_path)},
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")


def failing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of a verb that raises this."""

    def run(_: argparse.Namespace) -> int:
        raise error

    stub = argparse.ArgumentParser()
    stub.set_defaults(run=run, debug=False)
    monkeypatch.setattr(main, "parser", lambda: stub)
    return main.main([])


APT = CommandFailed(
    ("apt-get",), 100, "W: old\nE: no space\n", "".join(f"{n}\n" for n in range(99))
)


def test_a_command_that_failed_is_quoted_and_named_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(APT, "shown", False)
    assert failing(APT, monkeypatch) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-2:] == ["    W: old", "kangaroo: apt-get exited with 100: E: no space"]
    assert len(said) == main._TAIL_LINES


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (APT, "apt-get exited with 100: E: no space"),
        (CommandFailed(("qemu",), -9, ""), "qemu was killed by signal 9"),
        (KangarooError("node1 ended: a\nb", hint="look"), "node1 ended: a (look)"),
    ],
)
def test_what_a_step_has_shown_is_one_line(
    error: KangarooError,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(error, "shown", True)
    assert failing(error, monkeypatch) == 1
    assert capsys.readouterr().err == f"kangaroo: {line}\n"


def test_an_error_of_the_system_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(PermissionError(13, "Permission denied", "/var/lib/x"), monkeypatch) == 1
    assert capsys.readouterr().err == "kangaroo: [Errno 13] Permission denied: '/var/lib/x'\n"


@pytest.mark.parametrize(
    "words",
    [
        ["lab", "up", "--memory-mib", "-1"],
        ["demo", "--rounds", "0"],
        ["demo", "--manifest", "/absent.yaml"],
        ["bench", "--starts", "0"],
        ["bench-csi", "--turns", "x"],
        ["bench-csi", "--volumes", "-5"],
        ["bench-csi", "--peer", "/absent"],
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(words)
    assert f"argument {words[-2]}: {words[-1]!r} is no " in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["demo", "bench"])
def test_the_example_is_found_from_anywhere(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parser().parse_args([verb]).manifest.is_file()


def test_a_lab_is_root_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*_: object) -> None:
        raise AssertionError("it began")

    monkeypatch.setattr(lab_module, "_build", built)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    lab = Lab.open(tmp_path)
    for change in (lab.up, lambda: lab.build({}), lab.down):
        with pytest.raises(FailedPrecondition, match="run as root"):
            change()
    assert not list(tmp_path.iterdir())


class FakeLab:
    """Remembers what is to be built."""

    def __init__(self, logs: Path) -> None:
        self.logs = self.directory = logs
        self.nodes = {"node1": None}
        self.wanted: list[str] = []

    def build(self, wanted: dict[str, object]) -> None:
        self.wanted = list(wanted)

    def deploy(self, *, guest: bool) -> None:
        assert guest

    def down(self) -> bool:
        return True


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLab:
    fake = FakeLab(tmp_path)
    monkeypatch.setattr(Lab, "open", lambda: fake)
    return fake


def test_the_sidecars_are_built_where_all_is_asked_for(lab: FakeLab) -> None:
    assert main.main(["lab", "build"]) == 0
    assert {*artefacts.for_tests()} < {*lab.wanted}
    assert not {*artefacts.for_provisioning()} & {*lab.wanted}
    assert main.main(["lab", "build", "--all"]) == 0
    assert {*artefacts.for_provisioning()} < {*lab.wanted}


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize(("verb", "step"), [("deploy", "deploy"), ("down", "lab down")])
def test_what_takes_a_while_says_that_it_has_started(
    verb: str, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["lab", verb]) == 0
    assert f"[1/1] {step}: started" in capsys.readouterr().err
