"""Volumes of other drivers, and NFS mounts that are no volumes: the node's mount table decides."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.node import pods, second_driver, waiting
from tests.node.pods import NFS, PASSTHROUGH, container, pod
from tests.node.second_driver import Other

from kangaroo.nas import placeholder

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

NAME = "others"
PODS_DIR = "/var/lib/kubelet/pods"
# Volume of the pod → where kubelet mounts it, below the pod's volumes.
TAKEN = {
    "claimed": "kubernetes.io~nfs/{space}-claimed",
    "inline": "kubernetes.io~nfs/inline",
    "reading": "kubernetes.io~nfs/reading",
    "other": "kubernetes.io~csi/{space}-other/mount",
}


@pytest.fixture(scope="module")
def base(lab: Lab) -> Iterator[Path]:
    """A directory of the NAS with one for each volume, as the NAS itself sees it."""
    path: Path = lab.nas.root / "csi" / f"drivers-{secrets.token_hex(4)}"
    for name in ("", *TAKEN, "claimed/existing", "of-the-node", "of-the-node/inside", "scratch"):
        (path / name).mkdir()
        (path / name).chmod(0o777)
        (path / name / "here").write_text(f"{name}\n")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def host(lab: Lab, base: Path) -> Iterator[str]:
    """A directory of the node that is an NFS mount, by the node's own choice."""
    node, path = lab.nodes["node1"], f"/mnt/{base.name}"
    node.exec(["mkdir", path])
    source = f"{lab.nas.address}:/csi/{base.name}/of-the-node"
    node.exec(["mount", "-t", "nfs", "-o", "vers=4.2", source, path])
    yield path
    node.exec(["umount", path])
    node.exec(["rmdir", path])


@pytest.fixture(scope="module")
def driver(lab: Lab) -> Iterator[Other]:
    with second_driver.running(lab) as other:
        yield other


@pytest.fixture(scope="module")
def space(lab: Lab, base: Path, host: str, driver: Other) -> Iterator[pods.Space]:
    with pods.opened(lab, "drivers") as space:
        claimed = {"server": lab.nas.address, "path": f"/csi/{base.name}/claimed"}
        options = ("vers=3", "nolock", "rsize=65536", "timeo=700")
        other = {"server": lab.nas.address, driver.path: f"/csi/{base.name}/other"}
        space.apply(
            *sourced(pods.bound_volume(space.name, "claimed", {}, options), nfs=claimed),
            *pods.bound_volume(space.name, "other", other, ("vers=4.1",), driver.name),
            document(lab, base, host),
        )
        waiting.ready(space, NAME, timeout_s=2 * waiting.START_S)
        yield space


def sourced(documents: list[pods.Document], **source: Any) -> list[pods.Document]:
    """The volume and its claim, with another source than the CSI driver."""
    volume, claim = documents
    spec = {key: value for key, value in volume["spec"].items() if key != "csi"}
    return [{**volume, "spec": spec | source}, claim]


def document(lab: Lab, base: Path, host: str) -> pods.Document:
    """A pod that opted in, with a volume of each kind."""

    def inline(name: str, **rest: object) -> pods.Document:
        where = {"server": lab.nas.address, "path": f"/csi/{base.name}/{name}"}
        return {"name": name, "nfs": where | rest}

    mounts: list[pods.Document] = [
        {"name": "claimed", "mountPath": "/claimed"},
        {"name": "claimed", "mountPath": "/existing", "subPath": "existing"},
        {"name": "claimed", "mountPath": "/missing", "subPath": "missing/deep"},
        {"name": "claimed", "mountPath": "/readonly", "readOnly": True},
        {"name": "inline", "mountPath": "/inline"},
        {"name": "reading", "mountPath": "/reading"},
        {"name": "other", "mountPath": "/other"},
        {"name": "host", "mountPath": "/host"},
        {"name": "host", "mountPath": "/host-inside", "subPath": "inside"},
        {"name": "scratch", "mountPath": "/scratch", "mountPropagation": "HostToContainer"},
    ]
    return pod(
        NAME,
        container("one", mounts=mounts),
        annotations=PASSTHROUGH,
        volumes=[
            pods.claim("claimed"),
            inline("inline"),
            inline("reading", readOnly=True),
            pods.claim("other"),
            {"name": "host", "hostPath": {"path": host, "type": "Directory"}},
            {"name": "scratch", "emptyDir": {}},
        ],
    )


@pytest.fixture(scope="module")
def table(space: pods.Space) -> dict[str, list[str]]:
    """The pod's own mount table: mount point → [source, fstype, options]."""
    lines = [line.split() for line in space.say(NAME, "cat /proc/mounts").splitlines()]
    return {line[1]: [line[0], line[2], line[3]] for line in lines}


@pytest.fixture(scope="module")
def on_node(space: pods.Space) -> dict[str, Any]:
    """The node's mounts of the pod, by kubelet's path below the pod's directory."""
    uid = space.uid(NAME)
    return {
        entry.mount_point.partition(f"/{uid}/")[2]: entry
        for entry in space.mounts(uid)
        if entry.mount_point.startswith(PODS_DIR)
    }


@pytest.mark.parametrize("volume", TAKEN)
def test_the_guest_mounts_it_and_the_node_does_not(
    space: pods.Space, base: Path, table: dict[str, list[str]], on_node: Any, volume: str
) -> None:
    source, fstype, _ = table[f"/{volume}"]
    assert source == f"{space.lab.nas.address}:/csi/{base.name}/{volume}"
    assert fstype in NFS
    assert space.say(NAME, f"cat /{volume}/here") == volume
    entry = on_node[f"volumes/{TAKEN[volume].format(space=space.name)}"]
    assert placeholder.is_placeholder(entry)


def test_mount_options_of_an_in_tree_volume_are_in_force(table: dict[str, list[str]]) -> None:
    options = table["/claimed"][2].split(",")
    assert {"rw", "vers=3", "nolock", "rsize=65536", "timeo=700"} <= set(options), options


def test_sub_paths_of_an_in_tree_volume(
    space: pods.Space, base: Path, table: dict[str, list[str]]
) -> None:
    assert [table[path][1] for path in ("/existing", "/missing")] == ["nfs", "nfs"]
    assert space.say(NAME, "cat /existing/here") == "claimed/existing"
    space.run(NAME, "echo deep > /missing/file && sync")
    assert (base / "claimed/missing/deep/file").read_text() == "deep\n"


@pytest.mark.parametrize("path", ["/readonly", "/reading"])
def test_read_only(space: pods.Space, table: dict[str, list[str]], path: str) -> None:
    """Of the container's mount, and of the volume: then the NFS mount itself is."""
    assert table[path][1] in NFS
    refused = space.run(NAME, f"echo x > {path}/refused", check=False)
    assert "Read-only file system" in refused.stderr
    assert space.say(NAME, f"test -e {path}/here && echo readable") == "readable"


def test_the_operator_sees_whose_volumes_they_are(space: pods.Space, driver: Other) -> None:
    listing = json.loads(
        space.node.exec(["/opt/kangaroo/bin/kangaroo", "volumes", "--json"]).stdout
    )
    mine = {each["path"]: each for each in listing if each["pod"]["uid"] == space.uid(NAME)}
    found = {
        name: mine[f"{PODS_DIR}/{space.uid(NAME)}/volumes/{path.format(space=space.name)}"]
        for name, path in TAKEN.items()
    }
    assert {name: (each["driver"], each["where"]) for name, each in found.items()} == {
        **dict.fromkeys(("claimed", "inline", "reading"), ("kubernetes.io/nfs", "guest")),
        "other": (driver.name, "guest"),
    }
    assert all(each["statistics"]["total_bytes"] > 4096 for each in found.values()), found


def test_a_host_path_is_the_nodes(
    space: pods.Space, table: dict[str, list[str]], on_node: Any, host: str
) -> None:
    """The directory itself, and one of it by subPath, which kubelet binds for the pod."""
    assert [table[path][1] for path in ("/host", "/host-inside")] == ["virtiofs", "virtiofs"]
    assert space.say(NAME, "cat /host/here /host-inside/here").split() == [
        "of-the-node",
        "of-the-node/inside",
    ]
    (bound,) = [entry for path, entry in on_node.items() if path.startswith("volume-subpaths/host")]
    assert bound.fstype in NFS
    assert space.node.exec(["cat", f"{host}/here"]).stdout == "of-the-node\n"


def test_what_is_mounted_inside_an_empty_dir_is_the_nodes(space: pods.Space, base: Path) -> None:
    """By somebody on the node, or by a container that may (mountPropagation: Bidirectional). The
    pod sees it while it runs, and a container that restarts does."""
    inside = f"{PODS_DIR}/{space.uid(NAME)}/volumes/kubernetes.io~empty-dir/scratch/nas"
    source = f"{space.lab.nas.address}:/csi/{base.name}/scratch"
    space.node.exec(["mkdir", inside])
    space.node.exec(["mount", "-t", "nfs", "-o", "vers=3,nolock", source, inside])
    try:
        assert space.say(NAME, "cat /scratch/nas/here") == "scratch"
        space.run(NAME, "kill -TERM 1", check=False)
        waiting.restarted(space, NAME, "one")
        assert space.say(NAME, "cat /scratch/nas/here") == "scratch"
        (entry,) = [each for each in space.mounts(space.uid(NAME)) if each.mount_point == inside]
        assert entry.fstype == "nfs"
    finally:
        space.node.exec(["umount", "--lazy", inside])
        space.node.exec(["rmdir", inside])


def test_nothing_is_left_of_a_deleted_pod(space: pods.Space, host: str) -> None:
    """The last test: the pod goes. What the node mounted itself stays."""
    uid = space.uid(NAME)
    space.delete(NAME)
    gone = f"while test -e {PODS_DIR}/{uid}; do sleep 0.2; done"
    space.node.exec(["sh", "-c", gone], timeout_s=waiting.STOP_S)
    assert space.mounts(uid) == []
    assert space.node.exec(["cat", f"{host}/here"]).stdout == "of-the-node\n"
