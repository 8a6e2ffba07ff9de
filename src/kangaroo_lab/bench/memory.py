"""What an idle sandbox costs in memory: on the node by process, and inside the guest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kangaroo.errors import KangarooError
from kangaroo_lab import data
from kangaroo_lab.evidence import in_pod
from kangaroo_lab.rollout import Pod

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab


@dataclass(frozen=True, slots=True)
class Memory:
    """One sandbox at rest. Sizes in KiB."""

    pod: str
    pss_kib: Mapping[str, int]  # by part: shim, qemu, virtiofsd
    guest_total_kib: int
    guest_used_kib: int  # total less available, seen in the guest

    @property
    def node_kib(self) -> int:
        """All parts on the node together."""
        return sum(self.pss_kib.values())


def measure(lab: Lab, pod: Pod, sandbox_id: str) -> Memory:
    """Read both sides now. Raises KangarooError when the node has no process of the sandbox."""
    program = data.text("bench/sandbox_memory.py")
    done = lab.nodes[pod.node].exec(["python3", "-I", "-S", "-", sandbox_id], input=program)
    parts: dict[str, int] = json.loads(done.stdout)
    if "qemu" not in parts:
        raise KangarooError(f"sandbox {sandbox_id} has no QEMU on {pod.node}: {parts}")
    total, available = parse_meminfo(in_pod(lab, pod, "cat /proc/meminfo"))
    return Memory(pod.name, parts, total, total - available)


def parse_meminfo(text: str) -> tuple[int, int]:
    """MemTotal and MemAvailable in KiB (proc_meminfo(5)). Raises KangarooError without them."""
    sizes = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            sizes[name] = int(rest.split()[0])
    if len(sizes) != 2:
        raise KangarooError(f"not a meminfo: {text[:80]!r}")
    return sizes["MemTotal"], sizes["MemAvailable"]
