"""kubelet, containerd and the CSI driver restarted, each while pods are in every state of their
life: one boots its sandbox, one gets its container, one runs, in one a container restarts, others
end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.node import nas_client, pods, traces, waiting
from tests.node.csi_driver import SOAK, UNIT
from tests.node.pods import PASSTHROUGH, container, pod

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

pytestmark = pytest.mark.soak

# What is restarted at once. The pods of a round are started by what came of the one before.
ALL = f"{UNIT} kubelet containerd"
SOME = [UNIT, "kubelet", "containerd", f"{UNIT} kubelet", "containerd kubelet"]
ROUNDS = [*SOME, ALL] if SOAK else [ALL]
EXITS = "trap 'exit $(cat /data/status)' TERM; while :; do sleep 3600 & wait $!; done"
# Ends when it is told to by a file on the NAS, so that the pod is ending for as long as it takes.
ENDS_LATE = (
    "trap 'until [ -e /data/go ]; do sleep 1; done; echo $HOSTNAME >> /data/ended; exit 0' TERM; "
    "while :; do sleep 3600 & wait $!; done"
)
RECORD = (
    "n=0; while :; do n=$((n + 1)); echo $n >> /data/records; sync /data/records; echo $n;"
    " sleep 1; done"
)
GRACE_S = 300
STATE_S = 480

# Restarts the services in the first argument once a sandbox of the pods behind it boots while
# another one's container is being created; with a signal to the container in the second just
# before. Prints who was in which state.
RESTART_AMID = """
import json, subprocess, sys, time
from pathlib import Path

services, container, deadline_s, *uids = sys.argv[1:]
deadline = time.monotonic() + float(deadline_s)
states = {}
while sorted(states.values()) != ["booting", "creating"]:
    if time.monotonic() > deadline:
        sys.exit(f"the pods were not in their states: {states}")
    time.sleep(0.05)
    for path in Path("/run/kangaroo/sandboxes").glob("*/state.json"):
        try:
            state = json.loads(path.read_text())
        except FileNotFoundError:
            continue
        if state["pod_uid"] in uids:
            states[state["pod_uid"]] = "creating" if state["containers"] else "booting"
kill = ["ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGTERM", container]
subprocess.run(kill, check=True)
subprocess.run(["systemctl", "restart", *services.split()], check=True)
print(json.dumps(states))
"""


def short_lived(name: str) -> pods.Document:
    return pod(
        name,
        container("one", ENDS_LATE, mounts={"/data": "nas"}),
        annotations=PASSTHROUGH,
        volumes=[pods.claim("nas")],
        terminationGracePeriodSeconds=GRACE_S,
    )


@pytest.fixture(scope="module")
def directory(lab: Lab) -> Path:
    where: Path = lab.nas.root / "csi" / "services"
    where.mkdir(exist_ok=True)
    where.chmod(0o777)
    for left in where.iterdir():
        left.unlink()
    return where


@pytest.fixture(scope="module")
def space(lab: Lab, directory: Path) -> Iterator[pods.Space]:
    """A pod that runs through all rounds, and one that ends in the first."""
    data = {"/data": "nas"}
    # What one client writes the others look up at once.
    options = "noresvport,nolock,actimeo=1"
    with pods.opened(lab, "services") as space:
        space.apply(
            *space.nas("nas", path="/csi/services", options=options),
            pod(
                "steady",
                container("writer", RECORD, mounts=data),
                container("two", EXITS, mounts=data),
                annotations=PASSTHROUGH,
                volumes=[pods.claim("nas")],
            ),
            short_lived("early"),
        )
        waiting.ready(space, "steady", "early", timeout_s=2 * waiting.START_S)
        yield space
        tell(space, "touch go")  # those that a failed round left ending


def tell(space: pods.Space, script: str) -> None:
    nas_client.run_on(space.node, f"{space.lab.nas.address}:/csi/services", script)


def last_logged(space: pods.Space) -> int:
    said = space.kubectl("logs", "steady", "--container", "writer", "--tail=1").stdout
    return int(said)


def restart_amid(space: pods.Space, services: str, *starting: str) -> None:
    """Restart services while the two pods start and a container of the steady one ends."""
    uids = [space.uid(name) for name in starting]
    ending = space.container_id("steady", "two")
    argv = ["python3", "-c", RESTART_AMID, services, ending, str(STATE_S), *uids]
    said = space.node.exec(argv, timeout_s=STATE_S + 120).stdout
    assert set(json.loads(said)) == set(uids)


@pytest.mark.parametrize("number", range(len(ROUNDS)), ids=lambda n: ROUNDS[n].replace(" ", "+"))
def test_services_restart(space: pods.Space, directory: Path, number: int) -> None:
    node = space.node
    ending = [name for name in names(space) if name != "steady"]
    before = {name: (space.sandbox(space.uid(name)), space.uid(name)) for name in ending}
    steady = space.sandbox(space.uid("steady"))
    two = space.status("steady", "two")["containerID"]
    status = 3 + number
    tell(space, f"echo {status} > status")
    space.delete(*ending, wait=False)
    starting = [f"round-{number}-{which}" for which in "ab"]
    space.apply(*map(short_lived, starting))

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(waiting.ended, space, "steady", "two", status)
        restart_amid(space, ROUNDS[number], *starting)
        written = last_written(directory)
        # How a container ended is known though nobody was there to hear it.
        ended.result()

    waiting.ready(space, *starting)
    for name in ("steady", *starting):
        assert space.say(name, "mount | grep /data | grep -c nfs") == "1"
    assert space.nfs_mounts("steady", *starting) == []
    # The one that ran went on: the same sandbox, no record lost, its log goes on.
    assert space.sandbox(space.uid("steady")) == steady
    assert space.status("steady", "writer")["restartCount"] == 0
    assert last_logged(space) > written
    assert last_written(directory) > written
    metrics = ["ctr", "--namespace", "k8s.io", "tasks", "metrics"]
    assert "memory" in node.exec([*metrics, space.container_id("steady", "writer")]).stdout
    waiting.replaced(space, "steady", "two", two)

    # Those that were ending still are, and end once they can.
    assert set(names(space)) == {"steady", *starting, *ending}
    tell(space, "touch go")
    gone = [f"pod/{name}" for name in ending]
    space.kubectl(
        "wait", "--for=delete", f"--timeout={waiting.STOP_S}s", *gone, timeout_s=waiting.STOP_S + 30
    )
    tell(space, "rm go")
    assert set(ending) <= set((directory / "ended").read_text().split())
    for sandbox, uid in before.values():
        assert traces.of(node, sandbox, uid) == ""
    alive = {space.sandbox(space.uid(name)) for name in ("steady", *starting)}
    assert traces.sandboxes(node) == alive


def names(space: pods.Space) -> list[str]:
    return [
        name.removeprefix("pod/")
        for name in space.kubectl("get", "pods", "--output=name").stdout.split()
    ]


def last_written(directory: Path) -> int:
    return int((directory / "records").read_text().split()[-1])
