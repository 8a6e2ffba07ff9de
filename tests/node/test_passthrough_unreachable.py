"""The guest cannot reach the NAS, or only now and then: what the pod is told, who has the mount.

Other causes are in test_bad_input.py (an export that refuses the guest, a name that nobody
resolves) and in test_passthrough.py (the fallback from such an export).
"""

from __future__ import annotations

import os
import random
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.node import pods, runtime_toml, waiting
from tests.node.csi_driver import SOAK
from tests.node.pods import PASSTHROUGH, container, pod

from kangaroo_lab.network import NAS_HOST_NAME

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

# nas_mount_timeout_s: the default, or one that leaves `make test` some time.
MOUNT_S = 60 if SOAK else 15
FLAPS = 20 if SOAK else 1
# The network is bad for so long at most; kubelet's next try may be minutes away.
FLAPPING_S = 60 if SOAK else 40
# How many packets of a hundred are lost, for how long.
LOSSES, SLOT_S = (0, 30, 60, 100), (0.1, 1.5)
PATH = "/csi/unreachable"
SANDBOX = "FailedCreatePodSandBox"  # kubelet's, which then tries again


def one(
    name: str,
    *containers: str,
    annotations: dict[str, str] | None = None,
    policy: str = "Always",
) -> pods.Document:
    return pod(
        name,
        *(container(each, mounts={"/data": "nas"}) for each in containers or ("one",)),
        annotations={**PASSTHROUGH, **(annotations or {})},
        volumes=[pods.claim("nas")],
        restartPolicy=policy,
    )


@pytest.fixture(scope="module")
def directory(lab: Lab) -> Path:
    where: Path = lab.nas.root / PATH[1:]
    where.mkdir(exist_ok=True)
    where.chmod(0o777)
    (where / "before").write_text("was there\n")
    return where


@pytest.fixture(scope="module")
def space(lab: Lab, directory: Path) -> Iterator[pods.Space]:
    with (
        runtime_toml.with_keys(lab.nodes["node1"], nas_mount_timeout_s=MOUNT_S),
        pods.opened(lab, "unreachable") as space,
    ):
        try:
            yield space
        finally:
            lab.nas.unblock()


@pytest.fixture(scope="module")
def blocked(space: pods.Space) -> pods.Space:
    """Two pods start, one of them with a fallback, while no packet passes between pods and the
    NAS. Nodes pass.
    """
    network = space.lab.shape.network
    space.lab.nas.block([network.node_pods(space.node.index)])
    space.apply(
        *space.nas("nas", server=NAS_HOST_NAME, path=PATH),
        one("waiting", policy="Never"),
        one("fallen", "one", "two", annotations={pods.FALLBACK: "virtiofs"}),
    )
    return space


def fstypes(space: pods.Space, name: str, container: str, path: str = "/data") -> list[str]:
    """What is mounted on `path`, by the container's own mount table."""
    table = space.say(name, "cat /proc/mounts", container=container).splitlines()
    return [fields[2] for fields in map(str.split, table) if fields[1] == path]


def test_a_guest_without_a_way_says_so_and_the_node_keeps_the_mount(blocked: pods.Space) -> None:
    says = rf"{NAS_HOST_NAME}:{PATH} .*the guest at 10\..*ETIMEDOUT.*cannot reach the server"
    waiting.event(blocked, "waiting", says, reason=SANDBOX, timeout_s=waiting.START_S + MOUNT_S)
    (mount,) = blocked.nfs_mounts("waiting")
    assert blocked.node.exec(["cat", f"{mount.mount_point}/before"]).stdout == "was there\n"


def test_the_fallback_runs_over_virtio_fs_and_says_why(blocked: pods.Space) -> None:
    waiting.ready(blocked, "fallen")
    says = rf"virtio-fs.*{NAS_HOST_NAME}:{PATH} .*ETIMEDOUT.*cannot reach the server"
    waiting.event(
        blocked, "fallen", says, reason="NASPassthroughFallback", timeout_s=waiting.EVENT_S
    )
    for name in ("one", "two"):
        assert fstypes(blocked, "fallen", name) == ["virtiofs"]
        assert blocked.say("fallen", "cat /data/before", container=name) == "was there"
    assert len(blocked.nfs_mounts("fallen")) == 1
    fields = "involvedObject.name=fallen,reason=NASPassthroughFallback"
    told = ["get", "events", "--field-selector", fields, "--output=jsonpath={.items[*].count}"]
    assert blocked.kubectl(*told).stdout == "1", "once for both containers"


def test_when_the_way_is_free_the_waiting_pod_starts(blocked: pods.Space) -> None:
    """By a name that the guest does not need to know, and also one that must not restart. What fell
    back stays so, for its life.
    """
    blocked.lab.nas.unblock()
    waiting.ready(blocked, "waiting")
    assert fstypes(blocked, "waiting", "one") == ["nfs"]
    assert blocked.nfs_mounts("waiting") == []
    says = rf"^{NAS_HOST_NAME}:{PATH} .*in the guest.*vers=3.*addr={blocked.lab.nas.address}"
    waiting.event(blocked, "waiting", says, reason="NASVolumeInGuest", timeout_s=waiting.EVENT_S)
    blocked.run("fallen", "kill -TERM 1", container="two", check=False)
    waiting.restarted(blocked, "fallen", "two")
    assert fstypes(blocked, "fallen", "two") == ["virtiofs"]
    assert len(blocked.nfs_mounts("fallen")) == 1
    blocked.delete("waiting", "fallen")


def test_a_version_that_the_server_does_not_speak_is_named(space: pods.Space) -> None:
    nas = space.lab.nas
    try:
        nas.stop()
        nas.start(versions="3")
        four = space.nas("four", path=PATH, vers="4.1", options="noresvport")
        space.apply(
            *four,
            pod(
                "version",
                container("one", mounts={"/data": "four"}),
                annotations=PASSTHROUGH,
                volumes=[pods.claim("four")],
            ),
        )
        says = rf"{PATH} .*vers=4\.1.*does not offer this version"
        waiting.event(space, "version", says, reason="FailedMount", timeout_s=waiting.START_S)
    finally:
        nas.stop()
        nas.start()
    space.delete("version", wait=False)


@contextmanager
def flapping(lab: Lab, chance: random.Random) -> Iterator[None]:
    """In the block packets of the nodes and of their pods are lost and let through at random, for
    FLAPPING_S at most.
    """
    network = lab.shape.network
    ended = threading.Event()

    def flap() -> None:
        left_s = float(FLAPPING_S)
        while left_s > 0 and not ended.is_set():
            percent, slot_s = chance.choice(LOSSES), chance.uniform(*SLOT_S)
            if percent:
                lab.nas.block(
                    [*(n.address for n in lab.nodes.values()), network.pods], percent=percent
                )
            else:
                lab.nas.unblock()
            ended.wait(slot_s)
            left_s -= slot_s
        lab.nas.unblock()

    thread = threading.Thread(target=flap)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def boots(space: pods.Space, name: str) -> None:
    """Wait until the node has the pod's sandbox; its guest boots then, and mounts next."""
    there = f"grep --quiet '\"{name}\"' /run/kangaroo/sandboxes/*/state.json"
    script = f"until {there} 2>/dev/null; do sleep 0.2; done"
    space.node.exec(["sh", "-c", script], timeout_s=waiting.START_S)


RECORDS = b"".join(b"%d\n" % number for number in range(1, 20001))
INIT = "seq 1 20000 > /three/$HOSTNAME-3 && seq 1 20000 > /four/$HOSTNAME-4"


@pytest.mark.timeout(900 + FLAPS * waiting.START_S)
def test_a_flapping_network_loses_nothing(space: pods.Space, directory: Path) -> None:
    """Pods start while the network is bad: their volumes are taken over, and written, in it."""
    seed = int(os.environ.get("KANGAROO_SEED", secrets.randbits(32)))
    print(f"KANGAROO_SEED={seed}")
    chance = random.Random(seed)
    space.apply(
        *space.nas("flap-three", path=PATH),
        *space.nas("flap-four", path=PATH, vers="4.1", options="noresvport"),
    )
    mounts = {"/three": "flap-three", "/four": "flap-four"}
    for name in (f"flap-{number}" for number in range(FLAPS)):
        space.apply(
            pod(
                name,
                container("one", mounts=mounts),
                initContainers=[container("prepare", INIT, mounts=mounts)],
                annotations=PASSTHROUGH,
                volumes=[pods.claim("flap-three"), pods.claim("flap-four")],
            )
        )
        boots(space, name)
        with flapping(space.lab, chance):
            waiting.ready(space, name, timeout_s=2 * waiting.START_S)
        assert space.nfs_mounts(name) == []
        assert fstypes(space, name, "one", "/three") == ["nfs"]
        assert fstypes(space, name, "one", "/four") == ["nfs4"]
        for version in (3, 4):
            assert (directory / f"{name}-{version}").read_bytes() == RECORDS
        assert space.say(name, "cat /three/before /four/before") == "was there\nwas there"
        space.delete(name)
