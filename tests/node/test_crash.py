"""A part of a sandbox is killed: the pod recovers as Kubernetes promises, what was fsynced is on
the NAS, and nothing stays behind. With KANGAROO_SOAK=1 a hundred times.

A run that failed is repeated with the seed that it printed: KANGAROO_SEED.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.node import child, pods, probe, traces, unsynced, waiting
from tests.node.csi_driver import SOAK
from tests.node.pods import PASSTHROUGH, container, pod

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

PARTS = tuple(traces.PROGRAMS)
# A pod is killed so often, and then replaced.
KILLS_OF_A_POD = 3
PODS = 34 if SOAK else 1
LIFE_S = 600
RECORD_BYTES = 1000
# How many records at most are awaited before a kill, and how long after the last one it comes.
RECORDS, DELAY_S = 12, 1.5
# containerd's `delete` may leave a guest that still writes back to a cleaner.
CLEAN_S = 100

# Numbered records of the same length, each on the server before its number is told. One that goes
# on does so behind the last record on the NAS.
WRITE = f"""
trap 'exit 0' TERM
file=/data/$HOSTNAME
size=$(stat -c %s $file 2>/dev/null || echo 0)
n=$((size / {RECORD_BYTES}))
while :; do
    n=$((n + 1))
    printf '%0{RECORD_BYTES - 1}d\\n' $n |
        dd of=$file oflag=append conv=notrunc,fsync bs={RECORD_BYTES} status=none || exit 4
    echo $n
done
"""

# A shim that is killed before containerd has connected, long ago. Prints its sandbox's id.
DEAD_SHIM = f"""
set -e
id=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
bundle=$(mktemp -d)
cd "$bundle"
echo '{{}}' > config.json
containerd-shim-kangaroo-v2 -namespace k8s.io -address /run/containerd/containerd.sock \\
    -id "$id" start > address < /dev/null
directory={probe.SANDBOXES}/$id
kill -KILL "$(cat "$directory/shim.pid")"
touch --date='1 hour ago' "$directory"
cd /
rm -r "$bundle"
echo "$id"
"""


def record(number: int) -> bytes:
    return b"%0*d\n" % (RECORD_BYTES - 1, number)


@dataclass
class Victim:
    """A pod that writes records until it is killed, and goes on."""

    space: pods.Space = field(repr=False)
    directory: Path = field(repr=False)
    name: str

    def document(self) -> pods.Document:
        one = container("one", WRITE, mounts={"/data": "nas"})
        volumes = [pods.claim("nas")]
        return pod(self.name, one, annotations=PASSTHROUGH, volumes=volumes)

    def killed(self, part: str, *, records: int, delay_s: float) -> None:
        """Kill `part` of the sandbox `delay_s` after `records` records were told; see that the pod
        recovers, that what it told is on the NAS, and that nothing is left of the sandbox.
        """
        node, uid = self.space.node, self.space.uid(self.name)
        sandbox = self.space.sandbox(uid)
        assert "process" in traces.of(node, sandbox, uid), "the search finds nothing alive"
        processes = traces.processes(node, sandbox, part)
        assert processes, f"no {part} for sandbox {sandbox}"
        namespaces = traces.network_namespaces(node)
        with self.outlived(records):
            time.sleep(delay_s)
            node.exec(["kill", "-KILL", *processes])
        assert self.space.sandbox(uid) != sandbox
        assert traces.of_sandbox(node, sandbox, within_s=CLEAN_S) == ""
        assert len(traces.network_namespaces(node)) == len(namespaces)

    @contextlib.contextmanager
    def outlived(self, records: int) -> Iterator[None]:
        """Wait until `records` records were told; the block then ends the container. It comes back,
        with its volume in the guest, and what was told is on the NAS.
        """
        ending = self.space.status(self.name, "one")["containerID"]
        argv = self.space.argv("logs", "--follow", f"--tail={records}", self.name)
        with child.started(argv) as log:
            said = log.lines(timeout_s=LIFE_S)
            told = [int(line) for line in itertools.islice(said, records)]
            yield
            waiting.replaced(self.space, self.name, "one", ending)
            log.terminate()
            told += map(int, said)
        assert told, f"{self.name} tells of no record"
        assert told == list(range(told[0], told[0] + len(told))), (self, told)
        self.check(told[-1])
        assert self.space.say(self.name, "mount | grep /data | grep -c nfs") == "1"

    def check(self, told: int) -> None:
        """The file on the NAS itself holds every record once, in order, up to `told` at least."""
        content = (self.directory / self.name).read_bytes()
        whole = len(content) // RECORD_BYTES
        assert whole >= told, self
        # The one that is being appended now may be there in part.
        expected = b"".join(map(record, range(1, whole + 2)))
        assert expected.startswith(content), self

    def end(self) -> None:
        """Delete the pod: nothing is left of it."""
        node, uid = self.space.node, self.space.uid(self.name)
        sandbox = self.space.sandbox(uid)
        self.space.delete(self.name)
        assert traces.of(node, sandbox, uid) == ""


@pytest.fixture(scope="module")
def directory(lab: Lab) -> Path:
    where: Path = lab.nas.root / "csi" / "crash"
    where.mkdir(exist_ok=True)
    where.chmod(0o777)
    return where


@pytest.fixture(scope="module")
def space(lab: Lab) -> Iterator[pods.Space]:
    with pods.opened(lab, "crash") as space:
        space.apply(*space.nas("nas", path="/csi/crash"))
        yield space


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("KANGAROO_SEED", secrets.randbits(32)))
    print(f"KANGAROO_SEED={seed}")
    return random.Random(seed)


def start(space: pods.Space, directory: Path, name: str) -> Victim:
    """A new victim, which writes from its first record on."""
    victim = Victim(space, directory, name)
    (directory / name).unlink(missing_ok=True)
    space.apply(victim.document())
    waiting.ready(space, name)
    return victim


def unsynced_pod(space: pods.Space, directory: Path, name: str, **spec: Any) -> str:
    """A new pod that has written a file of its name, and not synced it; the file's SHA-256."""
    (directory / name).unlink(missing_ok=True)
    one = container("one", mounts={"/data": "nas"})
    volumes = [pods.claim("nas")]
    space.apply(pod(name, one, annotations=PASSTHROUGH, volumes=volumes, **spec))
    waiting.ready(space, name)
    return unsynced.write(space, name, f"/data/{name}", directory / name)


def kill(victim: Victim, part: str, chance: random.Random) -> None:
    records, delay_s = chance.randint(1, RECORDS), chance.uniform(0, DELAY_S)
    print(f"{victim.name}: {part} killed {delay_s:.2f} s after {records} records")
    victim.killed(part, records=records, delay_s=delay_s)


@pytest.fixture(scope="module")
def victim(space: pods.Space, directory: Path) -> Iterator[Victim]:
    """One for all parts: its container restarts for each, and for the node."""
    victim = start(space, directory, "victim")
    yield victim
    victim.end()


@pytest.mark.timeout(LIFE_S * (len(PARTS) + 1))
def test_killed_parts(victim: Victim, chance: random.Random) -> None:
    for part in chance.sample(PARTS, len(PARTS)):
        kill(victim, part, chance)


@pytest.mark.parametrize("part", ["shim", "virtiofsd"])
def test_without_its_shim_or_virtiofsd_a_guest_writes_back(
    space: pods.Space, directory: Path, part: str
) -> None:
    """And then ends."""
    name, node = f"without-{part}", space.node
    expected = unsynced_pod(space, directory, name, restartPolicy="Never")
    sandbox = space.sandbox(space.uid(name))
    node.exec(["kill", "-KILL", *traces.processes(node, sandbox, part)])
    assert traces.of_sandbox(node, sandbox, within_s=CLEAN_S) == ""
    assert pods.sha256((directory / name).read_bytes()) == expected
    space.delete(name)


@pytest.mark.timeout(3 * LIFE_S)
def test_node_reset(lab: Lab, victim: Victim) -> None:
    """The node loses its power, and boots again.

    What the CNI library keeps of a pod's network is put on the disk first. It does not do so
    itself, and of a pod as young as this one an empty file would stay, for which containerd stops
    no sandbox any more (containernetworking/cni#1055).
    """
    node, uid = victim.space.node, victim.space.uid(victim.name)
    sandbox = victim.space.sandbox(uid)
    namespaces = traces.network_namespaces(node)
    node.exec(["sh", "-c", "sync /var/lib/cni/results/* /var/lib/cni/networks/*/*"])
    with victim.outlived(RECORDS), lab.powered_off(node.name):
        pass
    assert traces.of_sandbox(node, sandbox, within_s=CLEAN_S) == ""
    assert traces.sandboxes(node) == {victim.space.sandbox(uid)}
    # Whoever else has pods here finds them as they were.
    elsewhere = ["--all-namespaces", "--all", "--for=condition=Ready", f"--timeout={LIFE_S}s"]
    lab.kubectl("wait", "pod", *elsewhere, timeout_s=LIFE_S + 30)
    assert len(traces.network_namespaces(node)) == len(namespaces)


@pytest.mark.soak
@pytest.mark.timeout(3 * LIFE_S)
def test_node_shutdown(lab: Lab, space: pods.Space, directory: Path) -> None:
    """systemd takes the node down: what a pod has not synced is on the NAS before the node is off.
    It comes back with its volume.
    """
    expected = unsynced_pod(space, directory, "shut-down")
    ending = space.status("shut-down", "one")["containerID"]
    with lab.powered_off(space.node.name, orderly=True):
        assert pods.sha256((directory / "shut-down").read_bytes()) == expected
    waiting.replaced(space, "shut-down", "one", ending)
    assert space.say("shut-down", "mount | grep /data | grep -c nfs") == "1"
    space.delete("shut-down")


@pytest.mark.soak
@pytest.mark.timeout(PODS * (KILLS_OF_A_POD + 1) * LIFE_S)
def test_random_kills(space: pods.Space, directory: Path, chance: random.Random) -> None:
    killed = dict.fromkeys(PARTS, 0)
    for number in range(PODS):
        victim = start(space, directory, f"random-{number}")
        for _ in range(KILLS_OF_A_POD):
            part = chance.choice(PARTS)
            kill(victim, part, chance)
            killed[part] += 1
        victim.end()
    print(f"parts killed: {killed}")


@pytest.mark.soak
def test_a_pod_that_must_not_restart_fails(space: pods.Space) -> None:
    one = container("one", mounts={"/data": "nas"})
    volumes = [pods.claim("nas")]
    once = pod("once", one, annotations=PASSTHROUGH, volumes=volumes, restartPolicy="Never")
    space.apply(once)
    waiting.ready(space, "once")
    uid = space.uid("once")
    sandbox = space.sandbox(uid)
    space.node.exec(["kill", "-KILL", *traces.processes(space.node, sandbox, "qemu")])
    waiting.phase(space, "once", "Failed")
    assert space.status("once", "one")["state"]["terminated"]["exitCode"] == 255
    space.delete("once")
    assert traces.of(space.node, sandbox, uid) == ""


@pytest.mark.soak
def test_deletion_leaves_nothing(space: pods.Space, directory: Path) -> None:
    """Neither on the node nor, of what was written without fsync, in the guest. Meanwhile the pod's
    shim takes away what one left that died before it served.
    """
    node = space.node
    dead = node.exec(["sh", "-c", DEAD_SHIM]).stdout.strip()
    assert dead in traces.of(node, dead, dead)
    before = traces.network_namespaces(node)
    expected = unsynced_pod(space, directory, "whole")
    uid = space.uid("whole")
    sandbox = space.sandbox(uid)
    shown = traces.of(node, sandbox, uid)
    for mark in ("process", "mount", "/sys/fs/cgroup", "/run/kangaroo"):
        assert mark in shown
    assert traces.network_namespaces(node) - before
    assert traces.of_sandbox(node, dead, within_s=CLEAN_S) == ""
    space.delete("whole")
    assert traces.of(node, sandbox, uid) == ""
    assert traces.network_namespaces(node) == before
    assert pods.sha256((directory / "whole").read_bytes()) == expected
