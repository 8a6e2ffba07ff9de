"""Which volume a path of kubelet's stands for."""

from __future__ import annotations

import pytest

from kangaroo.nas import kubelet_target
from kangaroo.nas.kubelet_target import KubeletTarget

PODS = "/var/lib/kubelet/pods"


@pytest.mark.parametrize(
    ("below", "target"),
    [
        ("u1/volumes/kubernetes.io~csi/pv-1/mount", ("u1", "kubernetes.io/csi", "pv-1")),
        ("u1/volumes/kubernetes.io~nfs/data", ("u1", "kubernetes.io/nfs", "data")),
    ],
)
def test_volumes(below: str, target: tuple[str, str, str]) -> None:
    assert kubelet_target.parse(f"{PODS}/{below}", PODS) == KubeletTarget(*target)


@pytest.mark.parametrize(
    "path",
    [
        PODS,
        f"{PODS}/u1/volumes",
        f"{PODS}/u1/volume-subpaths/pv-1/main/0",
        f"{PODS}/u1/volumes/kubernetes.io~nfs/data/mount",
        f"{PODS}/u1/volumes/kubernetes.io~csi/pv-1/other",
        "/elsewhere/u1/volumes/kubernetes.io~csi/pv-1/mount",
        "/var/lib/kubelet/podsu1/volumes/kubernetes.io~nfs/data",
        "",
    ],
)
def test_other_paths(path: str) -> None:
    assert kubelet_target.parse(path, PODS) is None
