"""What makes a lab count as up, and what its verbs do about a lab that is not whole."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kangaroo.errors import FailedPrecondition
from kangaroo_lab import artefacts, daemon, verbs
from kangaroo_lab.controlplane import ControlPlane
from kangaroo_lab.daemon import Daemon
from kangaroo_lab.lab import Lab
from kangaroo_lab.nas import Nas
from kangaroo_lab.network import Network
from kangaroo_lab.node import Completed
from kangaroo_lab.state import Shape, Store

PARTS = (*Nas.PARTS, *ControlPlane.PARTS, "node1")


@dataclass(frozen=True)
class FakeNas:
    store: Store
    process: Daemon
    address = "10.88.0.2"
    root = Path("/export")

    def stop(self) -> None:
        for name in Nas.PARTS:
            self.store.forget_daemon(name)

    def start(self) -> None:
        for name in Nas.PARTS:
            self.store.remember_daemon(replace(self.process, name=name))


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Daemon]:
    one = daemon.start("one", ["sleep", "100"], log=tmp_path / "log")
    yield one
    daemon.stop(one, timeout_s=0)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: Daemon) -> Lab:
    """One of a node, whole. Nothing of it is real: one process stands for all of its parts."""

    def never(*_: object) -> None:
        raise AssertionError("a unit test makes and removes no lab")

    for name in ("_up", "_down", "_boot"):
        monkeypatch.setattr(Lab, name, never)
    monkeypatch.setenv("KANGAROO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Lab, "nas", property(lambda lab: FakeNas(lab.store, process)))
    nodes = Completed("node1 Ready\n", "", 0)
    monkeypatch.setattr(Lab, "kubectl", lambda *_, **__: nodes)
    lab = Lab.open(tmp_path)
    lab.store.shape = Shape(memory_mib=1024, network=Network(name="kangaroo-unit"))
    lab.store.complete = True
    for name in PARTS:
        lab.store.remember_daemon(replace(process, name=name))
    return lab


def test_a_lab_whose_nas_was_stopped_does_not_run(lab: Lab) -> None:
    assert lab.running()
    lab.nas.stop()
    assert not lab.running()
    assert lab.absent() == ["rpcbind", "ganesha"]
    assert lab.usable()
    assert not lab.ended()


def dies(lab: Lab, name: str) -> None:
    lab.store.remember_daemon(Daemon(name, 2**22 + 1, 0, f"/logs/{name}.log"))


@pytest.mark.parametrize("part", Nas.PARTS)
def test_up_starts_a_nas_that_was_stopped_or_died(lab: Lab, part: str) -> None:
    dies(lab, part)
    assert not lab.running()
    assert lab.up() is False
    assert lab.running()
    lab.nas.stop()
    assert lab.up() is False
    assert lab.running()
    assert not lab.began


def test_up_refuses_a_lab_without_another_part_and_names_it(lab: Lab) -> None:
    dies(lab, "kube-scheduler")
    with pytest.raises(FailedPrecondition, match="without kube-scheduler"):
        lab.up()
    assert not lab.began


def test_up_refuses_another_memory_than_the_nodes_have(lab: Lab) -> None:
    assert lab.up(memory_mib=1024) is False
    with pytest.raises(FailedPrecondition, match="1024 MiB"):
        lab.up(memory_mib=2048)


def test_status_lists_what_should_be_there(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert verbs._status(lab, argparse.Namespace()) == 0
    lab.nas.stop()
    capsys.readouterr()
    assert verbs._status(lab, argparse.Namespace()) == 1
    said = capsys.readouterr().out
    states = {line.split()[0]: line.split()[1] for line in said.splitlines() if line[:2] == "  "}
    assert states == {
        name: "ENDED" if name in Nas.PARTS else "runs," for name in (*Nas.PARTS, *PARTS)
    }
    assert "node1 Ready" in said
    assert "kangaroo lab up" in said


def test_a_node_boots_from_the_root_that_the_lab_came_up_with(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rebuilt() -> Path:
        raise AssertionError("a recipe that changed meanwhile is not for this disk")

    class FakeNode:
        root: object = None

        def boot(self, *, root: Path, **_: object) -> Iterator[Daemon]:
            self.root = root
            yield Daemon("node1", 1, 0, "/log")

    monkeypatch.setattr(artefacts, "node_root", rebuilt)
    node = FakeNode()
    lab._start(node, Shape(node_root="/cache/node-root-1"))  # type: ignore[arg-type]
    assert node.root == Path("/cache/node-root-1")


def test_a_lab_is_one_session_s_at_a_time(lab: Lab) -> None:
    with lab.in_use():
        other = Lab.open(lab.directory)
        with pytest.raises(FailedPrecondition, match=r"are using.*KANGAROO_LAB") as refused:
            other.in_use().__enter__()
        assert str(lab.directory) in str(refused.value)
        assert other.up() is False  # a single command is not kept out
    with other.in_use():
        pass
