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
from collections.abc import Callable, Iterator, Mapping
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

PAGE = Path(__file__).parents[2] / "docs/passthrough.md"
# Volume of the pods → NFS version.
VOLUMES = {"three": "3", "four": "4.2"}
RUNC, DIRECT, SHARED = "runc", "direct", "shared"
PODS = (RUNC, DIRECT, SHARED)
PROGRAM = f"/four/{probing.PROGRAM}"
CROWD = 100_000 if SOAK else 3_000
NAMES = 40
# What is observed in minutes on an emulated node; all of it with KANGAROO_SOAK=1.
CORE = (
    *("name-of-255-bytes", "name-of-any-bytes", "hard-link", "symlink", "fifo", "unix-socket"),
    *("device", "rename-over-open-file", "rename-exchange", "unlink-open-file"),
    *("unlink-mapped-file", "rmdir-with-open-unlinked-file", "create-exclusive"),
    *("create-without-a-name", "append-by-two-descriptors", "sparse-file", "allocate"),
    *("punch-hole", "seek-hole-and-data", "copy-file-range", "xattr-user", "xattr-list"),
    *("times-set", "time-of-a-write", "modes-after-chown", "flock-by-another-process"),
    *("flock-exclusive-on-a-read-only-descriptor", "flock-against-fcntl"),
    *("fcntl-by-another-process", "fcntl-of-a-killed-process", "lease", "mmap-shared-write"),
    *("mmap-shared-sees-write", "direct-io", "inotify", "inotify-of-unlinked-open-file"),
    *("directory-emptied-while-listed", "user-creates", "statfs-type", "file-handle"),
    "user-with-the-20th-supplementary-group",
)

Outcomes = Mapping[str, str]


@pytest.fixture(scope="module")
def base(lab: Lab) -> Iterator[Path]:
    """A directory of the NAS, as the NAS itself sees it, in which each pod has its own."""
    path: Path = lab.nas.root / "csi" / f"semantics-{secrets.token_hex(4)}"
    for name in ("", "crowd", "pairs", *(f"{each}-{v}" for each in PODS for v in VOLUMES)):
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
        only = () if SOAK else CORE
        places = [f"/{volume}/{name}-{volume}" for volume in VOLUMES]
        return [probing.observe(space, name, each, program=PROGRAM, only=only) for each in places]

    with ThreadPoolExecutor(len(PODS)) as pool:
        found = dict(zip(PODS, pool.map(observe, PODS), strict=True))
    return {
        (name, volume): outcomes
        for name in PODS
        for volume, outcomes in zip(VOLUMES, found[name], strict=True)
    }


def differences(one: Outcomes, other: Outcomes) -> dict[str, tuple[str, str]]:
    assert one.keys() == other.keys()
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("volume", VOLUMES)
def test_passthrough_is_as_the_nodes_own_mount(
    seen: Mapping[tuple[str, str], Outcomes], volume: str
) -> None:
    assert differences(seen[RUNC, volume], seen[DIRECT, volume]) == {}


def test_virtio_fs_differs_as_the_page_says(seen: Mapping[tuple[str, str], Outcomes]) -> None:
    found = {
        (name, VOLUMES[volume]): outcomes
        for volume in VOLUMES
        for name, outcomes in differences(seen[RUNC, volume], seen[SHARED, volume]).items()
    }
    observed = seen[RUNC, "four"].keys()
    said = {}
    for row in probing.documented(PAGE, "#### One pod: how virtio-fs differs"):
        for version in row["NFS"].split(", "):
            if row["observation"] in observed:
                said[row["observation"], version] = (row["NFS mount"], row["virtio-fs"])
    assert found == said


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
    here.expect("open", "f", f"{place}/file")
    there.expect("remove", f"{place}/file")
    read = here("read", "f")
    here("close", "f")
    return f"reads {read}"


def replaced_elsewhere(here: Actor, there: Actor, place: str) -> str:
    """A file that is open here is replaced there, as editors and package managers do."""
    there.expect("put", f"{place}/file", "old")
    here.expect("open", "f", f"{place}/file")
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
    "unlinked-by-the-other-pod": unlinked_elsewhere,
    "replaced-by-the-other-pod": replaced_elsewhere,
    "race-to-create": race("create"),
    "race-to-make-directories": race("mkdir"),
    "race-to-link": race("link"),
}
# The one that looks, and the one that does. A guest with passthrough and the node are two kernels
# that mount one NAS, as two nodes are; pods of runc on one node have one kernel.
PAIRS = ((RUNC, DIRECT), (DIRECT, RUNC), (SHARED, DIRECT), (RUNC, "neighbour"))
TITLES = dict(zip(PAIRS[1:], ("two kernels", "virtio-fs", "one kernel"), strict=True))


@contextlib.contextmanager
def meeting(space: pods.Space, pair: tuple[str, str], volume: str) -> Iterator[tuple[Actor, Actor]]:
    """Both pods of a pair with actors in one directory of a volume."""
    with contextlib.ExitStack() as stack:
        one, other = (
            stack.enter_context(probing.acting(space, name, PROGRAM, f"/{volume}/pairs"))
            for name in pair
        )
        yield one, other


@pytest.fixture(scope="module")
def met(space: pods.Space) -> Mapping[tuple[tuple[str, str], str], Outcomes]:
    """What pairs of pods observed of each other, by pair and volume."""

    def play(pair: tuple[str, str], volume: str) -> Outcomes:
        found = {}
        with meeting(space, pair, volume) as (here, there):
            for name, scene in SCENES.items():
                place = f"{'-'.join(pair)}-{volume}-{name}"
                there.expect("mkdir", place)
                found[name] = scene(here, there, place)
        return found

    keys = [(pair, volume) for pair in PAIRS for volume in VOLUMES]
    with ThreadPoolExecutor(len(PAIRS)) as pool:
        outcomes = pool.map(lambda key: play(*key), keys)
        return dict(zip(keys, outcomes, strict=True))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("volume", VOLUMES)
def test_pods_with_passthrough_meet_others_as_nodes_do(
    met: Mapping[tuple[tuple[str, str], str], Outcomes], volume: str
) -> None:
    assert differences(met[(RUNC, DIRECT), volume], met[(DIRECT, RUNC), volume]) == {}


def test_pods_meet_as_the_page_says(
    met: Mapping[tuple[tuple[str, str], str], Outcomes],
) -> None:
    said = {}
    for row in probing.documented(PAGE, "#### Two pods on one directory"):
        for version in row["NFS"].split(", "):
            said[row["observation"], version] = {title: row[title] for title in TITLES.values()}
    found = {
        (name, version): {title: met[pair, volume][name] for pair, title in TITLES.items()}
        for volume, version in VOLUMES.items()
        for name in SCENES
    }
    assert found == said


@pytest.mark.parametrize("kind", ["fcntl", "flock"])
def test_a_lock_orders_what_two_pods_write(space: pods.Space, kind: str) -> None:
    """A counter and appended lines, each change under the lock: none is lost. Over version 4, for
    `nolock` is for locks within one kernel."""
    with meeting(space, (RUNC, DIRECT), "four") as actors, ThreadPoolExecutor(2) as pool:
        counter, lines = f"counter-{kind}", f"lines-{kind}"
        for name in (counter, lines):
            actors[0].expect("put", name, "")
        counted = [pool.submit(each, "count", counter, kind, str(NAMES)) for each in actors]
        assert [each.result() for each in counted] == ["ok", "ok"]
        assert [each("get", counter).strip() for each in actors] == [str(2 * NAMES)] * 2
        appended = [
            pool.submit(each, "append", lines, kind, line, str(NAMES))
            for each, line in zip(actors, ("from the node", "from the guest"), strict=True)
        ]
        assert [each.result() for each in appended] == ["ok", "ok"]
        for each in actors:
            found = each("get", lines).splitlines()
            assert sorted(found) == ["from the guest"] * NAMES + ["from the node"] * NAMES
