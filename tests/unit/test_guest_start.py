"""Imports from the agent's bundle."""

from __future__ import annotations

import importlib
import marshal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kangaroo.agent.start import Bundle

SOURCES = {
    "bundled": "from bundled.part import VALUE\n",
    "bundled.part": "VALUE = 7\n",
}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bundle of SOURCES is in force; the directory stands for the package's in the guest."""
    modules = {
        name: (
            str(tmp_path) if name == "bundled" else "",
            marshal.dumps(compile(source, f"<{name}>", "exec")),
        )
        for name, source in SOURCES.items()
    }
    monkeypatch.setattr(sys, "meta_path", [Bundle(modules), *sys.meta_path])
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "bundled"]:
        del sys.modules[name]


@pytest.mark.usefixtures("directory")
def test_a_package_and_its_module_come_from_the_bundle() -> None:
    assert importlib.import_module("bundled").VALUE == 7
    assert not hasattr(importlib.import_module("bundled.part"), "__file__")


def test_what_is_not_in_the_bundle_comes_from_the_package_s_directory(directory: Path) -> None:
    (directory / "later.py").write_text("WHERE = __file__\n")
    later = importlib.import_module("bundled.later")
    assert str(directory / "later.py") == later.WHERE
    with pytest.raises(ModuleNotFoundError, match=r"bundled\.absent"):
        importlib.import_module("bundled.absent")
