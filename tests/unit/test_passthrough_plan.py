"""Which binds are NAS volumes: decided from the mount table alone, with no file system touched."""

from __future__ import annotations

import pytest

from kangaroo.errors import FailedPrecondition
from kangaroo.linux.mountinfo import MountEntry, parse
from kangaroo.runtime.oci import Bind
from kangaroo.runtime.takeover_plan import NotNas, OnNode, OnPlaceholder, Origin, PodMounts

POD = "/var/lib/kubelet/pods/u1"
NAS = f"{POD}/volumes/kubernetes.io~csi/pv-nas/mount"
NAS_SUB = f"{POD}/volumes/kubernetes.io~csi/pv-sub/mount"
SUBPATH = f"{POD}/volume-subpaths/pv-nas/web/0"
OPTIONS = "rw,vers=3,addr=10.0.0.9"

TABLE = f"""\
1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw
2 1 0:50 / {NAS} rw shared:2 - nfs nas:/csi {OPTIONS}
3 1 0:50 / {SUBPATH} rw shared:2 - nfs nas:/csi/logs/web {OPTIONS}
4 1 0:50 / {NAS_SUB} rw shared:4 - nfs nas:/csi/a {OPTIONS}
5 1 0:51 / {POD}/volumes/kubernetes.io~secret/token rw shared:5 - tmpfs tmpfs rw
6 1 0:50 / /mnt/shared rw shared:6 - nfs nas:/csi {OPTIONS}
7 1 0:50 / /var/lib/kubelet/pods/u12/volumes/x/mount rw shared:7 - nfs nas:/csi {OPTIONS}
"""

TAKEN = f"""\
1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw
2 1 0:60 / {NAS} rw shared:2 - tmpfs kangaroo-nas rw,size=4k
3 1 0:60 /logs/web {SUBPATH} rw shared:2 - tmpfs kangaroo-nas rw,size=4k
"""


def origin(source: str, table: str = TABLE) -> Origin:
    return PodMounts(POD, parse(table)).origin(Bind(0, source, "/data", read_only=False))


def entry(mount_id: int, table: str = TABLE) -> MountEntry:
    return next(item for item in parse(table) if item.mount_id == mount_id)


def test_a_volume_is_itself() -> None:
    assert origin(NAS) == OnNode(entry(2), "")


def test_a_subpath_bind_is_a_directory_of_its_volume() -> None:
    assert origin(SUBPATH) == OnNode(entry(2), "logs/web")


def test_a_path_below_a_volume_is_a_directory_of_it() -> None:
    assert origin(f"{NAS}/deep/er") == OnNode(entry(2), "deep/er")


def test_a_volume_inside_another_of_the_same_superblock_stays_its_own() -> None:
    assert origin(NAS_SUB) == OnNode(entry(4), "")


@pytest.mark.parametrize(
    "source",
    [
        f"{POD}/volumes/kubernetes.io~secret/token",
        f"{POD}/etc-hosts",
        "/mnt/shared/x",
        "/var/lib/kubelet/pods/u12/volumes/x/mount",
        "/srv/host",
    ],
    ids=["secret", "hosts", "node's own nfs", "another pod's nfs", "hostPath"],
)
def test_anything_else_is_not_a_nas_volume_of_the_pod(source: str) -> None:
    assert origin(source) == NotNas()


def test_a_sub_path_of_a_host_path_is_the_nodes() -> None:
    """kubelet binds the directory for the pod, but the mount that it is of is the node's."""
    path = f"{POD}/volume-subpaths/host/web/0"
    table = TABLE + f"8 1 0:50 / {path} rw shared:6 - nfs nas:/csi/a/b {OPTIONS}\n"
    assert origin(path, table) == NotNas()
    mounts = PodMounts(POD, parse(table))
    assert path not in mounts.mount_points(entry(2)) + mounts.mount_points(entry(4))


@pytest.mark.parametrize("name", ["nas", "mount"])
def test_what_is_mounted_inside_an_empty_dir_is_nobodys_volume(name: str) -> None:
    scratch = f"{POD}/volumes/kubernetes.io~empty-dir/scratch"
    subpath = f"{POD}/volume-subpaths/scratch/web/1"
    table = f"{TABLE}8 1 0:50 / {scratch}/{name} rw shared:8 - nfs nas:/csi {OPTIONS}\n"
    table += f"9 1 0:50 / {subpath} rw shared:8 - nfs nas:/csi/logs {OPTIONS}\n"
    for source in (scratch, f"{scratch}/{name}", subpath):
        assert origin(source, table) == NotNas()
    assert sorted(PodMounts(POD, parse(table)).mount_points(entry(2))) == sorted((NAS, SUBPATH))


def test_an_in_tree_volume_is_one() -> None:
    volume = f"{POD}/volumes/kubernetes.io~nfs/data"
    subpath = f"{POD}/volume-subpaths/data/web/0"
    table = f"8 0 0:52 / {volume} rw shared:8 - nfs4 nas:/csi {OPTIONS}\n"
    table += f"9 0 0:52 / {subpath} rw shared:8 - nfs4 nas:/csi/a {OPTIONS}\n"
    assert origin(volume, table) == OnNode(entry(8, table), "")
    assert origin(subpath, table) == OnNode(entry(8, table), "a")


def test_a_bind_that_is_left_of_a_taken_volume_stands_for_itself() -> None:
    left = f"{POD}/volume-subpaths/pv-nas/web/1"
    table = TAKEN + f"9 1 0:50 / {left} rw shared:2 - nfs nas:/csi/logs {OPTIONS}\n"
    assert origin(left, table) == OnNode(entry(9, table), "")


def test_the_placeholder_stands_for_its_volume() -> None:
    assert origin(NAS, TAKEN) == OnPlaceholder(entry(2, TAKEN), "")


def test_a_subpath_that_kubelet_made_on_the_placeholder() -> None:
    assert origin(SUBPATH, TAKEN) == OnPlaceholder(entry(2, TAKEN), "logs/web")


def test_a_subpath_that_lost_its_mount_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="subPath"):
        origin(f"{POD}/volume-subpaths/pv-nas/web/7")


def test_only_the_volumes_own_mounts_are_taken() -> None:
    mounts = PodMounts(POD, parse(TABLE))
    assert sorted(mounts.mount_points(entry(2))) == sorted((NAS, SUBPATH))
    assert mounts.mount_points(entry(4)) == (NAS_SUB,)


def test_a_volume_mounted_twice_is_unmounted_twice() -> None:
    twice = TABLE + f"8 2 0:50 / {NAS} rw shared:8 - nfs nas:/csi {OPTIONS}\n"
    points = PodMounts(POD, parse(twice)).mount_points(entry(2, twice))
    assert points.count(NAS) == 2
