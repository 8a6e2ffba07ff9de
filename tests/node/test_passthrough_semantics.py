"""What programs see of a NAS volume: on the node's own mount, with passthrough, and over virtio-fs.

The same observations are made in a pod of runc, which uses the node's NFS mount, in one with
passthrough and in one without. Passthrough has to be as the node's own mount in each of them; how
virtio-fs differs is said by the tables of docs/passthrough.md, to which these tests hold it.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.node import pods, probing, waiting
from tests.node.csi_driver import SOAK
from tests.node.pods import PASSTHROUGH, container, pod
from tests.node.probing import Actor

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

pytestmark = pytest.mark.soak

PAGE = Path(__file__).parents[2] / "docs/passthrough.md"
# Volume of the pods → NFS version.
VOLUMES = {"three": "3", "four": "4.2"}
RUNC, DIRECT, SHARED = "runc", "direct", "shared"
PODS = (RUNC, DIRECT, SHARED)
PROGRAM = f"/four/{probing.PROGRAM}"
CROWD = 100_000 if SOAK else 1_000
NAMES = 40 if SOAK else 12

# What is observed: all of it with KANGAROO_SOAK=1, else what takes minutes on an emulated node.
# Over version 3 only what rests on the version.
CORE_3 = (
    *("flock-by-another-process", "flock-against-fcntl", "punch-hole", "seek-hole-and-data"),
    *("unlink-open-file", "statfs-type"),
)
VERSIONED = (
    *("allocate", "punch-hole", "zero-range", "seek-hole-and-data", "copy-file-range", "clone"),
    *("xattr-user", "xattr-list", "acl-posix", "unlink-open-file", "rename-over-open-file"),
    *("rmdir-with-open-unlinked-file", "name-of-any-bytes", "statfs-type", "file-handle"),
    *("time-of-birth", "create-exclusive", "direct-io", "flock-by-two-opens"),
    *("flock-by-another-process", "flock-exclusive-on-a-read-only-descriptor"),
    *("flock-of-a-directory", "flock-against-fcntl", "fcntl-against-flock"),
    *("fcntl-by-another-process", "fcntl-of-ranges", "fcntl-lost-by-any-close"),
    *("fcntl-write-lock-on-a-read-only-descriptor", "ofd-by-two-opens"),
    *("lock-that-is-waited-for", "flock-of-a-killed-process", "fcntl-of-a-killed-process"),
    "lease",
)
OBSERVED: Mapping[str, Sequence[str]] = {
    "three": VERSIONED if SOAK else CORE_3,
    "four": () if SOAK else probing.CORE,
}
# Over version 4 nfs-ganesha 6.5 grants it, or it ends with EIO, on a node's own mount as in a
# guest. test_kernel_server.py has it of a server that grants it every time.
UNSTEADY = ("four", "lock-that-is-waited-for")
# An outcome over virtio-fs that is not the same every time, and so is not compared.
VARIES = "varies"

Outcomes = Mapping[str, str]


@pytest.fixture(scope="module")
def base(lab: Lab) -> Iterator[Path]:
    """A directory of the NAS, as the NAS itself sees it, in which each pod has its own."""
    path: Path = lab.nas.root / "csi" / f"semantics-{secrets.token_hex(4)}"
    own = [f"{name}-{volume}" for name in PODS for volume in VOLUMES]
    shared = [f"pairs/{meeting}" for meeting in PLACES.values()]
    for name in ("", "crowd", "pairs", *own, *shared):
        (path / name).mkdir()
        (path / name).chmod(0o777)
    for number in range(CROWD):
        (path / "crowd" / f"file-{number:06}").touch()
    probing.install(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def space(lab: Lab, base: Path) -> Iterator[pods.Space]:
    mounts = {f"/{volume}": volume for volume in VOLUMES}
    claims = [pods.claim(volume) for volume in VOLUMES]

    def asking(name: str, **rest: object) -> pods.Document:
        return pod(name, container("one", mounts=mounts), volumes=claims, **rest)  # type: ignore[arg-type]

    where = f"/csi/{base.name}"
    with pods.opened(lab, "semantics") as space:
        space.apply(
            *space.nas("three", path=where),
            *space.nas("four", path=where, vers="4.2", options="noresvport"),
            asking(DIRECT, annotations=PASSTHROUGH),
            asking(SHARED),
            asking(RUNC, runtime=None),
            asking("neighbour", runtime=None),
        )
        waiting.ready(space, *PODS, "neighbour", timeout_s=2 * waiting.START_S)
        yield space


@pytest.fixture(scope="module")
def seen(space: pods.Space) -> Mapping[tuple[str, str], Outcomes]:
    """What was observed, by pod and volume, in all pods at once."""

    def observe(name: str) -> list[Outcomes]:
        return [
            probing.observe(space, name, f"/{volume}/{name}-{volume}", program=PROGRAM, only=only)
            for volume, only in OBSERVED.items()
        ]

    with ThreadPoolExecutor(len(PODS)) as pool:
        found = dict(zip(PODS, pool.map(observe, PODS), strict=True))
    return {
        (name, volume): {what: how for what, how in outcomes.items() if (volume, what) != UNSTEADY}
        for name in PODS
        for volume, outcomes in zip(VOLUMES, found[name], strict=True)
    }


def differences(one: Outcomes, other: Outcomes) -> dict[str, tuple[str, str]]:
    assert one.keys() == other.keys()
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}


@pytest.mark.parametrize("volume", VOLUMES)
def test_passthrough_is_as_the_nodes_own_mount(
    seen: Mapping[tuple[str, str], Outcomes], volume: str
) -> None:
    assert differences(seen[RUNC, volume], seen[DIRECT, volume]) == {}


def test_virtio_fs_differs_as_the_page_says(seen: Mapping[tuple[str, str], Outcomes]) -> None:
    said = {}
    for row in probing.documented(PAGE, "#### One pod: how virtio-fs differs"):
        for version in row["NFS"].split(", "):
            said[row["observation"], version] = (row["NFS mount"], row["virtio-fs"])
    rows = []
    for volume, version in VOLUMES.items():
        found = differences(seen[RUNC, volume], seen[SHARED, volume])
        for name in seen[RUNC, volume]:
            if found.get(name) != said.get((name, version)):
                cells = " | ".join(f"`{cell}`" for cell in found.get(name, ("as NFS",)))
                rows.append(f"| `{name}` | {version} | {cells} |")
    assert rows == [], "the page should say:\n" + "\n".join(rows)
    observed = {(name, number) for volume, number in VOLUMES.items() for name in seen[RUNC, volume]}
    assert not SOAK or said.keys() <= observed, "the page says more"


def test_a_directory_of_very_many_files(space: pods.Space) -> None:
    def listed(name: str) -> object:
        return probing.crowd(space, name, "/four/crowd", program=PROGRAM)

    with ThreadPoolExecutor(len(PODS)) as pool:
        found = dict(zip(PODS, pool.map(listed, PODS), strict=True))
    whole = {"listed": CROWD, "different": CROWD, "stat": CROWD // 100}
    assert found == dict.fromkeys(PODS, whole)


# --- Two pods on one directory ---

Scene = Callable[[Actor, Actor, str], str]


def always(rounds: Iterator[bool]) -> str:
    return "always" if all([*rounds]) else "not always"


def close_to_open(here: Actor, there: Actor, place: str) -> str:
    """What one pod wrote and closed, the other sees when it opens the file."""
    file = f"{place}/file"

    def rounds() -> Iterator[bool]:
        for number in range(6):
            text = f"{number} " + "x" * number * number
            there.expect("put", file, text)
            yield here("get", file) == text

    return always(rounds())


def new_names(here: Actor, there: Actor, place: str) -> str:
    """Names that one pod made, the other finds in its next listing."""

    def rounds() -> Iterator[bool]:
        for number in range(4):
            there.expect("put", f"{place}/{number}", "")
            yield here("list", place) == " ".join(map(str, range(number + 1)))

    return always(rounds())


def lock(kind: str) -> Scene:
    def scene(here: Actor, there: Actor, place: str) -> str:
        """One pod has a lock, the other tries."""
        for each in (here, there):
            each.expect("open", "f", f"{place}/file")
        there.expect("lock", "f", kind)
        held = here("lock", "f", kind)
        there.expect("unlock", "f", kind)
        released = here("lock", "f", kind)
        for each in (here, there):
            each.expect("close", "f")
        return f"held {held}, released {released}"

    return scene


def append_without_lock(here: Actor, there: Actor, place: str) -> str:
    """Both append by O_APPEND to an empty file that both have open, then close it."""
    for each in (here, there):
        each.expect("open", "f", f"{place}/file", "append")
    here.expect("write", "f", "a")
    there.expect("write", "f", "b")
    there.expect("close", "f")
    here.expect("close", "f")
    return f"{len(there('get', f'{place}/file'))} of 2 are there"


def remote_events(here: Actor, there: Actor, place: str) -> str:
    """What inotify says of another pod's file."""
    here.expect("watch", place)
    there.expect("put", f"{place}/file", "text")
    return here("events", place)


def unlinked_elsewhere(here: Actor, there: Actor, place: str) -> str:
    """A file that is open here is unlinked there."""
    there.expect("put", f"{place}/file", "text")
    if (opened := here("open", "f", f"{place}/file")) != "ok":
        return f"open {opened}"
    there.expect("remove", f"{place}/file")
    read = here("read", "f")
    here("close", "f")
    return f"reads {read}"


def replaced_elsewhere(here: Actor, there: Actor, place: str) -> str:
    """A file that is open here is replaced there, as editors and package managers do."""
    there.expect("put", f"{place}/file", "old")
    if (opened := here("open", "f", f"{place}/file")) != "ok":
        return f"open {opened}"
    there.expect("put", f"{place}/new", "new")
    there.expect("rename", f"{place}/new", f"{place}/file")
    read = here("read", "f")
    here("close", "f")
    return f"open {read}, opened again {here('get', f'{place}/file')}"


def race(kind: str) -> Scene:
    def scene(here: Actor, there: Actor, place: str) -> str:
        """Both try to be the one who makes each of many names."""
        with ThreadPoolExecutor(2) as pool:
            orders = [pool.submit(each, "race", kind, place, str(NAMES)) for each in (here, there)]
            made = [order.result().split() for order in orders]
        if sorted(itertools.chain(*made)) == sorted(map(str, range(NAMES))):
            return "each name once"
        return f"here {made[0]}, there {made[1]}"

    return scene


SCENES: Mapping[str, Scene] = {
    "written-and-closed-then-opened": close_to_open,
    "new-names-in-a-listing": new_names,
    "fcntl-lock": lock("fcntl"),
    "flock": lock("flock"),
    "append-without-lock": append_without_lock,
    "inotify-of-the-other-pod": remote_events,
    "race-to-create": race("create"),
    "race-to-make-directories": race("mkdir"),
    "race-to-link": race("link"),
    # Last, for virtiofsd mistakes a new file for the removed one whose inode number it has.
    "unlinked-by-the-other-pod": unlinked_elsewhere,
    "replaced-by-the-other-pod": replaced_elsewhere,
}
SCENES_3 = ("fcntl-lock", "flock", "unlinked-by-the-other-pod")
PLAYED: Mapping[str, Sequence[str]] = {
    "three": (*SCENES,) if SOAK else SCENES_3,
    "four": (*SCENES,),
}
# The one that looks, and the one that does. A guest with passthrough and the node are two kernels
# that mount one NAS, as two nodes are; pods of runc on one node have one kernel.
PAIRS = ((RUNC, DIRECT), (DIRECT, RUNC), (SHARED, DIRECT), (RUNC, "neighbour"))
TITLES = dict(zip(PAIRS[1:], ("two kernels", "virtio-fs", "one kernel"), strict=True))


# Each meeting has a directory of its own, which was there before.
PLACES = {
    (pair, volume, name): f"{'-'.join(pair)}-{volume}-{name}"
    for volume, names in PLAYED.items()
    for pair in PAIRS
    for name in names
}


@pytest.fixture(scope="module")
def actors(space: pods.Space) -> Iterator[Mapping[str, Actor]]:
    """One in each pod."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(probing.acting(space, name, PROGRAM))
            for name in (*PODS, "neighbour")
        }


Met = Mapping[tuple[tuple[str, str], str], Outcomes]


@pytest.fixture(scope="module")
def met(actors: Mapping[str, Actor]) -> Met:
    """What pairs of pods observed of each other, by pair and volume."""
    found: dict[tuple[tuple[str, str], str], dict[str, str]] = {}
    for (pair, volume, name), place in PLACES.items():
        here, there = (actors[each] for each in pair)
        outcome = SCENES[name](here, there, f"/{volume}/pairs/{place}")
        found.setdefault((pair, volume), {})[name] = outcome
    return found


@pytest.mark.parametrize("volume", VOLUMES)
def test_pods_with_passthrough_meet_others_as_nodes_do(met: Met, volume: str) -> None:
    assert differences(met[(RUNC, DIRECT), volume], met[(DIRECT, RUNC), volume]) == {}


def test_pods_meet_as_the_page_says(met: Met) -> None:
    said = {}
    for row in probing.documented(PAGE, "#### Two pods on one directory"):
        for version in row["NFS"].split(", "):
            for title in TITLES.values():
                said[row["observation"], version, title] = row[title]
    for pair, volume, name in PLACES:
        if pair in TITLES:
            expected = said[name, VOLUMES[volume], TITLES[pair]]
            if pair[0] != SHARED or expected != VARIES:
                assert met[pair, volume][name] == expected, (name, volume, pair)


@pytest.mark.parametrize("kind", ["fcntl", "flock"])
def test_a_lock_orders_what_two_pods_write(actors: Mapping[str, Actor], kind: str) -> None:
    """A counter and appended lines, each change under the lock: none is lost. Over version 4, for
    `nolock` is for locks within one kernel."""
    both = [actors[name] for name in (RUNC, DIRECT)]
    counter, lines = f"/four/pairs/counter-{kind}", f"/four/pairs/lines-{kind}"
    for path in (counter, lines):
        both[0].expect("put", path, "")
    with ThreadPoolExecutor(2) as pool:
        counted = [pool.submit(each, "count", counter, kind, str(NAMES)) for each in both]
        assert [each.result() for each in counted] == ["ok", "ok"]
        assert [each("get", counter).strip() for each in both] == [str(2 * NAMES)] * 2
        appended = [
            pool.submit(each, "append", lines, kind, line, str(NAMES))
            for each, line in zip(both, ("from the node", "from the guest"), strict=True)
        ]
        assert [each.result() for each in appended] == ["ok", "ok"]
        for each in both:
            found = each("get", lines).splitlines()
            assert sorted(found) == ["from the guest"] * NAMES + ["from the node"] * NAMES
