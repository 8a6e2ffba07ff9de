"""One run of the bench: measure on a lab that is up."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kangaroo_lab import comparison, manifests, rollout
from kangaroo_lab.bench import imports, memory, start
from kangaroo_lab.bench.memory import Memory
from kangaroo_lab.bench.results import Results
from kangaroo_lab.bench.start import Start
from kangaroo_lab.comparison import Comparison
from kangaroo_lab.demo import describe_node, start_comparison
from kangaroo_lab.manifests import Manifest, Variant
from kangaroo_lab.rollout import Pod

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.node import Node

SANDBOX = Variant("bench-sandbox", "runv", passthrough=True)
VOLUME_KINDS = ("PersistentVolumeClaim", "PersistentVolume")


def run(
    lab: Lab, manifest: Path, *, starts: int, rounds: int, say: Callable[[str], None]
) -> Results:
    """Measure all. What it applied is deleted at the end. Raises RolloutFailed."""
    text = manifests.fill(manifest.read_text(), lab.nas.address)
    shown = lab.kubectl("create", "--dry-run=client", "-o", "json", "-f", "-", input=text).stdout
    objects = manifests.objects(shown)
    deployment = manifests.of_kind(objects, "Deployment")
    rollout.apply(lab, *(manifests.of_kind(objects, kind) for kind in VOLUME_KINDS))
    where, emulated = describe_node(lab), lab.emulated
    begun, costs = _sandboxes(lab, deployment, starts, say)
    compared = _compare(lab, deployment, rounds=rounds, where=where, emulated=emulated, say=say)
    lab.kubectl("delete", "-f", "-", "--ignore-not-found", input=text, timeout_s=300)
    say("imports, on this machine")
    entries = tuple(imports.measure(name, names) for name, names in imports.ENTRIES.items())
    return Results(where, emulated, _machine(), begun, costs, compared, entries)


def _sandboxes(
    lab: Lab, deployment: Manifest, count: int, say: Callable[[str], None]
) -> tuple[tuple[Start, ...], tuple[Memory, ...]]:
    begun: list[Start] = []
    costs: list[Memory] = []
    for number in range(count):
        say(f"sandbox start {number + 1} of {count}")
        rollout.apply(lab, manifests.variant(deployment, SANDBOX))
        (pod,) = rollout.wait(lab, SANDBOX.name, app=SANDBOX.name)
        log = _containerd_log(lab.nodes[pod.node])
        sandbox = start.sandbox_id(log, pod.name)
        begun.append(start.read(log, _shim_log(lab, pod, sandbox), pod=pod.name))
        costs.append(memory.measure(lab, pod, sandbox))
        rollout.delete(lab, SANDBOX.name)
        rollout.await_gone(lab, SANDBOX.name)
    return tuple(begun), tuple(costs)


def _compare(
    lab: Lab,
    deployment: Manifest,
    *,
    rounds: int,
    where: str,
    emulated: bool,
    say: Callable[[str], None],
) -> Comparison:
    pods = start_comparison(lab, deployment)
    compared = comparison.run(lab, pods, rounds=rounds, where=where, emulated=emulated, say=say)
    rollout.delete(lab, *(wanted.name for wanted in comparison.variants().values()))
    return compared


def _containerd_log(node: Node) -> str:
    argv = ["journalctl", "--unit=containerd", "--output=cat", "--since=-30min", "--no-pager"]
    return node.exec(argv).stdout


def _shim_log(lab: Lab, pod: Pod, sandbox_id: str) -> str:
    path = f"/run/kangaroo/sandboxes/{sandbox_id}/shim.log"
    return lab.nodes[pod.node].exec(["cat", path]).stdout


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
