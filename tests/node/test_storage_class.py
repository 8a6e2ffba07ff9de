"""A claim gets its volume from a StorageClass through the CSI project's sidecars, as deployed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.node import pods, sidecars, waiting
from tests.node.csi_driver import UNIT
from tests.node.pods import PASSTHROUGH, container, pod
from tests.node.sidecars import BOUND_S

from kangaroo_lab import manifests

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

pytestmark = pytest.mark.soak

CHECKOUT = Path(__file__).parents[2]
EXAMPLE = CHECKOUT / "examples/storageclass.yaml"


@pytest.fixture(scope="module")
def space(provisioner: Lab) -> Iterator[pods.Space]:
    """A namespace, and the example's class and claim in it."""
    with pods.opened(provisioner, "class") as space:
        text = manifests.fill(EXAMPLE.read_text(), provisioner.nas.address)
        space.kubectl("apply", "-f", "-", stdin=text)
        sidecars.bound(space, "data")
        yield space
    # The claims went with the namespace; their volumes go after them, while the controller runs.
    mine = 'jsonpath={.items[?(@.spec.storageClassName=="nas")].metadata.name}'
    names = provisioner.kubectl("get", "persistentvolume", f"--output={mine}").stdout.split()
    if names:
        gone = ["wait", "--for=delete", f"--timeout={BOUND_S}s"]
        provisioner.kubectl(*gone, "persistentvolume", *names, timeout_s=BOUND_S + 30)
    provisioner.kubectl("delete", "storageclass", "nas")
    shutil.rmtree(provisioner.nas.root / "csi" / space.name)


def claim(name: str, storage_class: str) -> pods.Document:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "storageClassName": storage_class,
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def test_a_sandboxed_pod_mounts_the_volume_of_its_claim(space: pods.Space) -> None:
    mounts = {"/data": "data"}
    volumes = [pods.claim("data")]
    user = pod("user", container("one", mounts=mounts), volumes=volumes, annotations=PASSTHROUGH)
    space.apply(user)
    waiting.ready(space, "user")
    own = f"{space.lab.nas.address}:/csi/{space.name}/data"
    assert f"{own} on /data type nfs" in space.say("user", "mount | grep /data | grep nfs")
    space.say("user", "echo written > /data/file")
    written = space.lab.nas.root / "csi" / space.name / "data" / "file"
    assert written.read_text() == "written\n"
    space.delete("user")


def test_a_claim_grows(space: pods.Space) -> None:
    wish = {"spec": {"resources": {"requests": {"storage": "2Gi"}}}}
    space.kubectl("patch", "persistentvolumeclaim", "data", "--patch", json.dumps(wish))
    until = [
        "wait",
        "--for=jsonpath={.status.capacity.storage}=2Gi",
        f"--timeout={BOUND_S}s",
    ]
    space.kubectl(*until, "persistentvolumeclaim/data", timeout_s=BOUND_S + 30)


def test_claims_are_met_by_a_driver_and_sidecars_that_were_restarted(space: pods.Space) -> None:
    space.node.exec(["systemctl", "restart", UNIT])
    space.kubectl("apply", "-f", "-", stdin=json.dumps(claim("after-driver", "nas")))
    sidecars.bound(space, "after-driver")
    space.lab.kubectl(sidecars.SYSTEM, "rollout", "restart", sidecars.DEPLOYMENT)
    space.kubectl("apply", "-f", "-", stdin=json.dumps(claim("after-both", "nas")))
    sidecars.rollout(space.lab)
    sidecars.bound(space, "after-both")


def test_an_unknown_parameter_is_named_to_who_asked(space: pods.Space) -> None:
    name = f"{space.name}-odd"
    odd = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": pods.DRIVER,
        "parameters": {"server": space.lab.nas.address, "path": "/csi", "regionId": "cn-1"},
    }
    space.lab.kubectl("apply", "-f", "-", input=json.dumps(odd))
    try:
        space.kubectl("apply", "-f", "-", stdin=json.dumps(claim("odd", name)))
        named = "parameters.regionId: unknown"
        waiting.event(space, "odd", named, kind="PersistentVolumeClaim", timeout_s=BOUND_S)
        space.kubectl("delete", "persistentvolumeclaim", "odd")
    finally:
        space.lab.kubectl("delete", "storageclass", name)


def test_a_deleted_claim_leaves_an_archive(space: pods.Space) -> None:
    """As the example's class says."""
    volume = space.kubectl(
        *("get", "persistentvolumeclaim", "data", "--output=jsonpath={.spec.volumeName}")
    ).stdout
    space.kubectl("delete", "persistentvolumeclaim", "data")
    gone = ["wait", "--for=delete", f"--timeout={BOUND_S}s", f"persistentvolume/{volume}"]
    space.lab.kubectl(*gone, timeout_s=BOUND_S + 30)
    place = space.lab.nas.root / "csi" / space.name
    (archived,) = (path for path in place.iterdir() if path.name.startswith("archived-data."))
    assert not (place / "data").exists()
    assert (archived / "file").read_text() == "written\n"
