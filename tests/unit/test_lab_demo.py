"""The demo: what a run that fails says, and what the evidence file holds."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from kangaroo.errors import FailedPrecondition, KangarooError
from kangaroo_lab import demo, rollout
from kangaroo_lab.comparison import WORKS, Comparison, Measurement, Way
from kangaroo_lab.demo import Evidence, Options, Section
from kangaroo_lab.demo_verbs import _lab, _verdict
from kangaroo_lab.evidence import Check
from kangaroo_lab.lab import Lab
from kangaroo_lab.node import Completed

HOLDS = Check("the sky is up", holds=True, fact="seen")
FAILS = Check("/data is NFS", holds=False, fact="kangaroo on /data type virtiofs [rw]")


class FakeLab:
    """Answers kubectl by the first word of the command."""

    def __init__(self, answers: Mapping[str, Completed]) -> None:
        self.answers = answers

    def kubectl(self, *arguments: str, **_: object) -> Completed:
        return self.answers[arguments[0]]


def fake(answers: Mapping[str, Completed]) -> Lab:
    return cast("Lab", FakeLab(answers))


def evidence(*checks: Check, complete: bool = True) -> Evidence:
    return Evidence("a node", True, sections=[Section("S", checks)], complete=complete)


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_check_that_does_not_hold_fails_the_demo_and_is_named() -> None:
    output = console()
    assert _verdict(evidence(HOLDS, FAILS), output) == 1
    assert "/data is NFS" in printed(output)
    assert "the sky is up" not in printed(output)


def test_a_demo_in_which_all_holds_succeeds() -> None:
    assert _verdict(evidence(HOLDS), console()) == 0


@pytest.mark.parametrize(
    ("seen", "ok"),
    [
        (evidence(HOLDS), True),
        (evidence(HOLDS, FAILS), False),
        (evidence(HOLDS, complete=False), False),
    ],
)
def test_the_file_says_ok_only_of_a_whole_run_in_which_all_holds(
    tmp_path: Path, seen: Evidence, ok: bool
) -> None:
    path = demo.write(seen, Options(manifest=Path("m"), output=tmp_path / "new"))
    whole = json.loads(path.read_text())
    assert whole["ok"] is ok
    assert whole["sections"][0]["checks"][0] == {
        "claim": "the sky is up",
        "holds": True,
        "fact": "seen",
    }


def test_the_evidence_goes_where_it_was_asked_for(tmp_path: Path) -> None:
    wanted = tmp_path / "deep" / "e.json"
    assert demo.write(evidence(), Options(Path("m"), tmp_path, json=wanted)) == wanted
    assert wanted.exists()


def test_the_comparison_is_kept_as_a_table(tmp_path: Path) -> None:
    seen = [Measurement(work.name, way, 0, 9, 9 << 20, 1.0) for work in WORKS for way in Way]
    compared = Comparison(tuple(seen), "a node", emulated=True)
    path = demo.write_table(compared, tmp_path / "new")
    assert path == tmp_path / "new" / "report.md"
    text = path.read_text()
    assert "Made by `make demo`" in text
    assert f"| {WORKS[0].title} | " in text
    assert "comparison.svg" in text


def test_a_section_prints_facts_as_they_are() -> None:
    output = console()
    demo.print_section(output, Section("S", (FAILS,)))
    assert "DOES NOT HOLD  /data is NFS" in printed(output)
    assert FAILS.fact in printed(output)  # brackets are not markup


def test_a_rollout_that_fails_carries_what_the_cluster_says() -> None:
    lab = fake(
        {
            "wait": Completed("", "error: timed out waiting\n", 1),
            "describe": Completed("Warning  FailedMount  no such export\n", "", 0),
            "get": Completed("LAST SEEN  REASON\n1s  FailedMount\n", "", 0),
        }
    )
    with pytest.raises(rollout.RolloutFailed, match=r"deploy-x did not roll out.*timed out") as it:
        rollout.wait(lab, "deploy-x", app="x")
    assert "no such export" in it.value.diagnosis
    assert "Recent events" in it.value.diagnosis


class FakeSession:
    """A lab that writes down what is asked of it. `up` raises `refusal`, `down` where `stuck`."""

    logs = Path("/lab/logs")

    def __init__(
        self, *, was_up: bool = False, refusal: Exception | None = None, stuck: bool = False
    ) -> None:
        self.was_up, self.refusal, self.stuck = was_up, refusal, stuck
        self.began = False
        self.calls: list[str] = []

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        self.calls.append("in use")
        yield
        self.calls.append("free")

    def up(self) -> bool:
        if self.refusal:
            raise self.refusal
        self.began = not self.was_up
        return self.began

    def running(self) -> bool:
        return "down" not in self.calls and self.refusal is None

    def save_journals(self, name: str) -> Path:
        self.calls.append("journals")
        return self.logs / "failures"

    def down(self) -> bool:
        self.calls.append("down")
        if self.stuck:
            raise FailedPrecondition("the lab left behind: a mount")
        return True


def session(
    monkeypatch: pytest.MonkeyPatch, lab: FakeSession, *, keep: bool = False
) -> AbstractContextManager[Lab]:
    monkeypatch.setattr(Lab, "open", lambda: lab)
    return _lab(keep=keep, console=console())


def test_a_lab_that_was_brought_up_goes_down_and_another_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, others, kept = FakeSession(), FakeSession(was_up=True), FakeSession()
    for lab in (ours, others):
        with session(monkeypatch, lab):
            assert lab.calls == ["in use"]
    with session(monkeypatch, kept, keep=True):
        pass
    assert ours.calls == ["in use", "down", "free"]
    assert others.calls == kept.calls == ["in use", "free"]


def test_a_lab_that_is_half_up_is_not_taken_down(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = FakeSession(refusal=FailedPrecondition("half up"))
    with pytest.raises(FailedPrecondition, match="half up"), session(monkeypatch, lab):
        pass
    assert "down" not in lab.calls


@pytest.mark.parametrize("error", [KangarooError("k"), OSError("o"), AssertionError("a")])
def test_journals_are_kept_before_a_lab_goes_down(
    monkeypatch: pytest.MonkeyPatch, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = FakeSession()
    with pytest.raises(type(error)), session(monkeypatch, lab):
        raise error
    assert lab.calls[1:3] == ["journals", "down"]
    assert "/lab/logs/failures" in capsys.readouterr().err


def test_a_lab_that_does_not_go_down_hides_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = FakeSession(stuck=True)
    with pytest.raises(KangarooError, match="the first"), session(monkeypatch, lab):
        raise KangarooError("the first")
    assert "left behind" in capsys.readouterr().err
    with pytest.raises(FailedPrecondition, match="left behind"), session(monkeypatch, lab):
        pass
