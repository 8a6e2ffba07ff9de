"""Evidence: reading mount tables and pods, and the checks that hold for what they describe."""

from __future__ import annotations

import json

import pytest

from kangaroo.errors import InvalidRequest, KangarooError
from kangaroo_lab import evidence, manifests, rollout
from kangaroo_lab.evidence import Kernel, PodFacts
from kangaroo_lab.manifests import Variant
from kangaroo_lab.rollout import Pod

UID = "11111111-2222-3333-4444-555555555555"
POD = Pod("pod-1", UID, "node1", "10.0.0.7", "busybox")
NODE_KERNEL = Kernel("6.12.0", "#1 SMP", "aaaaaaaa-0000")
GUEST_KERNEL = Kernel("6.12.0", "#1 SMP", "bbbbbbbb-0000")
NFS_LINE = "10.9.0.2:/csi on /data type nfs (rw,relatime,vers=3)"
VIRTIOFS_LINE = "kangaroo on /data type virtiofs (rw,relatime)"
MOUNTINFO = f"""\
24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda rw
90 24 0:52 / /var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/v/mount rw shared:9 - nfs \
10.9.0.2:/csi rw,vers=3
91 24 0:53 / /var/lib/kubelet/pods/other/volumes/v/mount rw shared:9 - nfs4 10.9.0.2:/csi rw
92 24 0:54 / /var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~projected/t rw - tmpfs tmpfs rw
"""
MANIFEST = {
    "kind": "Deployment",
    "metadata": {"name": "deploy-nas-csi", "resourceVersion": "7"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "busybox"}},
        "template": {
            "metadata": {
                "labels": {"app": "busybox"},
                "annotations": {"storage.alibabacloud.com/enable_nas_passthrough": "true"},
            },
            "spec": {"runtimeClassName": "runv", "containers": [{"name": "b", "image": "busybox"}]},
        },
    },
}


def facts(line: str, kernel: Kernel, *, node_holds_it: bool) -> PodFacts:
    return PodFacts(
        pod=POD,
        mount=evidence.find_mount(f"proc on /proc type proc (rw)\n{line}\n", "/data"),
        nfs_line=line if " nfs" in line else "",
        kernel=kernel,
        node_kernel=NODE_KERNEL,
        node_nfs=evidence.nfs_mounts_of(MOUNTINFO, UID) if node_holds_it else (),
    )


def test_only_nfs_mounts_of_the_pod_are_found() -> None:
    found = evidence.nfs_mounts_of(MOUNTINFO, UID)
    assert [entry.mount_id for entry in found] == [90]


def test_the_topmost_mount_on_a_target_is_found() -> None:
    seen = evidence.find_mount(f"{VIRTIOFS_LINE}\n{NFS_LINE}\n", "/data")
    assert seen is not None
    assert (seen.source, seen.fstype) == ("10.9.0.2:/csi", "nfs")
    assert "vers=3" in seen.options
    assert evidence.find_mount(NFS_LINE, "/dat") is None


def test_checks_hold_for_what_they_describe_and_for_nothing_else() -> None:
    passed = facts(NFS_LINE, GUEST_KERNEL, node_holds_it=False)
    virtiofs = facts(VIRTIOFS_LINE, GUEST_KERNEL, node_holds_it=True)
    runc = facts(NFS_LINE, NODE_KERNEL, node_holds_it=True)
    judges = (evidence.passthrough_checks, evidence.virtiofs_checks, evidence.runc_checks)
    held = [
        [all(check.holds for check in judge(seen)) for judge in judges]
        for seen in (passed, virtiofs, runc)
    ]
    assert held == [[True, False, False], [False, True, False], [False, False, True]]


def test_a_missing_mount_fails_the_check_and_says_so() -> None:
    check = evidence.passthrough_checks(facts("", GUEST_KERNEL, node_holds_it=False))[0]
    assert not check.holds
    assert check.fact == "nothing is mounted on /data"


def test_a_kernel_is_three_lines() -> None:
    assert evidence.parse_kernel("6.12.0\n#1 SMP\nbbbbbbbb-0000\n") == GUEST_KERNEL
    with pytest.raises(KangarooError, match="boot id"):
        evidence.parse_kernel("6.12.0\n")


def test_only_ready_pods_that_stay_are_listed() -> None:
    def item(name: str, *ready: bool, **metadata: str) -> dict[str, object]:
        statuses = [{"ready": one} for one in ready]
        return {
            "metadata": {"name": name, "uid": UID, "namespace": "default", **metadata},
            "spec": {"nodeName": "node1", "containers": [{"name": "busybox"}]},
            "status": {"podIP": "10.0.0.7", "containerStatuses": statuses},
        }

    listed = [
        item("pod-2", True, True),
        item("pod-1", True),
        item("pod-3"),
        item("pod-4", True, False),
        item("pod-5", True, deletionTimestamp="2026-01-01T00:00:00Z"),
    ]
    found = rollout.parse_pods(json.dumps({"items": listed}))
    assert [pod.name for pod in found] == ["pod-1", "pod-2"]


def test_the_manifest_is_filled_in_and_must_ask_for_it() -> None:
    assert manifests.fill("server: ${nas-server-address}", "10.9.0.2") == "server: 10.9.0.2"
    with pytest.raises(InvalidRequest, match="nas-server-address"):
        manifests.fill("server: 10.9.0.2", "10.9.0.2")


def test_objects_are_read_one_after_the_other_and_from_a_list() -> None:
    one, other = {"kind": "A"}, {"kind": "B"}
    together = json.dumps({"kind": "List", "items": [other]})
    found = manifests.objects(json.dumps(one) + "\n" + together)
    assert found == (one, other)
    assert manifests.of_kind(found, "B") == other
    with pytest.raises(InvalidRequest, match="0 objects of kind C"):
        manifests.of_kind(found, "C")


def test_a_variant_differs_in_what_it_names_only() -> None:
    made = manifests.variant(MANIFEST, Variant("plain", None, passthrough=False))
    template = made["spec"]["template"]
    assert made["metadata"] == {"name": "plain"}
    assert made["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    assert template["metadata"]["annotations"] == {}
    assert template["spec"] == {
        "containers": [{"name": "b", "image": "busybox"}],
        "terminationGracePeriodSeconds": 1,
    }
    assert MANIFEST["spec"]["replicas"] == 2  # type: ignore[index] # the original stays


def test_a_variant_opts_in_and_takes_another_image() -> None:
    wanted = Variant("fast", "runv", passthrough=True, image="work:1", replicas=3)
    template = manifests.variant(MANIFEST, wanted)["spec"]["template"]
    assert list(template["metadata"]["annotations"].values()) == ["true"]
    assert template["spec"]["runtimeClassName"] == "runv"
    assert template["spec"]["containers"][0]["image"] == "work:1"
