"""The invariants of a node at rest: they pass on a node where all is well, and name what is not."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest
from tests.node import invariants, probe
from tests.node.invariants import Pod

DIRECT, PLAIN, GONE = (f"{n}0000000-0000-4000-8000-00000000000{n}" for n in (1, 2, 9))
SANDBOX, CONTAINER, PAUSE, RUNC, DEAD = (digit * 64 for digit in "abcde")
PODS = [
    Pod(DIRECT, "x/direct", ready=True, sandboxed=True, passthrough=True, claims=1),
    Pod(PLAIN, "x/plain", ready=True, sandboxed=False, passthrough=True, claims=1),
]
SHIM = ["/usr/bin/python3", "-IS", "/usr/local/bin/containerd-shim-kangaroo-v2"]
QEMU = ["/usr/bin/qemu-system-x86_64", "-name", f"kangaroo-{SANDBOX}"]
FILES = ["/usr/libexec/virtiofsd", f"--shared-dir=/run/kangaroo/sandboxes/{SANDBOX}/shared"]


def volume(uid: str) -> str:
    return f"{probe.KUBELET_PODS}/{uid}/volumes/kubernetes.io~csi/pv/mount"


def mount(point: str, fstype: str = "tmpfs", source: str = "kangaroo-nas") -> dict[str, Any]:
    return {"point": point, "fstype": fstype, "source": source, "holder": 1}


def process(pid: int, *args: str, group: str = "/system.slice") -> dict[str, Any]:
    return {"pid": pid, "args": list(args), "cgroup": group}


def bundle(own: str, sandbox: str, pod: str, **rest: Any) -> dict[str, Any]:
    kind = "sandbox" if own == sandbox else "container"
    whole = {"id": own, "sandbox": sandbox, "pod": pod, "kind": kind, "made_ns": 1}
    return {**whole, "namespace": f"cni-{sandbox[0]}", "address": f"/s/{sandbox[0]}", **rest}


def healthy() -> dict[str, Any]:
    group = f"/kubepods.slice/kubepods-pod{DIRECT.replace('-', '_')}.slice"
    return {
        "bundles": [
            bundle(SANDBOX, SANDBOX, DIRECT),
            bundle(CONTAINER, SANDBOX, DIRECT),
            bundle(PAUSE, PAUSE, PLAIN),
            bundle(RUNC, PAUSE, PLAIN),
        ],
        "processes": [
            process(1, "/sbin/init"),
            process(10, *SHIM, "-namespace", "k8s.io", "-id", SANDBOX, "daemon"),
            process(11, *QEMU, group=f"{group}/cri-containerd-{SANDBOX}.scope"),
            process(12, *FILES, group=f"{group}/cri-containerd-{SANDBOX}.scope"),
            process(13, "/usr/bin/containerd-shim-runc-v2", "-id", PAUSE, "-address", "/x"),
            process(14, "sh", group=f"/kubepods.slice/cri-containerd-{RUNC}.scope"),
        ],
        "mounts": [
            mount("/", "ext4", "/dev/vda"),
            mount(volume(DIRECT)),
            mount(volume(PLAIN), "nfs4", "10.0.0.1:/csi"),
            {**mount("/data", "nfs4", "10.0.0.1:/csi"), "holder": 14},
            mount(f"/run/kangaroo/sandboxes/{SANDBOX}/shared/{CONTAINER}/rootfs", "overlay"),
        ],
        "cgroups": ["/sys/fs/cgroup/system.slice", f"{group}/cri-containerd-{SANDBOX}.scope"],
        "namespaces": ["cni-a", "cni-c"],
        "interfaces": {"": ["lo", "eth0"], "cni-a": ["lo", "eth0", "kangaroo0"], "cni-c": ["lo"]},
        "sockets": ["/s/c"],
        "runtime_files": ["boot-0.lock", "csi", "sandboxes"],
        "sandboxes": [SANDBOX],
        "pod_directories": [DIRECT, PLAIN],
        "cni_results": [{"sandbox": SANDBOX, "namespace": "cni-a"}],
        "leases": {"10.1.0.2": SANDBOX, "10.1.0.3": PAUSE},
    }


def with_more(kind: str, *more: Any) -> dict[str, Any]:
    census = copy.deepcopy(healthy())
    if isinstance(census[kind], dict):
        census[kind].update(*more)
    else:
        census[kind] += more
    return census


def without(kind: str, unwanted: Any) -> dict[str, Any]:
    census = copy.deepcopy(healthy())
    census[kind] = [each for each in census[kind] if not unwanted(each)]
    return census


def kinds(census: dict[str, Any], pods: list[Pod] = PODS) -> set[str]:
    return {thing.kind for thing in invariants.leftovers(census, pods)}


def test_nothing_is_wrong_where_all_is_well() -> None:
    assert invariants.leftovers(healthy(), PODS) == []
    assert invariants.missing(healthy(), PODS) == []


@pytest.mark.parametrize(
    ("where", "what", "kind"),
    [
        ("processes", process(20, *QEMU[:2], f"kangaroo-{DEAD}"), "process"),
        ("processes", process(20, *SHIM, "-id", DEAD, "delete"), "process"),
        ("processes", process(20, "x", group=f"/y/cri-containerd-{DEAD}.scope"), "process"),
        ("processes", process(20, "umount", volume(GONE)), "process"),
        ("mounts", mount(volume(GONE)), "mount"),
        ("mounts", mount(f"/run/kangaroo/sandboxes/{DEAD}/shared", "ext4"), "mount"),
        ("mounts", mount("/anywhere", "nfs", "10.0.0.1:/csi"), "mount"),
        ("mounts", {**mount(volume(GONE), "nfs", "10.0.0.1:/csi"), "holder": 1}, "mount"),
        ("cgroups", f"/x/kubepods-besteffort-pod{GONE.replace('-', '_')}.slice", "cgroup"),
        ("cgroups", f"/x/kubepods-pod{DIRECT}.slice/cri-containerd-{DEAD}.scope", "cgroup"),
        ("namespaces", "cni-nobodys", "network namespace"),
        ("interfaces", {"": ["lo", "kangaroo0"]}, "tap"),
        ("interfaces", {"cni-nobodys": ["kangaroo0"]}, "tap"),
        ("sockets", "/s/nobodys", "socket"),
        ("sandboxes", DEAD, "state"),
        ("runtime_files", "forgotten", "state"),
        ("pod_directories", GONE, "pod directory"),
        ("leases", {"10.1.0.9": DEAD}, "address"),
        ("bundles", bundle(DEAD, DEAD, GONE), "bundle"),
        ("bundles", bundle(DEAD, DEAD, DIRECT, made_ns=0), "bundle"),
    ],
)
def test_what_nobody_owns_is_named(where: str, what: Any, kind: str) -> None:
    assert kinds(with_more(where, what)) == {kind}


def test_a_shim_of_runc_that_containerd_forgot_is_containerds() -> None:
    """With its socket, whose name is a hash of what the shim was told. Another socket is not."""
    told = ("-namespace", "k8s.io", "-id", DEAD, "-address", "/x")
    census = with_more("processes", process(20, "/usr/bin/containerd-shim-runc-v2", *told))
    name = hashlib.sha256(f"/x/k8s.io/{DEAD}".encode()).hexdigest()
    census["sockets"].append(f"/run/containerd/s/{name}")
    assert kinds(census) == set()
    census["sockets"].append("/run/containerd/s/another")
    assert kinds(census) == {"socket"}


def test_all_of_a_pod_is_left_when_the_api_server_has_it_no_more() -> None:
    assert kinds(healthy(), PODS[1:]) == {
        "process",
        "mount",
        "cgroup",
        "network namespace",
        "tap",
        "bundle",
        "state",
        "pod directory",
        "address",
    }


def test_all_of_a_sandbox_is_left_when_its_shim_is_dead() -> None:
    census = without("processes", lambda one: one["pid"] == 10)
    assert {"process", "state", "tap", "bundle"} <= kinds(census)
    assert "x/direct runs in no sandbox" in " ".join(invariants.missing(census, PODS))


@pytest.mark.parametrize(
    ("census", "lack"),
    [
        (without("processes", lambda one: one["pid"] == 11), "has no qemu"),
        (without("processes", lambda one: one["pid"] == 12), "has no virtiofsd"),
        (without("sandboxes", lambda one: True), "has no state"),
        (without("namespaces", lambda one: one == "cni-a"), "has no network namespace"),
        (with_more("interfaces", {"cni-a": ["lo"]}), "has 0 taps"),
        (without("mounts", lambda one: DIRECT in one["point"]), "has 0 placeholders"),
        (with_more("mounts", mount(volume(DIRECT))), "has 2 placeholders"),
        (with_more("mounts", mount(volume(DIRECT), "nfs")), "1 placeholders and 1 NFS"),
        (
            with_more("mounts", mount(f"{probe.KUBELET_PODS}/{DIRECT}/volume-subpaths/x", "nfs")),
            "the node has an NFS mount",
        ),
        (without("mounts", lambda one: PLAIN in one["point"]), "0 placeholders and 0 NFS"),
    ],
)
def test_what_a_ready_pod_lacks_is_named(census: dict[str, Any], lack: str) -> None:
    (found,) = [each for each in invariants.missing(census, PODS) if lack in each]
    assert found.startswith("pod x/")


def test_a_pod_that_is_not_ready_lacks_nothing() -> None:
    resting = [Pod(one.uid, one.name, False, True, True, 1) for one in PODS]
    assert invariants.missing({**healthy(), "mounts": [], "bundles": []}, resting) == []


def test_pods_are_read_from_the_listing() -> None:
    item = {
        "metadata": {
            "uid": DIRECT,
            "namespace": "x",
            "name": "direct",
            "annotations": {"storage.alibabacloud.com/enable_nas_passthrough": "true"},
        },
        "spec": {
            "nodeName": "node1",
            "runtimeClassName": "runv",
            "volumes": [{"persistentVolumeClaim": {"claimName": "nas"}}, {"emptyDir": {}}],
        },
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    listing = json.dumps({"items": [item, {**item, "spec": {"nodeName": "node2"}}]})
    assert invariants.pods_of(listing, "node1") == PODS[:1]
    item["metadata"]["deletionTimestamp"] = "now"  # type: ignore[index]
    assert not invariants.pods_of(json.dumps({"items": [item]}), "node1")[0].ready
