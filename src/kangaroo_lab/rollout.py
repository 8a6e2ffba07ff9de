"""Rolling Deployments out and back on the lab's cluster, with deadlines and with what a reader
needs on failure.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kangaroo.errors import DeadlineExceeded, KangarooError
from kangaroo_lab.manifests import Manifest

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

# An emulated node starts a sandbox in tens of seconds; two at a time on one vCPU take longer.
ROLLOUT_TIMEOUT_S = 900.0
REMOVAL_TIMEOUT_S = 420.0


class RolloutFailed(DeadlineExceeded):
    """A Deployment did not become ready in time. `diagnosis` is what the cluster says about its
    pods.
    """

    def __init__(self, deployment: str, detail: str, diagnosis: str) -> None:
        super().__init__(f"deployment {deployment} did not roll out: {detail}")
        self.diagnosis = diagnosis


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that is ready, as the cluster knows it."""

    name: str
    uid: str
    node: str
    address: str
    container: str  # the first
    namespace: str = "default"


def apply(lab: Lab, *manifests: Manifest) -> None:
    """Create or update these objects."""
    lab.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)}))


def wait(
    lab: Lab,
    deployment: str,
    *,
    app: str,
    replicas: int = 1,
    timeout_s: float = ROLLOUT_TIMEOUT_S,
) -> tuple[Pod, ...]:
    """Watch until so many replicas are ready; the pods then. Raises RolloutFailed with their
    description.

    Not `kubectl rollout status`: that gives up at the Deployment's own progress deadline.
    """
    done = lab.kubectl(
        "wait",
        f"deployment/{deployment}",
        f"--for=jsonpath={{.status.readyReplicas}}={replicas}",
        f"--timeout={int(timeout_s)}s",
        timeout_s=timeout_s + 30,
        check=False,
    )
    if done.status != 0:
        detail = (done.stderr or done.stdout).strip().splitlines()
        raise RolloutFailed(deployment, detail[-1] if detail else "no answer", diagnose(lab, app))
    return pods(lab, app)


def scale(lab: Lab, deployment: str, *, app: str, replicas: int) -> tuple[Pod, ...]:
    """Scale and wait: up until all are ready, down until the pods are gone."""
    before = {pod.name for pod in pods(lab, app)}
    lab.kubectl("scale", f"deployment/{deployment}", f"--replicas={replicas}")
    if replicas == 0:
        await_gone(lab, app)
        return ()
    running = wait(lab, deployment, app=app, replicas=replicas)
    if len(running) > replicas or len(before) > replicas:
        await_count(lab, app, replicas)
    return pods(lab, app)


def delete(lab: Lab, *deployments: str) -> None:
    """Delete these Deployments and wait until their pods are gone. Absent ones are fine."""
    lab.kubectl(
        "delete",
        *(f"deployment/{name}" for name in deployments),
        "--ignore-not-found",
        "--cascade=foreground",
        f"--timeout={int(REMOVAL_TIMEOUT_S)}s",
        timeout_s=REMOVAL_TIMEOUT_S + 30,
    )


def await_gone(lab: Lab, app: str) -> None:
    """Watch until no pod with this label is left. Raises KangarooError when some stay."""
    if not _names(lab, app):
        return
    done = lab.kubectl(
        "wait",
        "--for=delete",
        "pod",
        "-l",
        f"app={app}",
        f"--timeout={int(REMOVAL_TIMEOUT_S)}s",
        timeout_s=REMOVAL_TIMEOUT_S + 30,
        check=False,
    )
    left = _names(lab, app)
    if left:
        raise KangarooError(f"pods {', '.join(left)} were not removed: {done.stderr.strip()}")


def await_count(lab: Lab, app: str, count: int) -> None:
    """Wait until surplus pods are gone: each is waited for by name."""
    deadline = time.monotonic() + REMOVAL_TIMEOUT_S
    while (leaving := _terminating(lab, app)) and time.monotonic() < deadline:
        lab.kubectl(
            "wait",
            "--for=delete",
            *(f"pod/{name}" for name in leaving),
            f"--timeout={int(REMOVAL_TIMEOUT_S)}s",
            timeout_s=REMOVAL_TIMEOUT_S + 30,
            check=False,
        )
    if (left := len(_names(lab, app))) != count:
        raise KangarooError(f"{left} pods of {app} are left, not {count}")


def pods(lab: Lab, app: str) -> tuple[Pod, ...]:
    """The ready pods with this label that nobody has asked to go, by name."""
    return parse_pods(lab.kubectl("get", "pods", "-l", f"app={app}", "-o", "json").stdout)


def parse_pods(text: str) -> tuple[Pod, ...]:
    """The ready pods in what `kubectl get pods -o json` printed."""
    ready = [item for item in json.loads(text)["items"] if _is_ready(item)]
    return tuple(sorted((_pod(item) for item in ready), key=lambda pod: pod.name))


def diagnose(lab: Lab, app: str) -> str:
    """What the cluster says about pods that do not come up: their description, then the recent
    events.
    """
    described = lab.kubectl("describe", "pods", "-l", f"app={app}", check=False).stdout
    events = lab.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False).stdout
    tail = "\n".join(events.splitlines()[-25:])
    return f"{described.strip()}\n\nRecent events\n{tail}"


def _terminating(lab: Lab, app: str) -> list[str]:
    listed = json.loads(lab.kubectl("get", "pods", "-l", f"app={app}", "-o", "json").stdout)
    return [
        item["metadata"]["name"]
        for item in listed["items"]
        if item["metadata"].get("deletionTimestamp")
    ]


def _names(lab: Lab, app: str) -> list[str]:
    listed = lab.kubectl("get", "pods", "-l", f"app={app}", "-o", "name").stdout
    return [line.removeprefix("pod/") for line in listed.split()]


def _is_ready(item: dict[str, Any]) -> bool:
    """Every container is ready. The phase says Running also of a pod whose container has died."""
    statuses = item["status"].get("containerStatuses", [])
    leaving = "deletionTimestamp" in item["metadata"]
    return bool(statuses) and not leaving and all(one["ready"] for one in statuses)


def _pod(item: dict[str, Any]) -> Pod:
    return Pod(
        name=item["metadata"]["name"],
        uid=item["metadata"]["uid"],
        node=item["spec"]["nodeName"],
        address=item["status"].get("podIP", ""),
        container=item["spec"]["containers"][0]["name"],
        namespace=item["metadata"]["namespace"],
    )
