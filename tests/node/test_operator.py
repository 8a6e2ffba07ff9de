"""What an operator sees of volumes that the node and that a guest have mounted: the driver's
metrics, `kangaroo volumes` and `kangaroo sandboxes`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.node import pods, waiting
from tests.node.csi_driver import UNIT
from tests.node.pods import PASSTHROUGH, container, pod

from kangaroo.linux import vsock

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

# A reading that is younger is given again.
FRESH_S = 10
SWITCH_S = 180  # the driver starts again; its node may be emulated
CONFIG = "/etc/kangaroo/csi.toml"
URL = "http://127.0.0.1:9809/metrics"
FETCH = f"import urllib.request as u; print(u.urlopen('{URL}', timeout=30).read().decode())"
SWITCH_ON = f"""
set -e
mkdir -p {CONFIG.rpartition("/")[0]}
test ! -e {CONFIG} || cp {CONFIG} {CONFIG}.before
echo 'metrics_address = "127.0.0.1:9809"' >> {CONFIG}
systemctl restart {UNIT}
"""
SWITCH_OFF = f"""
set -e
rm {CONFIG}
test ! -e {CONFIG}.before || mv {CONFIG}.before {CONFIG}
systemctl restart {UNIT}
"""


@pytest.fixture(scope="module")
def space(lab: Lab) -> Iterator[pods.Space]:
    where = lab.nas.root / "csi" / "operator"
    where.mkdir(exist_ok=True)
    where.chmod(0o777)
    node = lab.nodes["node1"]
    node.exec(["sh", "-c", SWITCH_ON], timeout_s=SWITCH_S)
    try:
        with pods.opened(lab, "operator") as space:
            data = {"/data": "nas"}
            volumes = [pods.claim("nas")]
            space.apply(
                *space.nas("nas", path="/csi/operator", vers="4.1", options=None),
                pod(
                    "guest", container("one", mounts=data), volumes=volumes, annotations=PASSTHROUGH
                ),
                pod("plain", container("one", mounts=data), volumes=volumes, runtime=None),
            )
            waiting.ready(space, "guest", "plain")
            yield space
    finally:
        node.exec(["sh", "-c", SWITCH_OFF], timeout_s=SWITCH_S)


def scrape(space: pods.Space, pod: str) -> dict[tuple[str, str, str], float]:
    """The pod's samples by name, `where` and operation."""
    text = space.node.exec(["python3", "-c", FETCH], timeout_s=60).stdout
    uid = space.uid(pod)
    return {
        (sample.name, sample.labels["where"], sample.labels.get("operation", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("pod_uid") == uid and sample.labels["volume"] == f"{space.name}-nas"
    }


@pytest.mark.parametrize(("name", "where"), [("guest", "guest"), ("plain", "node")])
def test_what_a_pod_does_is_counted_where_it_is_mounted(
    space: pods.Space, name: str, where: str
) -> None:
    key = ("kangaroo_nfs_operations_total", where, "WRITE")
    before = scrape(space, name)
    space.say(name, f"dd if=/dev/zero of=/data/{name} bs=64k count=16 conv=fsync 2>&1")
    after = scrape(space, name)
    deadline = time.monotonic() + FRESH_S
    while after.get(key, 0) == before.get(key, 0) and time.monotonic() < deadline:
        after = scrape(space, name)
    assert {key[1] for key in after} == {where}
    assert after[key] > before.get(key, 0)
    written = ("kangaroo_nfs_written_bytes_total", where, "")
    assert after[written] - before[written] >= 1 << 20
    assert after["kangaroo_nfs_operation_rtt_seconds_total", where, "WRITE"] > 0
    assert after["kangaroo_nfs_volume_info", where, ""] == 1
    if where == "guest":
        assert after["kangaroo_nfs_volume_answers", where, ""] == 1


def listed(space: pods.Space, verb: str) -> dict[str, Any]:
    """What a verb lists, by the pod's name."""
    out = space.node.exec(["/opt/kangaroo/bin/kangaroo", verb, "--json"], timeout_s=60).stdout
    return {
        one["pod"]["name"]: one for one in json.loads(out) if one["pod"]["namespace"] == space.name
    }


def test_volumes_are_listed_with_where_they_are_mounted(space: pods.Space) -> None:
    found = listed(space, "volumes")
    assert {name: one["where"] for name, one in found.items()} == {
        "guest": "guest",
        "plain": "node",
    }
    for one in found.values():
        assert one["problem"] is None
        assert (one["server"], one["export"]) == (space.lab.nas.address, "/csi/operator")
        assert "vers=4.1" in one["options"]
        assert one["statistics"]["operations"] > 0
    assert found["guest"]["statistics"]["total_bytes"] > 0
    table = space.node.exec(["/opt/kangaroo/bin/kangaroo", "volumes"], timeout_s=60).stdout
    assert f"{space.name}/guest" in table


def test_sandboxes_are_listed_with_their_processes(space: pods.Space) -> None:
    (only,) = listed(space, "sandboxes").values()
    assert only["pod"]["name"] == "guest"
    assert only["sandbox"] == space.sandbox(space.uid("guest"))
    assert only["problem"] is None
    for pid in (only[part]["pid"] for part in ("shim", "qemu", "virtiofsd")):
        space.node.exec(["test", "-d", f"/proc/{pid}"])
    # The pod asks for nothing: when the node's memory ends, it goes first, as with runc.
    for pid in (only["qemu"]["pid"], only["virtiofsd"]["pid"]):
        assert space.node.exec(["cat", f"/proc/{pid}/oom_score_adj"]).stdout == "1000\n"
    user = int(space.node.exec(["stat", "--format=%u", f"/proc/{only['qemu']['pid']}"]).stdout)
    assert vsock.FIRST_GUEST_CID <= user <= vsock.LAST_GUEST_CID, "not one of the sandbox's own"
    assert only["memory_bytes"] > 16 << 20
