"""The CSI project's own conformance suite against the driver on a real NAS: with KANGAROO_SOAK=1
whole, else without what takes half of its time, the tests of snapshots.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.node.csi_driver import SOAK, UNIT

from kangaroo_lab import artefacts

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.node import Node

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
ENDPOINT = "unix:///var/lib/kubelet/plugins/nasplugin.csi.alibabacloud.com/csi.sock"
WORK = "/var/tmp/csi-sanity"  # /run takes no programs
SUITE_S = 1800
# Shares of other tests, which are gone by now: nfs-ganesha may give such a one out as stale for
# minutes, and one that does not answer fails a listing.
FORGET = f"systemctl stop {UNIT}; rm --force /run/kangaroo/csi/shares.json; systemctl start {UNIT}"
SKIPPED = () if SOAK else ("--ginkgo.skip=Snapshot|snapshot",)


@pytest.fixture
def node(lab: Lab) -> Iterator[Node]:
    node = lab.nodes["node1"]
    node.exec(["mkdir", "--parents", WORK])
    node.copy_to(artefacts.csi_sanity(), f"{WORK}/csi-sanity")
    node.exec(["chmod", "+x", f"{WORK}/csi-sanity"])
    node.exec(["sh", "-ec", FORGET])
    yield node
    node.exec(["rm", "--recursive", "--one-file-system", WORK])


def documented() -> Counter[str]:
    """The page's table: why the suite skips, and how many of its tests."""
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    return Counter({reason: int(count) for reason, count in rows})


@pytest.fixture
def share(lab: Lab) -> Iterator[Path]:
    """A new directory beneath /csi, as the NAS itself sees it."""
    path = lab.nas.root / "csi" / f"sanity-{secrets.token_hex(4)}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.mark.timeout(SUITE_S + 120)
def test_the_suite_passes_and_skips_what_is_documented(lab: Lab, node: Node, share: Path) -> None:
    parameters = {"server": lab.nas.address, "path": f"/csi/{share.name}", "onDelete": "delete"}
    node.exec(["sh", "-c", f"cat > {WORK}/parameters.yaml"], input=json.dumps(parameters))
    done = node.exec(
        [
            f"{WORK}/csi-sanity",
            f"--csi.endpoint={ENDPOINT}",
            f"--csi.testvolumeparameters={WORK}/parameters.yaml",
            f"--csi.mountdir={WORK}/mount",
            f"--csi.stagingdir={WORK}/staging",
            f"--ginkgo.json-report={WORK}/report.json",
            "--ginkgo.no-color",
            "--ginkgo.silence-skips",
            *SKIPPED,
        ],
        timeout_s=SUITE_S,
        check=False,
    )
    print(done.stdout)
    (report,) = json.loads(node.exec(["cat", f"{WORK}/report.json"]).stdout)
    tests = [spec for spec in report["SpecReports"] if spec["LeafNodeType"] == "It"]
    states = Counter(spec["State"] for spec in tests)
    assert set(states) == {"passed", "skipped", "pending"}
    assert states["pending"] == 1  # the suite itself has switched one off
    assert done.status == 0
    passed_over = [spec.get("Failure", {}) for spec in tests if spec["State"] == "skipped"]
    skipped = Counter(failure.get("Message", "") for failure in passed_over)
    if SKIPPED:
        assert skipped.pop("") >= 10  # what it was told to skip
        assert skipped <= documented()
    else:
        assert skipped == documented()
        assert f"\n{states['passed']} run and pass" in PAGE.read_text()
    assert [path.name for path in share.rglob("*") if path.is_file()] == []
    own = {".kangaroo", "making", "trash", "volumes"} | (set() if SKIPPED else {"snapshots"})
    assert {path.name for path in share.rglob("*")} == own
