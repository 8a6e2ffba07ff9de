"""What shows that passthrough is real: facts read from pods, from the node and from the NAS, and
checks over them.

Readers return facts and judge nothing; `Check` is a judgement with the fact that it rests on. The
demo prints both, the tests assert on the checks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kangaroo.errors import KangarooError
from kangaroo.linux.mountinfo import MountEntry, parse
from kangaroo_lab.rollout import Pod

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.node import Node

MOUNT_POINT = "/data"
NFS_TYPES = frozenset({"nfs", "nfs4"})
_MOUNT_LINE = re.compile(
    r"(?P<source>.+) on (?P<target>/.*) type (?P<fstype>\S+) \((?P<options>.*)\)"
)
_KERNEL_COMMAND = "uname -r && uname -v && cat /proc/sys/kernel/random/boot_id"
_SEPARATOR = "=== mount"


@dataclass(frozen=True, slots=True)
class Check:
    """A claim, whether it holds, and the fact that says so."""

    claim: str
    holds: bool
    fact: str


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of `mount`, taken apart; `line` is the line itself."""

    line: str
    source: str
    target: str
    fstype: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A running kernel. Two machines of the same distribution differ in `boot_id` alone."""

    release: str
    version: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What was seen of one pod: from inside it, and from its node."""

    pod: Pod
    mount: Mount | None  # what is on /data, seen in the pod
    nfs_line: str  # of `mount | grep /data | grep nfs` in the pod; empty when it prints none
    kernel: Kernel
    node_kernel: Kernel
    node_nfs: tuple[MountEntry, ...] = field(default=())  # the node's NFS mounts for this pod


def observe(lab: Lab, pod: Pod) -> PodFacts:
    """Read a pod's facts. Raises CommandFailed when a command in it or on its node fails."""
    node = lab.nodes[pod.node]
    # Two calls and not three: on an emulated node each takes seconds.
    kernel, listing = in_pod(lab, pod, f"{_KERNEL_COMMAND} && echo '{_SEPARATOR}' && mount").split(
        f"{_SEPARATOR}\n"
    )
    return PodFacts(
        pod=pod,
        mount=find_mount(listing, MOUNT_POINT),
        nfs_line=in_pod(lab, pod, f"mount | grep {MOUNT_POINT} | grep nfs || true").strip(),
        kernel=parse_kernel(kernel),
        node_kernel=parse_kernel(node.exec(["sh", "-c", _KERNEL_COMMAND]).stdout),
        node_nfs=node_nfs_mounts(node, pod.uid),
    )


def in_pod(lab: Lab, pod: Pod, script: str, *, timeout_s: float = 120.0) -> str:
    """Run a shell script in the pod's first container; its standard output."""
    return lab.kubectl(
        "exec",
        "-n",
        pod.namespace,
        pod.name,
        "-c",
        pod.container,
        "--",
        "sh",
        "-c",
        script,
        timeout_s=timeout_s,
    ).stdout


def node_nfs_mounts(node: Node, pod_uid: str) -> tuple[MountEntry, ...]:
    """The NFS mounts that the node holds for this pod, from the mount table of its init."""
    return nfs_mounts_of(node.exec(["cat", "/proc/1/mountinfo"]).stdout, pod_uid)


def nfs_mounts_of(mountinfo: str, pod_uid: str) -> tuple[MountEntry, ...]:
    """The NFS mounts in a mount table whose mount point names this pod."""
    return tuple(
        entry
        for entry in parse(mountinfo)
        if entry.fstype in NFS_TYPES and pod_uid in entry.mount_point
    )


def find_mount(listing: str, target: str) -> Mount | None:
    """The topmost mount on `target` in what `mount` printed, or None."""
    found = None
    for line in listing.splitlines():
        match = _MOUNT_LINE.fullmatch(line.strip())
        if match and match["target"] == target:
            found = Mount(
                line=line.strip(),
                source=match["source"],
                target=target,
                fstype=match["fstype"],
                options=tuple(match["options"].split(",")),
            )
    return found


def parse_kernel(text: str) -> Kernel:
    """The three lines: release, version, boot id. Raises KangarooError on anything else."""
    lines = text.strip().splitlines()
    if len(lines) != 3:
        raise KangarooError(f"expected a kernel's release, version and boot id, got {text!r}")
    return Kernel(release=lines[0], version=lines[1], boot_id=lines[2])


def passthrough_checks(facts: PodFacts) -> tuple[Check, ...]:
    """What must hold for a pod that opted in."""
    return (
        _mounted_as(facts, NFS_TYPES, "is NFS in the pod"),
        _own_kernel(facts),
        Check(
            claim=f"{facts.pod.name}: the node holds no NFS mount for it",
            holds=not facts.node_nfs,
            fact=_node_mounts(facts),
        ),
    )


def virtiofs_checks(facts: PodFacts) -> tuple[Check, ...]:
    """What must hold for a sandboxed pod that did not opt in."""
    return (
        _mounted_as(facts, frozenset({"virtiofs"}), "is virtio-fs in the pod"),
        _own_kernel(facts),
        _held_by_node(facts),
    )


def runc_checks(facts: PodFacts) -> tuple[Check, ...]:
    """What must hold for a pod of the default RuntimeClass."""
    return (
        _mounted_as(facts, NFS_TYPES, "is the node's NFS mount"),
        Check(
            claim=f"{facts.pod.name}: runs on the node's kernel",
            holds=facts.kernel.boot_id == facts.node_kernel.boot_id,
            fact=_kernels(facts),
        ),
        _held_by_node(facts),
    )


def share_file(lab: Lab, writer: Pod, reader: Pod, *, name: str, content: str) -> tuple[Check, ...]:
    """Write a file in one pod; look for the same content in the other, and on the NAS itself.

    The content must be plain letters, digits, spaces and dashes: it goes through a shell.
    """
    if not re.fullmatch(r"[A-Za-z0-9 -]+", content):
        raise ValueError(f"not plain text: {content!r}")
    path = f"{MOUNT_POINT}/{name}"
    in_pod(lab, writer, f"echo '{content}' > {path} && sync")
    read = in_pod(lab, reader, f"cat {path}").strip()
    on_nas = on_the_nas(lab, name)
    return (
        Check(f"written in {writer.name}, read in {reader.name}", read == content, read),
        Check(f"seen on the NAS as /csi/{name}", on_nas == content, on_nas),
    )


def on_the_nas(lab: Lab, name: str) -> str:
    """The content of a file of the example's share, read from the server's own disk; empty when
    absent.
    """
    path = lab.nas.root / "csi" / name
    return path.read_text().strip() if path.exists() else ""


def _mounted_as(facts: PodFacts, fstypes: frozenset[str], what: str) -> Check:
    mount = facts.mount
    return Check(
        claim=f"{facts.pod.name}: {MOUNT_POINT} {what}",
        holds=mount is not None and mount.fstype in fstypes,
        fact=mount.line if mount else f"nothing is mounted on {MOUNT_POINT}",
    )


def _own_kernel(facts: PodFacts) -> Check:
    return Check(
        claim=f"{facts.pod.name}: runs on a kernel of its own",
        holds=facts.kernel.boot_id != facts.node_kernel.boot_id,
        fact=_kernels(facts),
    )


def _held_by_node(facts: PodFacts) -> Check:
    return Check(
        claim=f"{facts.pod.name}: the node holds the NFS mount",
        holds=bool(facts.node_nfs),
        fact=_node_mounts(facts),
    )


def _kernels(facts: PodFacts) -> str:
    inside, node = facts.kernel, facts.node_kernel
    return (
        f"pod {inside.release}, boot {inside.boot_id[:8]}; "
        f"node {node.release}, boot {node.boot_id[:8]}"
    )


def _node_mounts(facts: PodFacts) -> str:
    if not facts.node_nfs:
        return f"no NFS line for pod {facts.pod.uid} in the mount table of {facts.pod.node}"
    return "; ".join(
        f"{entry.source} on {entry.mount_point} type {entry.fstype}" for entry in facts.node_nfs
    )
