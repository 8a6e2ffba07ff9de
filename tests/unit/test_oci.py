"""From containerd's specification to the guest's."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kangaroo.errors import InvalidRequest, Unsupported
from kangaroo.runtime import admission, oci
from kangaroo.runtime.oci import Bind, BindPlace, NasBind, SharedBind

SANDBOX = "5a4d"
SHM = f"/run/containerd/io.containerd.grpc.v1.cri/sandboxes/{SANDBOX}/shm"

SPEC: dict[str, Any] = {
    "ociVersion": "1.1.0",
    "hostname": "web-0",
    "process": {
        "args": ["/bin/sh"],
        "user": {"uid": 0, "gid": 0},
        "capabilities": {"bounding": ["CAP_CHOWN"]},
        "apparmorProfile": "cri-containerd.apparmor.d",
        "selinuxLabel": "system_u",
        "oomScoreAdj": 1000,
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
    },
    "root": {"path": "rootfs", "readonly": True},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"]},
        {"destination": "/dev/shm", "type": "bind", "source": SHM, "options": ["rbind", "rw"]},
        {"destination": "/data", "type": "bind", "source": "/v/data", "options": ["rbind", "rw"]},
        {"destination": "/etc/hosts", "type": "", "source": "/v/hosts", "options": ["bind", "ro"]},
    ],
    "hooks": {"prestart": [{"path": "/bin/true"}]},
    "annotations": {"run.oci.handler": "wasm"},
    "linux": {
        "cgroupsPath": "kubepods-pod1.slice:cri-containerd:c1",
        "namespaces": [
            {"type": "pid"},
            {"type": "ipc", "path": "/proc/1/ns/ipc"},
            {"type": "uts", "path": "/proc/1/ns/uts"},
            {"type": "mount"},
            {"type": "network", "path": "/proc/1/ns/net"},
            {"type": "cgroup"},
        ],
        "resources": {
            "devices": [{"allow": False, "access": "rwm"}],
            "memory": {"limit": 1 << 28, "swap": 1 << 28},
            "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0-3", "mems": "0"},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "blockIO": {"weight": 10},
            "unified": {"memory.oom.group": "1"},
        },
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
        "sysctl": {"net.core.somaxconn": "1024"},
        "mountLabel": "system_u",
    },
}


def changed(**linux: Any) -> dict[str, Any]:
    """SPEC with some of `linux` replaced."""
    spec = copy.deepcopy(SPEC)
    spec["linux"].update(linux)
    return spec


def guest(spec: dict[str, Any]) -> dict[str, Any]:
    places: dict[int, BindPlace] = {3: NasBind("nas-1", "sub", create=True), 4: SharedBind(4)}
    return oci.guest_spec(spec, container_id="c1", sandbox_id=SANDBOX, places=places)


def test_binds_are_what_the_node_must_provide() -> None:
    assert oci.binds(SPEC, SANDBOX) == (
        Bind(3, "/v/data", "/data", read_only=False),
        Bind(4, "/v/hosts", "/etc/hosts", read_only=True),
    )


def test_an_empty_dir_on_dev_shm_is_a_bind() -> None:
    spec = copy.deepcopy(SPEC)
    spec["mounts"][2]["source"] = "/var/lib/kubelet/pods/u/volumes/empty/shm"
    assert oci.binds(spec, SANDBOX)[0].destination == "/dev/shm"


@pytest.mark.parametrize("key", ["source", "destination"])
def test_relative_paths_are_refused(key: str) -> None:
    spec = copy.deepcopy(SPEC)
    spec["mounts"][3][key] = "data"
    with pytest.raises(InvalidRequest, match=rf"mounts\[3\]\.{key}"):
        oci.binds(spec, SANDBOX)


def test_the_guest_sees_its_own_paths() -> None:
    mounts = guest(SPEC)["mounts"]
    assert guest(SPEC)["root"] == {"path": "/run/kangaroo/shared/c1/rootfs", "readonly": True}
    assert mounts[:2] == SPEC["mounts"][:2]
    assert mounts[2]["source"] == "/dev/shm"
    assert mounts[3]["source"] == ""
    assert mounts[4] == {
        "destination": "/etc/hosts",
        "type": "bind",
        "source": "/run/kangaroo/shared/volumes/4",
        "options": ["bind", "ro"],
    }


def test_the_nodes_flags_are_added_to_those_of_a_bind() -> None:
    places: dict[int, BindPlace] = {3: SharedBind(3), 4: SharedBind(4, ("ro", "noexec"))}
    mounts = oci.guest_spec(SPEC, container_id="c1", sandbox_id=SANDBOX, places=places)
    assert mounts["mounts"][3]["options"] == ["rbind", "rw"]
    assert mounts["mounts"][4]["options"] == ["bind", "ro", "noexec"]


def test_nas_binds_are_named_to_the_agent() -> None:
    places: dict[int, BindPlace] = {4: SharedBind(4), 3: NasBind("nas-1", "sub", create=True)}
    assert oci.volumes(SPEC, places) == [
        {"destination": "/data", "volume_id": "nas-1", "subpath": "sub", "create": True}
    ]


def test_the_nodes_view_goes_and_the_isolation_stays() -> None:
    result = guest(SPEC)
    assert set(result) == {"ociVersion", "process", "root", "mounts", "linux"}
    assert result["process"] == {
        key: value
        for key, value in SPEC["process"].items()
        if key not in ("apparmorProfile", "selinuxLabel")
    }
    assert result["linux"] == {
        "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}],
        "resources": {
            "devices": [{"allow": False, "access": "rwm"}],
            "memory": {"limit": 1 << 28},
            "cpu": {"shares": 512, "quota": 50000, "period": 100000},
            "unified": {"memory.oom.group": "1"},
        },
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
    }


def test_the_original_is_not_changed() -> None:
    before = copy.deepcopy(SPEC)
    guest(SPEC)["process"]["args"].append("x")
    assert before == SPEC


def test_sysctls_are_those_of_the_pod() -> None:
    given = {"net.ipv4.ping_group_range": "0 1", "net.ipv4.conf.eth0/100.arp_ignore": "1"}
    assert oci.sysctls(changed(sysctl=given)) == given
    assert oci.sysctls({}) == {}


@pytest.mark.parametrize("name", ["kernel", "kernel.x y", "net/../../etc/passwd", "a..b", ""])
def test_what_can_be_no_sysctl_is_named(name: str) -> None:
    with pytest.raises(InvalidRequest, match="sysctl"):
        oci.sysctls(changed(sysctl={name: "1"}))


def without_namespace(kind: str) -> dict[str, Any]:
    return changed(namespaces=[n for n in SPEC["linux"]["namespaces"] if n["type"] != kind])


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (without_namespace("network"), "hostNetwork"),
        (without_namespace("pid"), "hostPID"),
        (without_namespace("ipc"), "hostIPC"),
        (changed(namespaces=[*SPEC["linux"]["namespaces"], {"type": "user"}]), "hostUsers"),
    ],
)
def test_the_nodes_namespaces_are_refused(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(Unsupported, match=field):
        admission.check_sandbox(spec)
    with pytest.raises(Unsupported, match=field):
        admission.check_container(spec)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (changed(devices=[{"path": "/dev/sda", "type": "b"}]), "block device /dev/sda"),
        (changed(resources={"devices": [{"allow": True, "access": "rwm"}]}), "privileged"),
        (
            changed(resources={"hugepageLimits": [{"pageSize": "2MB", "limit": 1 << 21}]}),
            "2MB huge pages",
        ),
    ],
)
def test_what_needs_the_node_is_refused(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(Unsupported, match=field):
        admission.check_container(spec)


def test_a_shared_process_namespace_is_the_guests() -> None:
    namespaces = [n for n in SPEC["linux"]["namespaces"] if n["type"] != "pid"]
    spec = changed(namespaces=[*namespaces, {"type": "pid", "path": "/proc/7/ns/pid"}])
    admission.check_container(spec)
    assert guest(spec)["linux"]["namespaces"] == [{"type": "mount"}, {"type": "cgroup"}]


def test_a_writable_sysfs_means_privileged() -> None:
    spec = copy.deepcopy(SPEC)
    spec["mounts"][1]["options"] = ["nosuid", "rw"]
    with pytest.raises(Unsupported, match="privileged"):
        admission.check_container(spec)


def test_an_ordinary_container_is_admitted() -> None:
    admission.check_sandbox(SPEC)
    admission.check_container(SPEC)
    assert admission.network_namespace(SPEC) == "/proc/1/ns/net"


@pytest.mark.parametrize(
    ("process", "score"),
    [
        ({"oomScoreAdj": -997}, -997),
        ({"oomScoreAdj": 0}, 0),
        ({}, None),
        ({"oomScoreAdj": 1001}, None),
    ],
)
def test_the_oom_score_is_the_one_that_kubelet_made(
    process: dict[str, int], score: int | None
) -> None:
    assert oci.oom_score({"process": process}) == score
    assert oci.oom_score({}) is None
