"""subPath and subPathExpr of a volume that goes into the guest, and links that lead out of it.

kubelet resolves a subPath on the node: on the NFS mount for a pod's first container, on the
placeholder for every later one, which has nothing of the NAS. So the same subPath goes two ways.
"""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.node import nas_client, pods, waiting
from tests.node.csi_driver import SOAK
from tests.node.pods import PASSTHROUGH, container, pod

from kangaroo.nas.placeholder import is_placeholder

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

# The guest sees at once what other clients rename.
OPTIONS = "noresvport,nolock,actimeo=0,lookupcache=none"
SHARE = "/csi/subpath"
ROOT_MODE = 0o3775
LEADS_OUT = "it leads out of the volume"
# Links that lead out of the volume, by the place of the link in the subPath. Beside the volume
# there is the same tree as in it, so that a walk that followed one would arrive.
ESCAPES = {
    "first-relative": "to-other/inner/leaf",
    "first-absolute": "to-etc/ssl",
    "first-dots": "to-above/other/leaf",
    "middle-relative": "inner/to-other/leaf",
    "middle-absolute": "inner/to-etc/ssl",
    "last-relative": "inner/deep/to-other",
    "last-absolute": "inner/deep/to-etc",
    "last-dots": "inner/deep/to-above",
    "file": "inner/to-secret",
    "missing": "to-other/made/by/guest",
}
if not SOAK:  # each is a container that starts again and again
    ESCAPES = {
        name: ESCAPES[name]
        for name in ("first-relative", "middle-absolute", "last-dots", "missing")
    }
SWAPPED = tuple(f"swapped-{number}" for number in range(6 if SOAK else 2))
# Look for what is outside, and end: so kubelet starts the container again and again.
FOUND, NOT_FOUND = 66, 3
SHOW = f"grep -rq secret /m && exit {FOUND}; exit {NOT_FOUND}"

FLIP = """
import os, shutil, sys, time
os.chdir(sys.argv[1])
while True:
    for moves in ((("x", "parked"), ("link", "x")), (("x", "link"), ("parked", "x"))):
        for one, other in moves:
            try:
                os.rename(one, other)
            except OSError:  # somebody has made what was missing for a moment
                shutil.rmtree(other)
                os.rename(one, other)
        time.sleep(0.02)  # at full speed no sandbox would start beside it, on one processor
"""


def tree(directory: Path, marker: str) -> None:
    """A tree of which every directory says where it is."""
    for name in (".", "inner", "inner/leaf", "inner/deep", "leaf"):
        (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / name / "marker").write_text(f"{marker}\n")


@pytest.fixture(scope="module")
def directory(lab: Lab) -> Path:
    """The volume, as the NAS itself sees it."""
    above: Path = lab.nas.root / "csi" / "subpath"
    subprocess.run(["rm", "-rf", str(above)], check=True)
    volume = above / "volume"
    tree(volume, "inside")
    tree(above / "other", "secret")
    (volume / "through").symlink_to("inner/deep")
    links = {"to-other": "other", "to-above": "", "to-etc": "/etc", "to-secret": "other/marker"}
    for place, up in (("", "../"), ("inner", "../../"), ("inner/deep", "../../../")):
        for name, target in links.items():
            text = target if target.startswith("/") else f"{up}{target}".rstrip("/")
            (volume / place / name).symlink_to(text)
    (volume / "swap/x/leaf").mkdir(parents=True)
    for name in ("swap/x", "swap/x/leaf"):
        (volume / name / "marker").write_text("inside\n")
    (volume / "swap/link").symlink_to("../../other")
    volume.chmod(ROOT_MODE)
    return volume


def mounted(path: str, subpath: str) -> pods.Document:
    return {"name": "nas", "mountPath": path, "subPath": subpath}


def expanded(container: str) -> pods.Document:
    return {
        "name": "nas",
        "mountPath": "/expanded",
        "subPathExpr": f"$(POD)/{container}",
    }


POD_NAME = {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}


def using(name: str, *more: pods.Document) -> pods.Document:
    """A container with a sub-directory of every kind; one made for it has its name."""
    mounts = [
        {"name": "nas", "mountPath": "/data"},
        mounted("/existing", "inner/deep"),
        mounted("/through", "through"),
        mounted("/missing", f"made/{name}/deep"),
        mounted("/one-file", "inner/marker"),
        mounted("/data/inner/leaf", "leaf"),
        expanded(name),
        *more,
    ]
    return container(name, mounts=mounts, env=[POD_NAME])


def direct_pod() -> pods.Document:
    return pod(
        "direct",
        using("one"),
        using("two"),
        annotations=PASSTHROUGH,
        volumes=[pods.claim("nas")],
    )


def hostile_pod() -> pods.Document:
    """The first container finds the NFS mount on the node, the others the placeholder."""
    escaping = [
        container(name, SHOW, mounts=[mounted("/m", subpath)]) for name, subpath in ESCAPES.items()
    ]
    swapped = [
        container(name, SHOW, mounts=[mounted("/m", ("swap/x", "swap/x/leaf")[number % 2])])
        for number, name in enumerate(SWAPPED)
    ]
    return pod(
        "hostile",
        container("early", SHOW, mounts=[mounted("/m", ESCAPES["first-relative"])]),
        container("whole", mounts={"/data": "nas"}),
        *escaping,
        *swapped,
        annotations=PASSTHROUGH,
        volumes=[pods.claim("nas")],
        terminationGracePeriodSeconds=1,
    )


@pytest.fixture(scope="module")
def space(lab: Lab, directory: Path) -> Iterator[pods.Space]:
    with pods.opened(lab, "subpath") as space:
        space.apply(
            *space.nas("nas", path=f"{SHARE}/volume", options=OPTIONS),
        )
        yield space


@pytest.fixture(scope="module")
def used(space: pods.Space) -> pods.Space:
    """The pods that use what they may."""
    space.apply(direct_pod(), pod("plain", using("one"), runtime=None, volumes=[pods.claim("nas")]))
    waiting.ready(space, "direct", "plain")
    return space


def mount_lines(space: pods.Space, name: str, container: str) -> dict[str, list[str]]:
    """The mount table of a container: mount point → [source, type]."""
    table = space.say(name, "cat /proc/mounts", container=container)
    fields = [line.split() for line in table.splitlines()]
    return {each[1]: [each[0], each[2]] for each in fields}


def modes(directory: Path, *names: str) -> set[str]:
    return {f"{stat.S_IMODE((directory / name).stat().st_mode):o}" for name in names}


def check(space: pods.Space, directory: Path, name: str, container: str) -> None:
    """That a container sees all its sub-directories, as NFS mounts of the guest, and that what it
    writes there is on the NAS.
    """
    lines = mount_lines(space, name, container)
    paths = ("/data", "/existing", "/through", "/missing", "/one-file", "/data/inner/leaf")
    assert {path: lines[path][1] for path in paths} == dict.fromkeys(paths, "nfs")
    script = (
        "cat /data/marker /existing/marker /through/marker /one-file /data/inner/leaf/marker; "
        "echo $HOSTNAME > /missing/written; echo $HOSTNAME > /expanded/written; sync"
    )
    assert space.say(name, script, container=container).split() == ["inside"] * 5
    assert (directory / "made" / container / "deep/written").read_text() == f"{name}\n"
    assert (directory / name / container / "written").read_text() == f"{name}\n"


@pytest.mark.parametrize("name", ["one", "two"])
def test_every_kind_of_sub_path(used: pods.Space, directory: Path, name: str) -> None:
    """In the first container of the pod, and in the second, whose subPaths are prepared on the
    placeholder.
    """
    check(used, directory, "direct", name)


def test_what_is_made_has_the_mode_that_kubelet_gives(used: pods.Space, directory: Path) -> None:
    """kubelet itself made the plain pod's and the first container's, the guest the second's."""
    made = ("plain", "plain/one", "made", "made/one", "made/one/deep", "made/two", "made/two/deep")
    assert modes(directory, *made, "direct", "direct/two") == {f"{ROOT_MODE:o}"}


def test_nothing_is_made_on_the_node(used: pods.Space) -> None:
    """The placeholder has the directories that kubelet prepared, and no file of the NAS."""
    entries = used.mounts(used.uid("direct"))
    (volume,) = (entry for entry in entries if entry.mount_point.endswith("/mount"))
    assert is_placeholder(volume)
    assert [entry for entry in entries if entry.fstype == "nfs"] == []
    files = used.node.exec(["find", volume.mount_point, "-type", "f"]).stdout.split()
    assert [Path(file).name for file in files] == [".kangaroo-volume.json"]


def test_a_restarted_container_finds_them_again(used: pods.Space, directory: Path) -> None:
    """Also a file, and a directory that somebody removed meanwhile."""
    source = f"{used.lab.nas.address}:{SHARE}/volume"
    nas_client.run_on(used.node, source, "rm -r made/one")
    # The shell that kills may end with its container.
    used.run("direct", "kill -TERM 1", container="one", check=False)
    waiting.restarted(used, "direct", "one")
    check(used, directory, "direct", "one")
    assert modes(directory, "made/one", "made/one/deep") == {f"{ROOT_MODE:o}"}
    events = used.kubectl("get", "events", "--field-selector=type=Warning").stdout
    assert "pod/direct" not in events


@contextmanager
def flipping(space: pods.Space, path: str) -> Iterator[None]:
    """A client of the NAS, on the node, that swaps `x` and `link` until the block ends."""
    argv = ["sh", "-ec", 'd=$(mktemp -d); mount -t nfs -o vers=3,nolock "$1" "$d"; echo "$d"']
    source = f"{space.lab.nas.address}:{path}"
    place = space.node.exec([*argv, "flip", source]).stdout.strip()
    unit = f"flip-{space.name}"
    try:
        space.node.exec(["systemd-run", f"--unit={unit}", "python3", "-c", FLIP, place])
        yield
    finally:
        space.node.exec(["systemctl", "stop", unit], check=False)
        space.node.exec(["sh", "-c", f"umount {place} && rmdir {place}"])


@dataclass(frozen=True)
class End:
    """How a container ended: 128 is what containerd says of one that could not be started."""

    status: int
    message: str

    @property
    def refused(self) -> bool:
        return self.status == 128 and LEADS_OUT in self.message

    @property
    def ran(self) -> bool:
        return self.status in (FOUND, NOT_FOUND)


Ends = dict[str, set[End]]


def ends_of(document: pods.Document) -> Iterator[tuple[str, End]]:
    """The ends of containers that a pod's status shows, with the containers' names."""
    for status in document["status"].get("containerStatuses", ()):
        for state in (status["state"], status.get("lastState", {})):
            if ended := state.get("terminated"):
                yield status["name"], End(ended["exitCode"], ended.get("message", ""))


@pytest.fixture(scope="module")
def hostile(space: pods.Space) -> Ends:
    """How the containers of the hostile pod ended, again and again, while links were swapped.

    kubelet makes no event of each, for they are many. One processor has no room for the other pods
    beside this one.
    """
    space.kubectl("delete", "pod", "--all", "--wait=false")
    space.apply(hostile_pod())
    whole = 'jsonpath={.status.containerStatuses[?(@.name=="whole")].ready}=true'
    waiting.condition(space, whole, "hostile", timeout_s=waiting.START_S)
    seen: Ends = {}
    with flipping(space, f"{SHARE}/volume/swap"):
        for document in waiting.changes(space, "hostile", timeout_s=waiting.START_S):
            for name, end in ends_of(document):
                seen.setdefault(name, set()).add(end)
            swapped = {end for name, ends in seen.items() if name in SWAPPED for end in ends}
            # Both ways were met: a swap that was refused, and a container that was started.
            both = any(end.refused for end in swapped) and any(end.ran for end in swapped)
            if both and seen.keys() >= {*ESCAPES, *SWAPPED}:
                break
    return seen


def test_the_first_container_gets_no_link_that_leads_out(space: pods.Space, hostile: Ends) -> None:
    """kubelet refuses it, on the node's mount, and the guest later."""
    what = "(create subPath directory|prepare subPath)"
    pattern = f'failed to {what} for volumeMount "nas" of container "early"'
    waiting.event(space, "hostile", pattern, timeout_s=waiting.EVENT_S)
    assert all(end.refused for end in hostile.get("early", ()))


@pytest.mark.parametrize("name", ESCAPES)
def test_a_link_that_leads_out_is_refused(hostile: Ends, name: str) -> None:
    """The guest refuses it, whatever component of the subPath is the link."""
    assert hostile[name]
    assert all(end.refused for end in hostile[name]), hostile[name]
    assert all(f"subPath '{ESCAPES[name]}'" in end.message for end in hostile[name])


def test_a_link_that_is_swapped_never_leads_out(hostile: Ends, directory: Path) -> None:
    ends = {end for name in SWAPPED for end in hostile[name]}
    assert {end.status for end in ends} == {NOT_FOUND, 128}
    assert any(end.refused for end in ends)
    others = directory.parent / "other"
    assert sorted(path.name for path in others.iterdir()) == ["inner", "leaf", "marker"]
    assert sorted(path.name for path in directory.parent.iterdir()) == ["other", "volume"]
