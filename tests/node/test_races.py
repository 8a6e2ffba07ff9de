"""Pods created and deleted in random order with random kills of every part: everything at once.

Each round prints its seed; `KANGAROO_SEED=…` repeats it as the first one. With KANGAROO_SOAK=1 in
full counts.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.node import invariants, pods, probe, race_plan
from tests.node.csi_driver import SOAK
from tests.node.race import Race

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

SIZE = race_plan.Size(pods=30, alive=6, kills=24) if SOAK else race_plan.Size(3, 2, 2)
ROUNDS = 10 if SOAK else 1
ROUND_S = 7200 if SOAK else 2400

_NOBODY = "0badc0de" * 8
_NO_POD = "00000000-0000-4000-8000-000000000000"
_SCOPE = f"/sys/fs/cgroup/kubepods.slice/cri-containerd-{_NOBODY}.scope"
_VOLUMES = f"{probe.KUBELET_PODS}/{_NO_POD}/volumes/kubernetes.io~csi"
_ADDRESSES = f"{probe.CNI}/networks/planted"
# One of each kind that a sandbox may leave.
PLANT = f"""
ip tuntap add dev kangaroo0 mode tap
ip netns add cni-planted
mkdir -p /run/kangaroo/sandboxes/{_NOBODY} {_SCOPE}
mkdir -p {_VOLUMES}/nas/mount {_VOLUMES}/three/mount /run/containerd/s
mount -t tmpfs kangaroo-nas {_VOLUMES}/nas/mount
touch /run/containerd/s/planted
mount -t nfs -o vers=3,nolock "$1:/csi" {_VOLUMES}/three/mount
mkdir {probe.TASKS}/{_NOBODY} {_ADDRESSES}
echo {_NOBODY} > {_ADDRESSES}/192.0.2.1
systemd-run --unit kangaroo-planted --collect sh -c "sleep infinity; true" {_NOBODY}
"""
UPROOT = f"""
umount {_VOLUMES}/nas/mount {_VOLUMES}/three/mount || exit
ip tuntap del dev kangaroo0 mode tap
ip netns delete cni-planted
rmdir /run/kangaroo/sandboxes/{_NOBODY} {_SCOPE}
rm -r {probe.TASKS}/{_NOBODY} {_ADDRESSES}
rm -r --one-file-system {probe.KUBELET_PODS}/{_NO_POD}
rm /run/containerd/s/planted
systemctl stop kangaroo-planted
"""


@pytest.fixture
def directory(lab: Lab) -> Iterator[Path]:
    """A new directory beneath /csi, as the NAS itself sees it."""
    path: Path = lab.nas.root / "csi" / f"races-{secrets.token_hex(4)}"
    path.mkdir()
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def space(lab: Lab, directory: Path) -> Iterator[pods.Space]:
    with pods.opened(lab, "races") as space:
        path = f"/csi/{directory.name}"
        space.apply(
            *space.nas("three", path=path),
            *space.nas("four", path=path, vers="4.1", options="noresvport"),
        )
        yield space


def test_what_nobody_owns_is_found(lab: Lab) -> None:
    """The invariants are worth what they find."""
    node = lab.nodes["node1"]
    before = invariants.look(lab, node)
    try:
        node.exec(["sh", "-c", PLANT, "sh", lab.nas.address])
        found = set(invariants.look(lab, node)) - set(before)
    finally:
        node.exec(["sh", "-c", UPROOT])
    kinds = {each.split()[0] for each in found}
    assert kinds == {
        *("tap", "network", "state", "cgroup", "pod", "mount", "socket", "process", "bundle"),
        "address",
    }, found
    assert {"tmpfs", "nfs"} <= {each.split()[1] for each in found}
    assert set(invariants.look(lab, node)) <= set(before)


@pytest.mark.timeout(ROUND_S)
@pytest.mark.parametrize("number", range(ROUNDS))
def test_race(space: pods.Space, directory: Path, number: int) -> None:
    asked = os.environ.get("KANGAROO_SEED")
    seed = int(asked) + number if asked else secrets.randbits(32)
    print(f"KANGAROO_SEED={seed} {SIZE}")
    race = Race(space, directory, race_plan.plan(seed, SIZE))
    wrong = race.run()
    print(f"killed: {race.hits}")
    assert wrong == []
