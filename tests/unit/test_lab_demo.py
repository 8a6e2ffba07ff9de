"""The demo: what a run that fails says, and what the evidence file holds."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from kangaroo_lab import demo, rollout
from kangaroo_lab.demo import Evidence, Options, Section
from kangaroo_lab.demo_verbs import _verdict
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
