"""The tiers: a test's directory is its marker, and CI accepts no missing capability."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
TIERS = ("unit", "protocol", "host", "node")
# Seconds that one test of a tier may take, unless it says otherwise.
TIMEOUT_S = {"unit": 20, "protocol": 60, "host": 300, "node": 1800}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0]
        if tier not in TIERS:
            continue
        item.add_marker(getattr(pytest.mark, tier))
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S[tier]))


def pytest_runtest_setup(item: pytest.Item) -> None:
    needs_root = item.get_closest_marker("host") or item.get_closest_marker("node")
    if needs_root and os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """A skip says that the machine lacks something; in CI that is a failure."""
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI accepts no skip: {report.longrepr}"
    return report
