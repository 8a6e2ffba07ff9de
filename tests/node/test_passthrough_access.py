"""Who may do what: volumes that are only read, users and groups, a root-squashed export.

The same checks run in a sandbox with passthrough and in a pod of runc, and come to the same.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.node import inside, pods, probing, waiting
from tests.node.pods import PASSTHROUGH, container, pod

from kangaroo.wire.agent_protocol import SHARED_DIRECTORY

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

pytestmark = pytest.mark.soak

PODS = ("guest", "node")
USER, GROUP, FS_GROUP, OTHER_GROUP, FOREIGN_GROUP = 1000, 1001, 2000, 3000, 4000
HOST_PATH = "/var/lib/kangaroo-test-host"
NOBODY = 65534
READ_ONLY, DENIED, FORBIDDEN = (
    "Read-only file system",
    "Permission denied",
    "Operation not permitted",
)
# What busybox's mount says of EPERM.
UNPRIVILEGED = "permission denied (are you root?)"

# Ways to say that a volume is only read, by where it is mounted.
WAYS = {
    "/mount": "readOnly of the container's volumeMount",
    "/sub": "the same with a subPath",
    "/claim": "readOnly of the pod's volume",
    "/option": "ro in the PersistentVolume's mountOptions",
    "/many": "access mode ReadOnlyMany",
    "/export": "the server's export",
}
# How a program may try to write all the same; "$1" is where.
WRITE = 'touch "$1/written"'
TRICKS = {
    "remount": f'mount -o remount,rw "$1" && {WRITE}',
    "remount of the bind": f'mount -o remount,bind,rw "$1" && {WRITE}',
    "another bind": (
        'mkdir -p /tmp/b && mount -o bind "$1" /tmp/b && mount -o remount,bind,rw /tmp/b'
        " && touch /tmp/b/written"
    ),
    "a user namespace": (
        f'unshare -U -r -m sh -c \'mount -o remount,bind,rw "$1" && {WRITE}\' sh "$1"'
    ),
}

# What each container finds in a directory of its own, where its checks run: mode and owner.
DIRECTORIES = {
    "open": (0o777, 0, 0),
    "of-fs-group": (0o770, 0, FS_GROUP),
    "of-other-group": (0o770, 0, OTHER_GROUP),
    "of-foreign-group": (0o770, 0, FOREIGN_GROUP),
    "set-group-id": (0o2777, 0, OTHER_GROUP),
    "mine": (0o700, USER, GROUP),
    "roots": (0o755, 0, 0),
    "sticky": (0o1777, 0, 0),
}
FILES = {
    "secret": (0o600, USER, GROUP),
    "roots-file": (0o644, 0, 0),
    "sticky/foreign": (0o644, USER + 7, GROUP + 7),
}
CREATE = "touch {0}/new && stat -c %u:%g {0}/new"
CHECKS = {
    **{f"create in {name}": CREATE.format(name) for name in DIRECTORIES},
    "list mine": "ls mine > /dev/null",
    "read secret": "cat secret",
    "read a file of root": "cat roots-file",
    "write to a file of root": "echo x >> roots-file",
    "remove what is not mine from sticky": "rm -f sticky/foreign",
    "mode of root's directory": "chmod 775 roots",
    "group to my own": f"chgrp {OTHER_GROUP} open/new && stat -c %g open/new",
    "group to a foreign one": f"chgrp {FOREIGN_GROUP} open/new && stat -c %g open/new",
    "give away": "chown 1234 open/new && stat -c %u open/new",
    "umask": "umask 027; mkdir open/made && stat -c %a open/made",
    "set-user-id goes with a write": (
        "echo x > open/suid; chmod 4755 open/suid; echo y >> open/suid; stat -c %a open/suid"
    ),
    "link": "ln open/suid open/link && stat -c %h open/link",
}
OF_USER = {
    **{f"create in {name}": f"{USER}:{GROUP}" for name in DIRECTORIES},
    "create in of-foreign-group": DENIED,
    "create in roots": DENIED,
    "create in set-group-id": f"{USER}:{OTHER_GROUP}",
    "list mine": "ok",
    "read secret": "x",
    "read a file of root": "x",
    "write to a file of root": DENIED,
    "remove what is not mine from sticky": FORBIDDEN,
    "mode of root's directory": FORBIDDEN,
    "group to my own": str(OTHER_GROUP),
    "group to a foreign one": FORBIDDEN,
    "give away": FORBIDDEN,
    "umask": "750",
    "set-user-id goes with a write": "755",
    "link": "2",
}
OF_ROOT = {
    **{f"create in {name}": "0:0" for name in DIRECTORIES},
    "create in set-group-id": f"0:{OTHER_GROUP}",
    "list mine": "ok",
    "read secret": "x",
    "read a file of root": "x",
    "write to a file of root": "ok",
    "remove what is not mine from sticky": "ok",
    "mode of root's directory": "ok",
    "group to my own": str(OTHER_GROUP),
    "group to a foreign one": str(FOREIGN_GROUP),
    "give away": "1234",
    "umask": "750",
    "set-user-id goes with a write": "4755",
    "link": "2",
}
OF_NOBODY = {
    **{f"create in {name}": DENIED for name in DIRECTORIES},
    "create in open": f"{NOBODY}:{NOBODY}",
    "create in set-group-id": f"{NOBODY}:{OTHER_GROUP}",
    "create in sticky": f"{NOBODY}:{NOBODY}",
    "list mine": DENIED,
    "read secret": DENIED,
    "read a file of root": "x",
    "write to a file of root": DENIED,
    "remove what is not mine from sticky": FORBIDDEN,
    "mode of root's directory": FORBIDDEN,
    "group to my own": FORBIDDEN,
    "group to a foreign one": FORBIDDEN,
    "give away": FORBIDDEN,
    "umask": "750",
    "set-user-id goes with a write": "755",
    "link": "2",
}
# Who does the checks in which volume, and what becomes of them.
OWNERS = {
    ("user", "three"): OF_USER,
    ("root", "three"): OF_ROOT,
    ("user", "four"): OF_USER,
    ("root", "four"): OF_ROOT,
    ("user", "squashed"): OF_USER,
    ("root", "squashed"): OF_NOBODY,
}

# Runs what it is given, pairs of a name and a script, and says what became of each.
RUN = """
cd "$1"; shift
while [ $# -gt 0 ]; do
    if said=$( (eval "$2") 2>&1 ); then echo "$1: ${said:-ok}"; else echo "$1: ${said##*: }"; fi
    shift 2
done
"""


def tree(base: Path) -> None:
    """Lay out what one container finds, as the NAS's administrator does."""
    for name, (mode, uid, gid) in DIRECTORIES.items():
        path = base / name
        path.mkdir(parents=True)
        os.chown(path, uid, gid)
        path.chmod(mode)
    for name, (mode, uid, gid) in FILES.items():
        path = base / name
        path.write_text("x\n")
        os.chown(path, uid, gid)
        path.chmod(mode)


def lay_out(normal: Path, squashed: Path) -> None:
    for name in PODS:
        for who, volume in OWNERS:
            tree((squashed if volume == "squashed" else normal) / volume / name / who)
    read = normal / "read"
    (read / "below").mkdir(parents=True)
    for path in (read, read / "below"):
        path.chmod(0o777)
        (path / "kept").write_text("kept\n")
    private = squashed / "private"
    private.mkdir()
    os.chown(private, USER, GROUP)
    private.chmod(0o700)


def volumes(space: pods.Space) -> list[pods.Document]:
    normal, squashed = f"/csi/{space.name}", f"/squashed/{space.name}"
    read = f"{normal}/read"
    many, marked = space.nas("many", path=read), space.nas("marked", path=read)
    for each in many:
        each["spec"]["accessModes"] = ["ReadOnlyMany"]
    marked[0]["spec"]["csi"]["readOnly"] = True
    return [
        *space.nas("data", path=read),
        *space.nas("claim", path=read),
        *space.nas("option", path=read, mount_options=["ro", "nosuid,nodev,noexec"]),
        *many,
        *marked,
        *space.nas("export", path="/readonly"),
        *space.nas("three", path=f"{normal}/three"),
        *space.nas("four", path=f"{normal}/four", vers="4.1", options="noresvport"),
        *space.nas("squashed", path=f"{squashed}/squashed"),
        *space.nas("private", path=f"{squashed}/private"),
    ]


def checked_pod(name: str, **rest: Any) -> pods.Document:
    """A pod with all volumes, and with a container for each kind of user."""
    names = ("claim", "option", "many", "marked", "export", "data", "three", "four", "squashed")
    whole = {f"/{each}": each for each in (*names, "private", "disk")}
    mounts: list[pods.Document] = [
        *({"name": volume, "mountPath": path} for path, volume in whole.items()),
        {"name": "data", "mountPath": "/mount", "readOnly": True},
        {"name": "data", "mountPath": "/sub", "subPath": "below", "readOnly": True},
        {"name": "disk", "mountPath": "/disk-read", "readOnly": True},
        {"name": "host", "mountPath": "/host-read", "readOnly": True},
    ]
    claims = {each: pods.claim(each) for each in (*names, "private")}
    claims["claim"]["persistentVolumeClaim"]["readOnly"] = True
    host = {"name": "host", "hostPath": {"path": HOST_PATH, "type": "DirectoryOrCreate"}}
    user = {"runAsUser": USER, "runAsGroup": GROUP}
    admin = {"capabilities": {"add": ["SYS_ADMIN"]}}
    return pod(
        name,
        container("user", mounts=mounts, securityContext=user, workingDir="/private"),
        container("root", mounts=mounts),
        container("admin", mounts=mounts, securityContext=admin),
        securityContext={"fsGroup": FS_GROUP, "supplementalGroups": [OTHER_GROUP]},
        volumes=[*claims.values(), {"name": "disk", "emptyDir": {}}, host],
        **rest,
    )


@pytest.fixture(scope="module")
def space(lab: Lab) -> Iterator[pods.Space]:
    with contextlib.ExitStack() as afterwards, pods.opened(lab, "access") as space:
        afterwards.callback(space.node.exec, ["rm", "-rf", HOST_PATH])
        bases = [lab.nas.root / export / space.name for export in ("csi", "squashed")]
        for base in bases:
            afterwards.callback(shutil.rmtree, base)
        lay_out(*bases)
        space.apply(
            *volumes(space),
            checked_pod("guest", annotations=PASSTHROUGH),
            checked_pod("node", runtime=None),
        )
        waiting.ready(space, *PODS)
        yield space


def outcomes(
    space: pods.Space, name: str, who: str, checks: Mapping[str, str], where: str = "/"
) -> dict[str, str]:
    """What became of each check: what it printed, else `ok`, else why it failed."""
    words = [word for check in checks.items() for word in check]
    argv = ["exec", name, "--container", who, "--", "sh", "-c", RUN, "sh", where, *words]
    return dict(line.split(": ", 1) for line in space.kubectl(*argv).stdout.splitlines())


@pytest.mark.parametrize("name", PODS)
@pytest.mark.parametrize("who", ["root", "admin"])
def test_writes_are_refused(space: pods.Space, name: str, who: str) -> None:
    writes = {path: f"touch {path}/refused" for path in (*WAYS, "/disk-read", "/host-read")}
    assert outcomes(space, name, who, writes) == dict.fromkeys(writes, READ_ONLY)
    others = {path: f"touch {path}/accepted" for path in ("/data", "/disk")}
    assert outcomes(space, name, who, others) == dict.fromkeys(others, "ok")
    reads = {path: f"cat {path}/kept" for path in WAYS if path != "/export"}
    assert outcomes(space, name, who, reads) == dict.fromkeys(reads, "kept")


@pytest.mark.parametrize("name", PODS)
def test_csi_read_only_of_a_persistent_volume_reaches_no_node(space: pods.Space, name: str) -> None:
    """It is for a controller that attaches volumes; kubelet tells a driver of the pod's own."""
    assert outcomes(space, name, "root", {"marked": "touch /marked/x"}) == {"marked": "ok"}


def test_flags_of_a_volume_are_those_of_its_binds(space: pods.Space) -> None:
    """Not only of its superblock: crun drops what a bind's source has."""
    for name in PODS:
        mounted = inside.mounted(space, name, "root", *WAYS, "/data")
        flags = {path: set(entry.options) for path, entry in mounted.items()}
        for path in set(WAYS) - {"/export"}:
            assert "ro" in flags[path], path
        assert {"nosuid", "nodev", "noexec"} <= flags["/option"]
        assert not {"ro", "nosuid", "nodev", "noexec"} & flags["/data"]


def attempts(*paths: str) -> dict[str, str]:
    """Every trick on each of `paths`, each in a shell of its own."""
    return {
        f"{trick} of {path}": f"set -- {path}; {script}"
        for path in paths
        for trick, script in TRICKS.items()
    }


@pytest.mark.parametrize("name", PODS)
def test_no_trick_makes_it_writable(space: pods.Space, name: str) -> None:
    tricks = attempts(*WAYS)
    became = outcomes(space, name, "root", tricks)
    # A remount that changes nothing may be allowed: what the server exports for reading.
    assert set(became.values()) <= {UNPRIVILEGED, READ_ONLY}, became
    writes = {path: f"touch {path}/refused" for path in WAYS}
    assert outcomes(space, name, "root", writes) == dict.fromkeys(writes, READ_ONLY)


def test_what_an_administrator_may_do(space: pods.Space) -> None:
    """CAP_SYS_ADMIN is the right to change a mount's flags: as with runc, but only in the guest.
    What the node shares stays read-only, whatever the guest does, but for what is the pod's own.
    """
    nas, shared = attempts(*WAYS, "/disk-read"), attempts("/host-read")
    here = {name: outcomes(space, name, "admin", nas | shared) for name in PODS}
    for trick in nas | shared:
        print(f"{trick:40} guest: {here['guest'][trick]:40} node: {here['node'][trick]}")
    assert [trick for trick in nas if here["guest"][trick] != here["node"][trick]] == []
    assert [trick for trick in shared if here["guest"][trick] == "ok"] == []
    assert [trick for trick in shared if here["node"][trick] == "ok"], "no trick works anywhere"
    # Of the container beside it, and of the pod of the same volumes on the node, nothing changed.
    writes = {path: f"touch {path}/refused" for path in WAYS}
    for name in PODS:
        assert outcomes(space, name, "root", writes) == dict.fromkeys(writes, READ_ONLY)


def test_who_is_root_in_the_guest_cannot_change_the_tree_that_the_node_shares(
    space: pods.Space,
) -> None:
    """He finds all of it where the agent has it; the runtime works in it, as root of the node."""
    admin = {"capabilities": {"add": ["SYS_ADMIN", "SYS_PTRACE"]}}
    insider = container("one", mounts={"/disk": "disk"}, securityContext=admin)
    disk = {"name": "disk", "emptyDir": {}}
    space.apply(pod("insider", insider, volumes=[disk], shareProcessNamespace=True))
    waiting.ready(space, "insider")
    tree = f"/proc/1/root{SHARED_DIRECTORY}"
    own, volumes = space.say("insider", f"ls {tree}").split()
    assert volumes == "volumes"
    for place in (tree, f"{tree}/{own}", f"{tree}/{volumes}"):
        for plant in (f"ln -s /etc {place}/planted", f"mkdir {place}/made", f"touch {place}/file"):
            refused = space.run("insider", plant, check=False)
            assert READ_ONLY in refused.stderr, (plant, refused)
    assert space.say("insider", "echo written > /disk/file; cat /disk/file") == "written"
    space.delete("insider")


@pytest.mark.parametrize("who", ["user", "root"])
def test_ids_are_those_that_were_asked_for(space: pods.Space, who: str) -> None:
    ids = {name: space.say(name, "id -u; id -g; id -G", container=who).split() for name in PODS}
    assert ids["guest"][:2] == ids["node"][:2]
    assert set(ids["guest"]) == set(ids["node"]) >= {str(FS_GROUP), str(OTHER_GROUP)}


@pytest.mark.parametrize("name", PODS)
@pytest.mark.parametrize(("who", "volume"), OWNERS)
def test_what_owners_may_do(space: pods.Space, name: str, volume: str, who: str) -> None:
    became = outcomes(space, name, who, CHECKS, f"/{volume}/{name}/{who}")
    assert became == OWNERS[who, volume]


def test_volume_that_root_may_not_enter(space: pods.Space, lab: Lab) -> None:
    """The runtime is root, too, and has to bind it and to make it the working directory."""
    for name in PODS:
        here = {"here": f"pwd; echo {name} > by-{name}; cat by-{name}"}
        said = space.say(name, here["here"], container="user")
        assert said == f"/private\n{name}"
        refused = outcomes(space, name, "root", {"list": "ls /private"})
        assert refused == {"list": DENIED}
        written = (lab.nas.root / "squashed" / space.name / "private" / f"by-{name}").stat()
        assert (written.st_uid, written.st_gid) == (USER, GROUP)


def test_what_root_may_not_enter_is_written_back(space: pods.Space, lab: Lab) -> None:
    """When the pod ends, by the agent, which is root."""
    private = lab.nas.root / "squashed" / space.name / "private"
    probing.install(private)
    user = {"runAsUser": USER, "runAsGroup": GROUP}
    one = container("user", mounts={"/private": "private"}, securityContext=user)
    space.apply(pod("ends", one, annotations=PASSTHROUGH, volumes=[pods.claim("private")]))
    waiting.ready(space, "ends")
    with probing.acting(space, "ends", f"/private/{probing.PROGRAM}") as actor:
        actor.expect("open", "file", "/private/mapped")
        actor.expect("map", "file", "unsynced")
    space.delete("ends")
    assert (private / "mapped").read_text() == "unsynced"
    events = ["get", "events", "--field-selector=involvedObject.name=ends"]
    reasons = space.kubectl(*events, "--output=jsonpath={.items[*].reason}").stdout.split()
    assert "NASVolumeInGuest" in reasons
    assert "NASVolumeNotFlushed" not in reasons
