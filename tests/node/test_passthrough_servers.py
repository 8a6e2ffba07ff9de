"""Servers, paths, versions, options and locks of volumes in a guest, beside those of a runc pod.

The two pods have the same volumes. So whatever the node's own NFS client makes of an option is what
is expected of the guest.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.node import child, inside, pods, waiting
from tests.node.pods import PASSTHROUGH, container, pod

from kangaroo.linux import mountinfo
from kangaroo.linux.mountinfo import MountEntry
from kangaroo_lab.dual_stack import dual_stack
from kangaroo_lab.network import NAS_HOST_NAME

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.node import Node

pytestmark = pytest.mark.soak

SHARE = "/csi/servers"
ODD_PATH = f"{SHARE}/two words/ünï-数据"
PLAIN = "noresvport,nolock"

# What each volume is asked for, and what the mount table must show of it (a set of options).
OPTIONS = {
    "tuned": (
        "3",
        (
            "nolock,noresvport,hard,proto=tcp,rsize=32768,wsize=65536,timeo=700,retrans=5,actimeo=17,"
            "nocto,lookupcache=none,sync,noacl,nordirplus"
        ),
        (
            "vers=3,nolock,noresvport,hard,proto=tcp,rsize=32768,wsize=65536,timeo=700,retrans=5,"
            "acregmin=17,acregmax=17,acdirmin=17,acdirmax=17,nocto,lookupcache=none,sync,noacl,"
            "nordirplus"
        ),
    ),
    "soft": (
        "3",
        (
            "nolock,noresvport,soft,acregmin=5,acregmax=50,acdirmin=7,acdirmax=70,lookupcache=pos,"
            "nosharecache,port=2049,ro,noexec,nosuid,nodev,noatime,nodiratime"
        ),
        (
            "vers=3,soft,acregmin=5,acregmax=50,acdirmin=7,acdirmax=70,lookupcache=pos,nosharecache,"
            "port=2049,ro,noexec,nosuid,nodev,noatime,nodiratime"
        ),
    ),
    "connected": (
        "3",
        "nolock,noresvport,nconnect=4,noac,softerr",
        "vers=3,nconnect=4,noac,softerr,sync",
    ),
    "four": ("4.0", "noresvport", "vers=4.0,noresvport,local_lock=none"),
    "four-one": (
        "4.1",
        "noresvport,sync,actimeo=9,rsize=65536,wsize=32768,timeo=300,retrans=4,nocto",
        (
            "vers=4.1,noresvport,sync,acregmin=9,acdirmax=9,rsize=65536,wsize=32768,timeo=300,"
            "retrans=4,nocto"
        ),
    ),
    "four-two": (
        "4.2",
        "noresvport,ro,soft,lookupcache=none,local_lock=flock",
        "vers=4.2,noresvport,ro,soft,lookupcache=none",
    ),
}
# A volume's server (None: the lab's NAS) and path.
PLACES = {
    "named": (NAS_HOST_NAME, SHARE),
    "odd": (None, ODD_PATH),
}
# The address at which an NFSv4 server calls back is the client's own.
OWN = {"clientaddr"}
VOLUMES = (*OPTIONS, *PLACES, "named-four", "odd-in-tree", "six", "six-four", "locks")

# Python of the node, in a container that has none: take a lock at once or not at all, say so, hold
# it until stdin ends.
PYTHON = (
    "/node/lib64/ld-linux-x86-64.so.2 --library-path /node/lib/x86_64-linux-gnu "
    "/node/bin/python3 -I -S -c"
)
LOCK = """
import errno, fcntl, sys
take = {"flock": fcntl.flock, "fcntl": fcntl.lockf}[sys.argv[1]]
file = open(sys.argv[2], "a")
try:
    take(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("held", flush=True)
except OSError as error:
    print("refused" if error.errno == errno.EAGAIN else error, flush=True)
sys.stdin.read()
"""
HOW = ("flock", "fcntl")


def in_tree(space: pods.Space, name: str, path: str) -> list[pods.Document]:
    """A volume of Kubernetes' own NFS plugin: no CSI driver sees it."""
    volume, bound = pods.bound_volume(space.name, name, {}, ["vers=3", "nolock"])
    del volume["spec"]["csi"]
    volume["spec"]["nfs"] = {"server": space.lab.nas.address, "path": path}
    return [volume, bound]


def volumes(space: pods.Space, *, second: str, six: str) -> list[pods.Document]:
    found = in_tree(space, "odd-in-tree", ODD_PATH)
    for name, (version, options, _) in OPTIONS.items():
        server = second if name == "connected" else None
        found += space.nas(name, server=server, path=SHARE, vers=version, options=options)
    for name, (server, path) in PLACES.items():
        found += space.nas(name, server=server, path=path, options=PLAIN)
    found += space.nas(
        "named-four", server=NAS_HOST_NAME, path=SHARE, vers="4.2", options="noresvport"
    )
    found += space.nas("six", server=f"[{six}]", path=SHARE, options=PLAIN)
    found += space.nas("six-four", server=f"[{six}]", path=SHARE, vers="4.0", options="noresvport")
    found += space.nas("locks", path=SHARE, vers="4.1", options="noresvport")
    found += space.nas("locks-of-three", path=SHARE, options="noresvport")
    return found


def every_mount(names: Sequence[str]) -> list[pods.Document]:
    python = {"name": "node", "mountPath": "/node", "readOnly": True}
    return [python, *({"name": name, "mountPath": f"/{name}"} for name in names)]


def a_pod(
    name: str, *containers: pods.Document, claims: Sequence[str], **rest: object
) -> pods.Document:
    node: pods.Document = {"name": "node", "hostPath": {"path": "/usr"}}
    return pod(name, *containers, volumes=[*map(pods.claim, claims), node], **rest)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def directory(lab: Lab) -> Path:
    where: Path = lab.nas.root / SHARE[1:]
    subprocess.run(["rm", "-rf", str(where)], check=True)
    (lab.nas.root / ODD_PATH[1:]).mkdir(parents=True)
    (lab.nas.root / ODD_PATH[1:] / "file").write_text("was there\n")
    return where


@pytest.fixture(scope="module")
def space(lab: Lab, directory: Path) -> Iterator[pods.Space]:
    with (
        dual_stack(lab) as six,
        lab.nas.second_address() as second,
        pods.opened(lab, "servers") as space,
    ):
        space.apply(
            *volumes(space, second=second, six=six),
            a_pod(
                "direct",
                container("one", mounts=every_mount(VOLUMES)),
                container("two", mounts=every_mount(["tuned"])),
                claims=VOLUMES,
                annotations=PASSTHROUGH,
            ),
            a_pod(
                "refused",
                container("one", mounts={"/locks": "locks-of-three"}),
                claims=["locks-of-three"],
                annotations=PASSTHROUGH,
            ),
            a_pod(
                "plain", container("one", mounts=every_mount(VOLUMES)), claims=VOLUMES, runtime=None
            ),
        )
        waiting.ready(space, "plain", "direct")
        yield space


def in_container(space: pods.Space, name: str) -> dict[str, MountEntry]:
    """The mount table of a pod's container, by mount point."""
    table = inside.table(space, name, "one")
    return {entry.mount_point.removeprefix("/"): entry for entry in table}


@pytest.fixture(scope="module")
def guest(space: pods.Space) -> dict[str, MountEntry]:
    return in_container(space, "direct")


@pytest.fixture(scope="module")
def node(space: pods.Space) -> dict[str, MountEntry]:
    return in_container(space, "plain")


def options_of(entry: MountEntry) -> set[str]:
    """Of the mount and of the file system. What is the client's own is left out."""
    shown = {*entry.options, *entry.super_options}
    return {option for option in shown if option.partition("=")[0] not in OWN}


@pytest.mark.parametrize("name", VOLUMES)
def test_the_guest_mounts_what_the_node_mounts(
    guest: dict[str, MountEntry], node: dict[str, MountEntry], name: str
) -> None:
    assert (guest[name].source, guest[name].fstype) == (node[name].source, node[name].fstype)
    assert options_of(guest[name]) == options_of(node[name])


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_that_was_asked_for_is_in_force(
    guest: dict[str, MountEntry], name: str
) -> None:
    assert set(OPTIONS[name][2].split(",")) <= options_of(guest[name])


def test_the_node_has_none_of_them(space: pods.Space) -> None:
    entries = space.mounts(space.uid("direct"))
    assert not [entry.mount_point for entry in entries if entry.fstype in pods.NFS]


def test_a_host_name_is_resolved_by_the_node(
    space: pods.Space, guest: dict[str, MountEntry]
) -> None:
    for name, fstype in (("named", "nfs"), ("named-four", "nfs4")):
        assert (guest[name].source, guest[name].fstype) == (f"{NAS_HOST_NAME}:{SHARE}", fstype)
        assert f"addr={space.lab.nas.address}" in guest[name].super_options


@pytest.mark.parametrize("name", ["odd", "odd-in-tree"])
def test_a_path_with_blanks_and_unicode(
    space: pods.Space, guest: dict[str, MountEntry], name: str
) -> None:
    assert guest[name].source == f"{space.lab.nas.address}:{ODD_PATH}"
    assert space.say("direct", f"cat /{name}/file", container="one") == "was there"


def test_an_ipv6_server(space: pods.Space, guest: dict[str, MountEntry], directory: Path) -> None:
    """Over version 4.0 the server calls back to the guest's IPv6 address."""
    addresses = {each["ip"] for each in space.get("direct")["status"]["podIPs"]}
    for name, protocol in (("six", "tcp6"), ("six-four", "tcp6")):
        assert f"proto={protocol}" in guest[name].super_options
        space.run("direct", f"echo {name} > /{name}/by-{name} && sync", container="one")
        assert (directory / f"by-{name}").read_text() == f"{name}\n"
    (own,) = (o for o in guest["six-four"].super_options if o.startswith("clientaddr="))
    assert ":" in own
    assert own.partition("=")[2] in addresses


def test_locks_of_version_3_are_refused_by_name(space: pods.Space) -> None:
    """Without nolock; a server would keep the locks of a guest that was killed."""
    refused = waiting.event(
        space, "refused", "locks of NFS version 3 in the guest", timeout_s=waiting.START_S
    )
    assert "nolock" in refused.message
    assert f"{space.lab.nas.address}:{SHARE}" in refused.message
    assert len(space.nfs_mounts("refused")) == 1, "what the guest refused stays on the node"


@contextmanager
def taking(
    space: pods.Space, name: str, how: str, path: str, *, container: str = "one"
) -> Iterator[str]:
    """A process in a pod that asks for a lock: `held`, for the block, `refused`, or another
    error.
    """
    script = [*PYTHON.split(), LOCK, how, path]
    argv = space.argv("exec", "--stdin", name, "--container", container, "--", *script)
    with child.started(argv, spoken_to=True) as taker:
        yield next(taker.lines(timeout_s=waiting.EVENT_S), "no answer")
        taker.end_input()
        taker.wait(timeout_s=waiting.EVENT_S)


def check_locks(space: pods.Space, first: str, second: str, how: str) -> None:
    """While one pod has a lock, the other is refused it, and gets it when it was let go."""
    path = f"/locks/{how}-{first}-{second}"
    for holding, asking in ((first, second), (second, first)):
        with taking(space, holding, how, path) as holder:
            assert holder == "held"
            with taking(space, asking, how, path) as asker:
                assert asker == "refused"


@pytest.mark.parametrize("how", HOW)
def test_locks_hold_between_a_guest_and_a_node(space: pods.Space, how: str) -> None:
    check_locks(space, "direct", "plain", how)


def test_locks_of_version_3_with_nolock_are_the_guests_own(space: pods.Space) -> None:
    """The containers of a pod see each other's, other pods do not."""
    path = "/tuned/local"
    with taking(space, "direct", "fcntl", path) as holder:
        assert holder == "held"
        with taking(space, "direct", "fcntl", path, container="two") as neighbour:
            assert neighbour == "refused"
        with taking(space, "plain", "fcntl", path) as other:
            assert other == "held"


@pytest.fixture(scope="module")
def far(space: pods.Space, second_node: Node) -> str:
    """A pod like `direct` on the second node."""
    names = ("locks", "tuned")
    one = container("one", mounts=every_mount(names))
    far = a_pod("far", one, claims=names, annotations=PASSTHROUGH, nodeName=second_node.name)
    space.apply(far)
    waiting.ready(space, "far")
    return "far"


def test_one_volume_on_two_nodes(space: pods.Space, far: str, second_node: Node) -> None:
    table = in_container(space, far)
    assert (table["locks"].fstype, table["tuned"].fstype) == ("nfs4", "nfs")
    entries = mountinfo.parse(second_node.exec(["cat", "/proc/self/mountinfo"]).stdout)
    assert [entry for entry in entries if entry.fstype in pods.NFS] == []
    for writer, reader in ((far, "direct"), ("direct", far), (far, "plain")):
        name = f"{writer}-to-{reader}"
        space.run(writer, f"echo {name} > /locks/{name} && sync", container="one")
        assert space.say(reader, f"cat /locks/{name} /tuned/{name}", container="one").split() == [
            name,
            name,
        ]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("other", ["direct", "plain"])
def test_locks_hold_across_nodes(space: pods.Space, far: str, other: str, how: str) -> None:
    check_locks(space, far, other, how)
