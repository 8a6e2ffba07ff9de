"""The CSI project's sidecars in the lab, as `deploy/` has them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.node import pods

from kangaroo_lab import artefacts

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

CONTROLLER = Path(__file__).parents[2] / "deploy/kubernetes/provisioning/controller.yaml"
DEPLOYMENT = "deployment/kangaroo-csi-controller"
SYSTEM = "--namespace=kube-system"
IMPORT_S = 300
# The images' first start on an emulated processor, and the election of a leader.
ROLLOUT_S = 600
# The sidecars' back-off after a failure counts, too.
BOUND_S = 300


@contextlib.contextmanager
def deployed(lab: Lab) -> Iterator[None]:
    """The controller while the block runs; only where the API server is has to be said, for the
    lab has no kube-proxy.
    """
    node = lab.nodes["node1"]
    for image in artefacts.sidecar_images():
        remote = f"/var/tmp/{image.name}"
        node.copy_to(image, remote)
        importing = ["ctr", "--namespace", "k8s.io", "images", "import", "--local", remote]
        node.exec(importing, timeout_s=IMPORT_S)
        node.exec(["rm", remote])
    with applied(lab, CONTROLLER, DEPLOYMENT):
        yield


@contextlib.contextmanager
def applied(lab: Lab, manifest: Path, deployment: str) -> Iterator[None]:
    """A manifest with a deployment in it, until the block ends."""
    lab.kubectl("apply", "--server-side", "-f", str(manifest))
    host, _, port = lab.control_plane.server.removeprefix("https://").partition(":")
    where = [f"KUBERNETES_SERVICE_HOST={host}", f"KUBERNETES_SERVICE_PORT={port}"]
    try:
        lab.kubectl(SYSTEM, "set", "env", deployment, *where)
        rollout(lab, deployment)
        yield
    finally:
        lab.kubectl("delete", "-f", str(manifest), "--timeout=120s", timeout_s=150)


def rollout(lab: Lab, deployment: str = DEPLOYMENT) -> None:
    waited = ["rollout", "status", deployment, f"--timeout={ROLLOUT_S}s"]
    lab.kubectl(SYSTEM, *waited, timeout_s=ROLLOUT_S + 30)


def bound(space: pods.Space, claim: str) -> None:
    until = ["wait", "--for=jsonpath={.status.phase}=Bound", f"--timeout={BOUND_S}s"]
    space.kubectl(*until, f"persistentvolumeclaim/{claim}", timeout_s=BOUND_S + 30)
