"""The lab of the node tier: the one that is up, or one for this session.

With `--numprocesses` each worker of pytest-xdist has a lab of its own, and takes whole files: what
a file's tests share is brought up once. Labs share nothing but the machine.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.node import Node

# Those that run for many minutes, the longest first, so that the others fill the end.
_LONG = (
    "provisioner",
    "test_passthrough",
    "test_crash",
    "test_passthrough_nas_away",
    "test_races",
    "test_passthrough_services",
    "test_bad_input",
    "test_mission",
    "test_passthrough_subpath",
    "test_passthrough_unreachable",
    "test_runtime",
    "test_provisioning",
    "test_csi_faults",
    "test_csi_sanity",
)
# What the fixture `provisioner` serves.
_PROVISIONER = ("test_storage_class", "test_snapshots")

_LAB = pytest.StashKey["Lab"]()


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab that is up, for this session alone. One that was up stays up, with this checkout's code
    put on its nodes, and without what a session that was killed changed; one that this session
    brought up goes down, and its teardown proves that nothing stayed behind. `KEEP=1` leaves it.
    """
    from kangaroo_lab.lab import Lab  # the other tiers do without

    lab = Lab.open(_directory())
    with lab.in_use():
        with _progress_shown(request):
            ours = lab.up()
            if not ours:
                lab.nas.restart()
                lab.deploy()
        request.config.stash[_LAB] = lab
        yield lab
        if ours and not os.environ.get("KEEP"):
            lab.down()


@pytest.fixture(scope="session")
def provisioner(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Lab]:
    """The lab with the CSI project's sidecars, which take minutes to build and to start: from the
    first test that needs them to the end.
    """
    from tests.node import sidecars

    from kangaroo_lab import artefacts

    with _progress_shown(request):
        lab.build(artefacts.for_provisioning())
    with sidecars.deployed(lab):
        yield lab


@pytest.fixture(scope="module")
def second_node(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Node]:
    """A second node, for pods that name it: where the lab has none it is added, and taken away at
    the end, for it slows the others. Nothing is scheduled there.
    """
    with _progress_shown(request):
        added = lab.up(2)
    try:
        node = lab.nodes["node2"]
        lab.kubectl("cordon", node.name)
        yield node
    finally:
        if added:
            lab.remove_node()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is for `make soak` is left out elsewhere, unless its file is named. For workers: tests
    of a file, and those that share the sidecars, go to one of them; the longest first.
    """
    if not os.environ.get("KANGAROO_SOAK"):
        named = {Path(argument.partition("::")[0]).resolve() for argument in config.args}
        marked = (item for item in items if item.get_closest_marker("soak"))
        left_out = [item for item in marked if item.path not in named]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Of xdist's own ways to group tests, one goes by class and the other by a suffix of a test's
    name, which pytest-xdist 3.8 cannot give with pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile:
    return _ByFile(config, log)


def _group(nodeid: str) -> str:
    stem = Path(nodeid.partition("::")[0]).stem
    return "provisioner" if stem in _PROVISIONER else stem


def _turn(item: pytest.Item) -> int:
    group = _group(item.nodeid)
    return _LONG.index(group) if group in _LONG else len(_LONG)


def _directory() -> Path:
    """Where this process's lab is. The first worker's is the default, and may be up already."""
    from kangaroo_lab.state import default_directory

    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = default_directory()
    return first if number == 0 else first.with_name(f"{first.name}-{number + 1}")


@contextlib.contextmanager
def _progress_shown(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the block says of its progress is seen. A worker says it in lines: its standard error is
    the terminal, too, but not its alone.
    """
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled(), contextlib.ExitStack() as stack:
        if "PYTEST_XDIST_WORKER" in os.environ:
            lines = stack.enter_context(_Lines(os.fdopen(os.dup(2), "wb")))
            stack.enter_context(contextlib.redirect_stderr(lines))
        yield


class _Lines(io.TextIOWrapper):
    def isatty(self) -> bool:
        return False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    lab = item.config.stash.get(_LAB, None)
    if lab is not None and call.excinfo is not None and not report.skipped:
        kept = f"journals and logs of sandboxes: {lab.save_journals(item.name)}"
        report.sections.append(("lab", f"{kept}\nlogs of all other parts: {lab.logs}"))
    return report
