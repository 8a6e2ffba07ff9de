"""The lab of the node tier: the one that is up, or one for this session."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kangaroo.errors import KangarooError

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

_LAB = pytest.StashKey["Lab"]()
_JOURNAL = ("journalctl", "--boot", "--no-pager", "--lines=4000", "--output=short-monotonic")


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab that is up. One that was up stays up, with this checkout's code put on its nodes; one
    that this session brought up goes down, and its teardown proves that nothing stayed behind.
    `KEEP=1` leaves it.
    """
    from kangaroo_lab.lab import Lab  # the other tiers do without

    lab = Lab.open()
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        ours = lab.up()
        if not ours:
            lab.deploy()
    request.config.stash[_LAB] = lab
    yield lab
    if ours and not os.environ.get("KEEP"):
        lab.down()


@pytest.fixture(scope="session")
def provisioner(lab: Lab) -> Iterator[Lab]:
    """The lab with the CSI project's sidecars, which take minutes to start: from the first test
    that needs them to the end.
    """
    from tests.node import sidecars

    with sidecars.deployed(lab):
        yield lab


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    lab = item.config.stash.get(_LAB, None)
    if lab is not None and call.excinfo is not None and not report.skipped:
        report.sections.append(("lab", f"logs of all parts: {_save_journals(lab, item)}"))
    return report


def _save_journals(lab: Lab, item: pytest.Item) -> Path:
    """Keep the nodes' journals (kernel, kubelet, containerd, driver) beside the lab's own logs."""
    for name, node in lab.nodes.items():
        target = lab.logs / "failures" / f"{item.name}-{name}.log"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.write_text(node.exec(_JOURNAL, timeout_s=60, check=False).stdout)
        except (KangarooError, OSError) as error:
            target.write_text(f"the node's journal could not be read: {error}\n")
    return lab.logs
