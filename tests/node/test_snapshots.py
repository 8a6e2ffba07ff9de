"""Claims made from a snapshot and from another claim, through the CSI project's snapshotter."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.node import nas_client, pods, sidecars, waiting
from tests.node.pods import PASSTHROUGH, container, pod

from kangaroo_lab import artefacts, manifests

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

pytestmark = pytest.mark.soak

CHECKOUT = Path(__file__).parents[2]
CLASS = CHECKOUT / "examples/storageclass.yaml"
EXAMPLE = CHECKOUT / "examples/snapshot.yaml"
SNAPSHOT_CONTROLLER = Path(__file__).with_name("snapshot-controller.yaml")
DEFINED_S = 60
READY_S = 180


@pytest.fixture(scope="module")
def controller(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The definitions of snapshots, the cluster's controller of them, and the sidecars."""
    definitions = [f"--filename={path}" for path in artefacts.snapshot_crds()]
    lab.kubectl("apply", "--server-side", *definitions)
    established = ["wait", "--for=condition=Established", f"--timeout={DEFINED_S}s"]
    lab.kubectl(*established, *definitions, timeout_s=DEFINED_S + 30)
    # Not before: a snapshotter that finds no definitions looks for them less and less often.
    request.getfixturevalue("provisioner")
    with sidecars.applied(lab, SNAPSHOT_CONTROLLER, "deployment/snapshot-controller"):
        yield lab
    lab.kubectl("delete", *definitions, "--timeout=120s", timeout_s=150)


@pytest.fixture(scope="module")
def space(controller: Lab) -> Iterator[pods.Space]:
    """A namespace with the examples' class and claim, and something in the claim."""
    with pods.opened(controller, "snapshots") as space:
        text = manifests.fill(CLASS.read_text(), controller.nas.address)
        space.kubectl("apply", "-f", "-", stdin=text.replace("archive", "delete"))
        sidecars.bound(space, "data")
        yield space
        # While the controllers run that the finalizers wait for.
        space.kubectl("delete", "volumesnapshot", "--all", timeout_s=READY_S)
        space.kubectl("delete", "persistentvolumeclaim", "--all", timeout_s=READY_S)
        mine = 'jsonpath={.items[?(@.spec.storageClassName=="nas")].metadata.name}'
        names = controller.kubectl("get", "persistentvolume", f"--output={mine}").stdout.split()
        if names:
            gone = ["wait", "--for=delete", f"--timeout={READY_S}s", "persistentvolume"]
            controller.kubectl(*gone, *names, timeout_s=READY_S + 30)
    controller.kubectl("delete", "volumesnapshotclass", "nas")
    controller.kubectl("delete", "storageclass", "nas")
    own = controller.nas.root / "csi/.kangaroo"
    assert list((own / "snapshots").iterdir()) == []
    assert list((own / "making").iterdir()) == []
    shutil.rmtree(controller.nas.root / "csi" / space.name)


def test_a_claim_is_made_from_a_snapshot_and_from_a_claim(space: pods.Space) -> None:
    """As the example has them; a pod in a sandbox then reads what was there when."""
    node, data = space.node, f"{space.lab.nas.address}:/csi/{space.name}/data"
    nas_client.run_on(
        node, data, "mkdir directory; echo before > directory/file; ln -s directory/file link"
    )
    snapshot, *claims = EXAMPLE.read_text().split("---\n")[1:]
    class_text = EXAMPLE.read_text().split("---\n")[0]
    space.kubectl("apply", "-f", "-", stdin=f"{class_text}---\n{snapshot}")
    until = ["wait", "--for=jsonpath={.status.readyToUse}=true", f"--timeout={READY_S}s"]
    space.kubectl(*until, "volumesnapshot/data", timeout_s=READY_S + 30)
    nas_client.run_on(node, data, "echo after > directory/file")
    space.kubectl("apply", "-f", "-", stdin="---\n".join(claims))
    for claim in ("restored", "cloned"):
        sidecars.bound(space, claim)
    mounts = {"/restored": "restored", "/cloned": "cloned"}
    volumes = [pods.claim("restored"), pods.claim("cloned")]
    reader = pod(
        "reader", container("one", mounts=mounts), volumes=volumes, annotations=PASSTHROUGH
    )
    space.apply(reader)
    waiting.ready(space, "reader")
    assert space.say("reader", "cat /restored/link /cloned/link") == "before\nafter"
    space.delete("reader")
