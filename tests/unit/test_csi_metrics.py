"""What the driver exports for volumes, from a mount table and counters as the kernel shows them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kangaroo import __version__
from kangaroo.csi.config import Config
from kangaroo.csi.metrics import Metrics
from kangaroo.wire.gen import csi_pb2 as csi

Samples = dict[tuple[str, ...], float]

COUNTERS = """\
device {source} mounted on {path} with fstype nfs4 statvers=1.1
\tbytes:\t0 0 0 0 500 600 0 0
\txprt:\ttcp 765 1 2 0 0 1300 1299 0 9000 0 12 40 77
\tper-op statistics
\t        READ: 8 10 1 1100 8389632 2 1400 1420 0
\t     GETATTR: 22 22 0 3000 2464 1 18 20 3
\t    SEQUENCE: 5 5 0 0 0 0 7 8 0
\t       RENEW: 2 2 0 0 0 0 1 1 0
\t       WRITE: 0 0 0 0 0 0 0 0 0

"""


class Node:
    """The files that a node's kernel and kubelet have."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mounts = ["1 0 0:1 / / rw - ext4 /dev/vda1 rw"]
        self.counters = ["device /dev/vda1 mounted on / with fstype ext4\n"]
        self.proc = directory / "proc"
        self.proc.mkdir()
        self.config = Config(
            driver_name="nas.test",
            node_id="node-7",
            kubelet_pods_dir=f"{directory}/pods",
            sandboxes_dir=f"{directory}/sandboxes",
        )

    def csi_path(self, pod: str, name: str) -> Path:
        path = self.directory / "pods" / pod / "volumes/kubernetes.io~csi" / name / "mount"
        path.mkdir(parents=True)
        data = {"driverName": "nas.test", "volumeHandle": f"handle-of-{name}"}
        path.with_name("vol_data.json").write_text(json.dumps(data))
        return path

    def mount(self, path: Path, source: str = "192.0.2.1:/csi", device: str = "0:52") -> None:
        number = len(self.mounts) + 1
        self.mounts.append(
            f"{number} 1 {device} / {path} rw - nfs4 {source} rw,vers=4.1,addr=192.0.2.1"
        )
        self.counters.append(COUNTERS.format(source=source, path=path))

    def samples(self) -> Samples:
        for name, text in (
            ("mountinfo", "\n".join(self.mounts) + "\n"),
            ("mountstats", "".join(self.counters)),
        ):
            (self.proc / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        return scrape(Metrics(self.config, proc=self.proc))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def scrape(metrics: Metrics) -> Samples:
    """Samples by name and their labels' values, in the order of the labels' names."""
    text = asyncio.run(metrics.text()).decode()
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *(sample.labels[name] for name in sorted(sample.labels)))
            assert key not in samples, f"twice: {key}"
            samples[key] = sample.value
    return samples


# export, pod_uid, server, superblock, volume, where
VOLUME = ("/csi", "pod-1", "192.0.2.1", "0:52", "pv-1", "node")


def test_what_runs(node: Node) -> None:
    samples = node.samples()
    assert samples["kangaroo_csi_build_info", "nas.test", "node-7", __version__] == 1
    assert samples["process_resident_memory_bytes",] > 1 << 20
    assert samples["kangaroo_csi_scrape_errors_total", "node"] == 0
    assert not [key for key in samples if key[0].startswith("kangaroo_nfs_")]


def test_a_volume_on_the_node(node: Node) -> None:
    node.mount(node.csi_path("pod-1", "pv-1"))
    samples = node.samples()
    assert samples["kangaroo_nfs_mounts", "nas.test", "192.0.2.1", "node"] == 1
    info = ("nas.test", *VOLUME[:4], "4.1", "pv-1", "handle-of-pv-1", "node")
    assert samples["kangaroo_nfs_volume_info", *info] == 1
    assert samples["kangaroo_nfs_read_bytes_total", *VOLUME] == 500
    assert samples["kangaroo_nfs_written_bytes_total", *VOLUME] == 600
    assert samples["kangaroo_nfs_requests_sent_total", *VOLUME] == 1300
    assert samples["kangaroo_nfs_replies_received_total", *VOLUME] == 1299
    assert samples["kangaroo_nfs_connections_total", *VOLUME] == 2

    def of_operation(name: str, operation: str) -> float:
        key = (f"kangaroo_nfs_{name}_total", VOLUME[0], operation, *VOLUME[1:])
        return samples[key]

    assert of_operation("operations", "READ") == 8
    assert of_operation("retransmissions", "READ") == 2
    assert of_operation("major_timeouts", "READ") == 1
    assert of_operation("operation_rtt_seconds", "READ") == 1.4
    assert of_operation("operation_execute_seconds", "READ") == 1.42
    assert of_operation("operation_errors", "GETATTR") == 3
    assert of_operation("operations", "OTHER") == 7
    with pytest.raises(KeyError):
        of_operation("operations", "WRITE")


def test_a_volume_of_another_driver_and_mounts_of_nobody(node: Node) -> None:
    inline = node.directory / "pods/pod-2/volumes/kubernetes.io~nfs/data"
    node.mount(inline, "[fd00::1]:/x")
    node.mount(Path("/home"))
    samples = node.samples()
    assert samples["kangaroo_nfs_mounts", "kubernetes.io/nfs", "fd00::1", "node"] == 1
    assert [key[2:5] for key in samples if key[0] == "kangaroo_nfs_read_bytes_total"] == [
        ("pod-2", "fd00::1", "0:52")
    ]


def test_one_volume_in_two_pods_is_two_series(node: Node) -> None:
    node.mount(node.csi_path("pod-1", "pv-1"))
    node.mount(node.csi_path("pod-2", "pv-1"))
    samples = node.samples()
    assert samples["kangaroo_nfs_mounts", "nas.test", "192.0.2.1", "node"] == 2
    assert len([key for key in samples if key[0] == "kangaroo_nfs_read_bytes_total"]) == 2


def test_a_volume_without_kubelets_file_and_without_counters(node: Node) -> None:
    path = node.csi_path("pod-1", "pv-1")
    path.with_name("vol_data.json").write_text("[]")
    node.mount(path)
    node.counters.pop()
    samples = node.samples()
    assert samples["kangaroo_nfs_mounts", "kubernetes.io/csi", "192.0.2.1", "node"] == 1
    assert ("kangaroo_nfs_read_bytes_total", *VOLUME) not in samples


def test_counters_that_cannot_be_read_are_counted(node: Node) -> None:
    node.mount(node.csi_path("pod-1", "pv-1"))
    node.counters.append(node.counters.pop().replace("READ: 8", "READ: -8"))
    sandbox = node.directory / "sandboxes/s1"
    sandbox.mkdir(parents=True)
    (sandbox / "state.json").write_text('{"volumes": 3}')
    samples = node.samples()
    assert samples["kangaroo_csi_scrape_errors_total", "node"] == 1
    assert samples["kangaroo_csi_scrape_errors_total", "state"] == 1
    assert samples["kangaroo_csi_scrape_errors_total", "guest"] == 0


def test_names_with_quotes_and_line_feeds_stay_in_their_label(node: Node) -> None:
    node.mount(node.csi_path("pod-1", "pv-1"), source='192.0.2.1:/a"b\\012c')
    assert [key[1] for key in node.samples() if key[0] == "kangaroo_nfs_read_bytes_total"] == [
        '/a"b\nc'
    ]


def test_names_that_are_no_text_do_no_harm(node: Node) -> None:
    node.mount(node.csi_path("pod-1", "pv-1"), source="192.0.2.1:/\udcff")
    assert [key[1] for key in node.samples() if key[0] == "kangaroo_nfs_read_bytes_total"] == ["/?"]


def test_what_kubelet_was_told_of_a_volume(node: Node) -> None:
    paths = [node.csi_path("pod-1", f"pv-{number}") for number in range(4)]
    for path in paths:
        node.mount(path)
    node.samples()
    metrics = Metrics(node.config, proc=node.proc)

    def told(path: Path | str, code: str, *, abnormal: bool = False) -> None:
        request = csi.NodeGetVolumeStatsRequest(volume_path=str(path))
        condition = csi.VolumeCondition(abnormal=abnormal)
        response = csi.NodeGetVolumeStatsResponse(volume_condition=condition)
        metrics.started("NodeGetVolumeStats")
        metrics.ended("NodeGetVolumeStats", code, 0.1, request, response if code == "OK" else None)

    alias = node.config.kubelet_pods_dir + "-alias"  # /var/lib/kubelet is a link on some nodes
    Path(alias).symlink_to(node.config.kubelet_pods_dir)
    told("/nobody's", "OK", abnormal=True)
    told("no path\0", "OK", abnormal=True)
    told(str(paths[2]).replace(node.config.kubelet_pods_dir, alias), "OK")
    told(paths[0], "UNAVAILABLE")
    told(paths[0], "OK")
    told(paths[1], "OK", abnormal=True)
    told(str(paths[2]).replace(node.config.kubelet_pods_dir, alias), "UNAVAILABLE")
    told(paths[3], "INVALID_ARGUMENT")
    samples = scrape(metrics)
    assert {
        key[5]: samples[key] for key in samples if key[0] == "kangaroo_nfs_volume_abnormal"
    } == {
        "pv-0": 0,
        "pv-1": 1,
        "pv-2": 1,
    }
