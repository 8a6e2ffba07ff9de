"""The NAS of volumes in a guest goes away: under writes, across a restart, for good.

KANGAROO_SOAK=1 has the outages whole and the runtime's own deadlines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.node import pods, runtime_toml, waiting
from tests.node.csi_driver import SOAK
from tests.node.pods import PASSTHROUGH, container, pod

from kangaroo_lab.nas import Failure

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

OUTAGE_S = 120 if SOAK else 20
# shutdown_timeout_s: the default, or one that leaves `make test` some time.
FLUSH_S = 60 if SOAK else 15
GRACE_S = 5
# The bound that docs/passthrough.md states, and what an emulated kubelet takes between the steps.
END_S = (GRACE_S + 20 + FLUSH_S + 5 + 20) + 30
# A client sends again ever more rarely: it may take as long again as the server was away.
BACK_S = OUTAGE_S + 90
PROGRESS_S = 60
VERSIONS = ("three", "four")
RECORD = 9  # bytes
KINDS = ("append", "held", "at")

# flock(1) of the node: busybox has none.
LIBRARY = "/node/lib/x86_64-linux-gnu"
FLOCK = f"{LIBRARY}/ld-linux-x86-64.so.2 --library-path {LIBRARY} /node/bin/flock"
# Numbered records, each written three ways: O_APPEND with a close, O_APPEND without one (so the
# kernel may keep it back), and pwrite. Whatever fails ends the container. The lock is on a file of
# its own: version 4 fails what is written under a lock that an outage longer than the lease took.
WRITER = f"""
cd /data || exit 2
exec 8>>lock 9>>held || exit 3
{FLOCK} --nonblock 8 || exit 4
n=0
while [ ! -e stop ]; do
    n=$((n+1))
    printf '%08d\\n' $n >> append || exit 5
    printf '%08d\\n' $n >&9 || exit 6
    printf '%08d\\n' $n | dd of=at bs={RECORD} seek=$((n-1)) conv=notrunc 2>/dev/null || exit 7
    sleep 0.1
done
exec 8>&- 9>&-
sync
echo $n > written
sleep 100000
"""


def records(count: int) -> bytes:
    return b"".join(b"%08d\n" % number for number in range(1, count + 1))


def writers(name: str) -> pods.Document:
    """A pod that writes to a volume of version 3 and to one of 4.1."""
    return pod(
        name,
        *(
            container(version, WRITER, mounts={"/data": f"{name}-{version}", "/node": "node"})
            for version in VERSIONS
        ),
        annotations=PASSTHROUGH,
        volumes=[
            *(pods.claim(f"{name}-{version}") for version in VERSIONS),
            {"name": "node", "hostPath": {"path": "/usr"}},
        ],
        terminationGracePeriodSeconds=GRACE_S,
    )


def volumes(space: pods.Space, name: str) -> list[pods.Document]:
    options = {"three": ("3", "noresvport,nolock"), "four": ("4.1", "noresvport")}
    return [
        each
        for version, (vers, asked) in options.items()
        for each in space.nas(
            f"{name}-{version}", path=path(name, version), vers=vers, options=asked
        )
    ]


def path(name: str, version: str) -> str:
    return f"/csi/away/{name}-{version}"


def directory(lab: Lab, name: str, version: str) -> Path:
    """A volume as the NAS itself sees it."""
    return lab.nas.root / path(name, version)[1:]


@pytest.fixture(scope="module")
def space(lab: Lab) -> Iterator[pods.Space]:
    with (
        runtime_toml.with_keys(lab.nodes["node1"], shutdown_timeout_s=FLUSH_S),
        pods.opened(lab, "away") as space,
    ):
        try:
            yield space
        finally:
            lab.nas.unblock()
            lab.nas.start()


def started(space: pods.Space, name: str) -> dict[str, str]:
    """Start a pod of writers on empty volumes; the ids of its containers."""
    for version in VERSIONS:
        where = directory(space.lab, name, version)
        where.mkdir(parents=True, exist_ok=True)
        where.chmod(0o777)
        for file in where.iterdir():
            file.unlink()
    space.apply(*volumes(space, name), writers(name))
    waiting.ready(space, name, timeout_s=2 * waiting.START_S)
    return running(space, name)


def running(space: pods.Space, name: str) -> dict[str, str]:
    """The containers that run. A writer that meets an error ends, and its successor is another."""
    return {version: space.status(name, version)["containerID"] for version in VERSIONS}


@pytest.fixture(scope="module")
def first(space: pods.Space) -> dict[str, str]:
    """The containers of the pod that writes through all that happens to the NAS."""
    return started(space, "writers")


def written(lab: Lab, name: str) -> dict[tuple[str, str], int]:
    """How many records each file has on the NAS."""
    counts = {}
    for version in VERSIONS:
        for kind in KINDS:
            file = directory(lab, name, version) / kind
            counts[version, kind] = file.stat().st_size // RECORD if file.exists() else 0
    return counts


def progress(lab: Lab, name: str, *, timeout_s: float) -> float:
    """Wait until every writer has written records that the NAS did not have yet; how long it
    took. The NAS's files tell of nothing but to who looks.
    """
    begun = time.monotonic()
    before = written(lab, name)
    synchronous = [key for key in before if key[1] != "held"]
    while time.monotonic() < begun + timeout_s:
        now = written(lab, name)
        if all(now[key] > before[key] + 1 for key in synchronous):
            return time.monotonic() - begun
        time.sleep(0.2)
    raise AssertionError(f"no progress in {timeout_s:.0f} s: {before}, {written(lab, name)}")


def assert_stalled(lab: Lab, name: str, *, for_s: float) -> None:
    """From a moment on, when what was on its way has arrived, nothing changes."""
    time.sleep(1)
    before = written(lab, name)
    time.sleep(for_s - 1)
    assert written(lab, name) == before


def node_can_lock(space: pods.Space, name: str) -> bool:
    """Whether the node, a client of its own, gets the lock that the writer of version 4 holds."""
    source = f"{space.lab.nas.address}:{path(name, 'four')}"
    script = f"""
        directory=$(mktemp -d)
        mount -t nfs -o vers=4.1 {source} $directory
        flock --nonblock $directory/lock true && got=0 || got=$?
        umount $directory
        rmdir $directory
        exit $got
    """
    done = space.node.exec(["sh", "-c", script], check=False)
    assert done.status in (0, 1), done
    return done.status == 0


@pytest.mark.soak
def test_a_pod_is_a_client_of_its_own(space: pods.Space, first: dict[str, str]) -> None:
    """As the NAS has it. By its host name alone it would be one with any pod of the same name."""
    recorded = [path.name for path in space.lab.nas.recovery.rglob("*")]
    # Ganesha writes an identity that no file could be named by in hexadecimal.
    uid = space.uid("writers").encode().hex()
    assert any(uid in name for name in recorded), recorded


@pytest.mark.soak
def test_writers_stall_and_go_on(space: pods.Space, first: dict[str, str]) -> None:
    nas = space.lab.nas
    progress(space.lab, "writers", timeout_s=PROGRESS_S)
    nas.fail(nas.address, Failure.DROPPED)
    try:
        assert_stalled(space.lab, "writers", for_s=OUTAGE_S)
    finally:
        nas.unblock()
    print(f"back after {progress(space.lab, 'writers', timeout_s=BACK_S):.1f} s")
    assert running(space, "writers") == first


@pytest.mark.soak
def test_no_record_was_lost_or_doubled(space: pods.Space, first: dict[str, str]) -> None:
    """By content, as the NAS itself has it."""
    for version in VERSIONS:
        space.run("writers", "touch /data/stop", container=version)
    for version in VERSIONS:
        wait = "until [ -s /data/written ]; do sleep 1; done; cat /data/written"
        count = int(space.say("writers", wait, container=version))
        assert count >= 4, "two before the outage and two after it, at the least"
        for kind in KINDS:
            assert (directory(space.lab, "writers", version) / kind).read_bytes() == records(count)
    assert node_can_lock(space, "writers")
    assert running(space, "writers") == first
    space.delete("writers", wait=False)


@pytest.fixture(scope="module")
def rebooted(space: pods.Space) -> dict[str, str]:
    """The containers that wrote when the NAS was killed and started anew, as they are after it
    serves again; the lock of the one of version 4 was held before.
    """
    before = started(space, "doomed")
    progress(space.lab, "doomed", timeout_s=PROGRESS_S)
    assert not node_can_lock(space, "doomed")
    nas = space.lab.nas
    nas.stop()
    nas.start(grace=True)
    print(f"back after {progress(space.lab, 'doomed', timeout_s=BACK_S):.1f} s")
    return before


def test_a_new_boot_of_the_nas_is_survived_over_version_3(
    space: pods.Space, rebooted: dict[str, str]
) -> None:
    assert running(space, "doomed")["three"] == rebooted["three"]


def test_a_new_boot_of_the_nas_gives_back_what_was_held(
    space: pods.Space, rebooted: dict[str, str]
) -> None:
    """Version 4 reclaims its open file and its lock in the server's grace period."""
    assert running(space, "doomed")["four"] == rebooted["four"]
    assert not node_can_lock(space, "doomed")


def test_deletion_with_a_dead_nas_ends_in_time_and_names_the_volumes(
    space: pods.Space, rebooted: dict[str, str]
) -> None:
    """Another pod of the node ends meanwhile."""
    nas = space.lab.nas
    uid = space.uid("doomed")
    space.apply(pod("bystander", container("one")))
    waiting.ready(space, "bystander")
    progress(space.lab, "doomed", timeout_s=PROGRESS_S)
    nas.fail(nas.address, Failure.DROPPED)
    try:
        assert_stalled(space.lab, "doomed", for_s=5)
        before = written(space.lab, "doomed")
        begun = time.monotonic()
        space.delete("doomed", wait=False)
        space.delete("bystander")
        assert "deletionTimestamp" in space.get("doomed")["metadata"]
        space.delete("doomed")
        took = time.monotonic() - begun
        print(f"gone after {took:.1f} s of at most {END_S}")
        assert took < END_S
        assert space.mounts(uid) == []
        for version in VERSIONS:
            waiting.event(
                space,
                "doomed",
                f"^{nas.address}:{path('doomed', version)}: .*not done within",
                reason="NASVolumeNotFlushed",
                timeout_s=waiting.EVENT_S,
            )
    finally:
        nas.unblock()
    for (version, kind), count in written(space.lab, "doomed").items():
        assert count >= before[version, kind]
        content = (directory(space.lab, "doomed", version) / kind).read_bytes()
        assert content == records(count)[: len(content)]
