"""Progress without a terminal, and what decides about Go and packages."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from kangaroo.errors import CommandFailed, DeadlineExceeded, KangarooError
from kangaroo_lab import gobuild
from kangaroo_lab.progress import Steps, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_says_where_it_is_and_what_comes_next(tmp_path: Path) -> None:
    stream = io.StringIO()
    steps = Steps(["first", "second"], logs=tmp_path, stream=stream)
    with steps.step("first"):
        pass
    with steps.step("second"):
        pass
    said = [line.rpartition(" (total")[0] for line in stream.getvalue().splitlines()]
    assert said[0] == "[1/2] first: started, next: second"
    assert said[1].startswith("[1/2] first: done in ")
    assert said[2] == "[2/2] second: started, last step"
    assert list(steps.timings) == ["first", "second"]


def test_a_failure_shows_the_end_of_the_log(tmp_path: Path) -> None:
    stream = io.StringIO()
    steps = Steps(["only"], logs=tmp_path, stream=stream)
    with pytest.raises(CommandFailed), steps.step("only"):
        raise CommandFailed(("make",), 2, "\n".join(f"line {n}" for n in range(100)))
    text = stream.getvalue()
    assert "[1/1] only: FAILED" in text
    assert "    line 99\n" in text
    assert "line 10\n" not in text
    assert str(tmp_path / "only.log") in text
    assert (tmp_path / "only.log").read_text().startswith("line 0\n")


def failed(error: KangarooError, logs: Path) -> str:
    """What is printed when a step fails so."""
    stream = io.StringIO()
    with pytest.raises(type(error)), Steps(["only"], logs=logs, stream=stream).step("only"):
        raise error
    return stream.getvalue()


def test_a_failure_shows_its_own_log_and_not_an_earlier_ones(tmp_path: Path) -> None:
    failed(CommandFailed(("make",), 2, "mirror unreachable\n"), tmp_path)
    text = failed(CommandFailed(("make",), 2, "no space left\n"), tmp_path)
    assert "no space left" in text
    assert "mirror unreachable" not in text
    assert (tmp_path / "only.log").read_text() == "no space left\n"


def test_an_error_without_a_log_leaves_none_of_an_earlier_one(tmp_path: Path) -> None:
    failed(CommandFailed(("make",), 2, "mirror unreachable\n"), tmp_path)
    error = DeadlineExceeded("make: not done within 5 s")
    text = failed(error, tmp_path)
    assert "mirror unreachable" not in text
    assert "only.log" not in text
    assert not (tmp_path / "only.log").exists()
    assert not error.shown


def test_what_a_command_said_of_its_failure_is_shown_last(tmp_path: Path) -> None:
    chatter = "".join(f"line {n}\n" for n in range(100))
    text = failed(CommandFailed(("apt-get",), 100, "E: the real error\n", chatter), tmp_path)
    assert "    line 99\n    E: the real error\n" in text


def test_an_error_of_many_lines_is_shown_and_kept(tmp_path: Path) -> None:
    error = DeadlineExceeded("make: not done within 5 s: one\ntwo")
    assert "    two\n" in failed(error, tmp_path)
    assert "two" in (tmp_path / "only.log").read_text()
    assert (error.shown, error.brief) == (True, "make: not done within 5 s: one")


def test_a_log_that_cannot_be_kept_does_not_hide_the_error(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    text = failed(CommandFailed(("make",), 2, "no space left\n"), tmp_path / "logs")
    assert "    no space left\n" in text
    assert "not all of it could be kept" in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_without_rich_says_what_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    stream = Terminal()
    with Steps(["only"], logs=tmp_path, stream=stream).step("only"):
        pass
    assert stream.getvalue().startswith("[1/1] only: started")


def test_a_step_that_was_not_announced_is_counted(tmp_path: Path) -> None:
    stream = io.StringIO()
    with Steps(["a"], logs=tmp_path, stream=stream).step("b"):
        pass
    assert stream.getvalue().startswith("[2/2] b: started, last step")


def test_lines_say_whose_steps_they_are(tmp_path: Path) -> None:
    stream = io.StringIO()
    with Steps(["a"], logs=tmp_path, stream=stream, of="second").step("a"):
        pass
    assert all(line.startswith("second [1/1] a: ") for line in stream.getvalue().splitlines())


@pytest.mark.parametrize(
    ("version", "good"),
    [
        ("go version go1.26.8 linux/amd64", True),
        ("go version go1.21 linux/amd64", True),
        ("go version go1.19.8 linux/amd64", False),
        ("gcc 12", False),
    ],
)
def test_which_go_can_fetch_a_newer_one(version: str, good: bool) -> None:
    assert gobuild.suitable(version) is good
