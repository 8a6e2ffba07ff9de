"""What must hold on a node whenever nothing is under way: nothing is there without a pod, and no
pod is without what it needs.

A census of the node (`tests.node.probe`) and the pods that the API server has go in, what is wrong
comes out. Each thing on the node is looked at by the ids that it names, of pods, sandboxes and
containers: it is somebody's when all that it names lives.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.node import probe
from tests.node.pods import NFS

from kangaroo.nas.passthrough import ANNOTATION_ENABLE
from kangaroo.nas.placeholder import PLACEHOLDER_FSTYPE, PLACEHOLDER_SOURCE
from kangaroo.net.plan import TAP_NAME

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.node import Node

Census = Mapping[str, Any]

# Kubelet takes stock of its pods every few seconds; a guest that lost its shim writes back first.
SETTLE_S = 300
_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_UID = re.compile(r"(?:/pods/|-pod)([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})")
_VOLUME = re.compile(rf"{probe.KUBELET_PODS}/([^/]+)/volumes/kubernetes\.io~csi/[^/]+/mount")
# What the runtime and the driver keep for the node and not for a pod.
_THE_NODES_OWN = re.compile(r"csi|sandboxes|boot-\d+\.lock")
_RUNC_SHIM = "/containerd-shim-runc-v2"
_PAUSE_S = 2.0  # no event tells that a node has come to rest


@dataclass(frozen=True)
class Thing:
    """Something on the node that is a pod's; `ids` are all that it names."""

    kind: str
    what: str
    ids: frozenset[str]

    def __str__(self) -> str:
        return f"{self.kind} {self.what}"


@dataclass(frozen=True)
class Pod:
    """What the API server says of a pod of the node."""

    uid: str
    name: str
    ready: bool
    sandboxed: bool
    passthrough: bool
    claims: int


def things(census: Census) -> list[Thing]:
    """All that pods have on the node."""
    return list(dict.fromkeys(_things(census)))


def leftovers(census: Census, pods: Iterable[Pod]) -> list[Thing]:
    """What is there without a pod, or of a sandbox or a container that its pod has no more."""
    alive = _alive(census, pods)
    return [thing for thing in things(census) if not (thing.ids and thing.ids <= alive)]


def missing(census: Census, pods: Iterable[Pod]) -> list[str]:
    """What pods that are ready have not, or have twice."""
    return [f"pod {pod.name} {what}" for pod in pods if pod.ready for what in _lacks(census, pod)]


def look(lab: Lab, node: Node) -> list[str]:
    """All that is wrong on the node now."""
    # The pods first: one that comes meanwhile would have things without being known.
    known = pods_of(lab.kubectl("get", "pods", "-A", "-o", "json").stdout, node.name)
    census = probe.on(node, "census")
    return [str(thing) for thing in leftovers(census, known)] + missing(census, known)


def await_none(
    lab: Lab, node: Node, *, besides: Collection[str] = (), timeout_s: float = SETTLE_S
) -> list[str]:
    """What is still wrong when the node has come to rest, or at the deadline; what was wrong
    before can be given as `besides`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        wrong = [each for each in look(lab, node) if each not in besides]
        if not wrong or time.monotonic() > deadline:
            return wrong
        time.sleep(_PAUSE_S)


def pods_of(listing: str, node: str) -> list[Pod]:
    """The pods of a node in what `kubectl get pods -o json` printed."""
    items = json.loads(listing)["items"]
    return [_pod(item) for item in items if item["spec"].get("nodeName") == node]


def _pod(item: Mapping[str, Any]) -> Pod:
    meta, spec = item["metadata"], item["spec"]
    states = {one["type"]: one["status"] for one in item["status"].get("conditions", [])}
    return Pod(
        uid=meta["uid"],
        name=f"{meta['namespace']}/{meta['name']}",
        ready=states.get("Ready") == "True" and "deletionTimestamp" not in meta,
        sandboxed=spec.get("runtimeClassName") == "runv",
        passthrough=meta.get("annotations", {}).get(ANNOTATION_ENABLE) == "true",
        claims=sum("persistentVolumeClaim" in volume for volume in spec.get("volumes", [])),
    )


def _alive(census: Census, pods: Iterable[Pod]) -> set[str]:
    """The ids of pods, of the sandbox that each runs in, and of its containers."""
    alive = {pod.uid for pod in pods}
    served = {word for process in census["processes"] for word in _shims_id(process["args"])}
    sandboxes = [one for one in census["bundles"] if one["kind"] == "sandbox"]
    newest = {one["pod"]: one["id"] for one in sorted(sandboxes, key=lambda one: one["made_ns"])}
    alive |= {sandbox for uid, sandbox in newest.items() if uid in alive and sandbox in served}
    return alive | {one["id"] for one in census["bundles"] if one["sandbox"] in alive}


def _shims_id(args: Sequence[str]) -> list[str]:
    """Whom a shim serves, of any runtime. One that starts or cleans up serves nobody."""
    shim = any("containerd-shim" in word for word in args[:3])
    if not shim or args[-1] in ("start", "delete") or "-id" not in args[:-1]:
        return []
    return [args[args.index("-id") + 1]]


def _things(census: Census) -> Iterator[Thing]:
    yield from _processes(census)
    yield from _mounts(census)
    yield from _network(census)
    for path in census["cgroups"]:
        if ids := _ids(path):
            yield Thing("cgroup", path, ids)
    for bundle in census["bundles"]:
        ids = frozenset((bundle["id"], bundle["sandbox"], bundle["pod"]))
        yield Thing("bundle", bundle["id"], ids - {""})
    forgotten = set(map(_socket_of, _forgotten_shims(census)))
    for path in sorted({*census["sockets"]} - forgotten):
        owners = (one["id"] for one in census["bundles"] if one["address"] == path)
        yield Thing("socket", path, frozenset(owners))
    for name in census["sandboxes"]:
        yield Thing("state", f"{probe.SANDBOXES}/{name}", frozenset((name,)))
    for name in census["runtime_files"]:
        if not _THE_NODES_OWN.fullmatch(name):
            yield Thing("state", f"/run/kangaroo/{name}", frozenset())
    for uid in census["pod_directories"]:
        yield Thing("pod directory", uid, frozenset((uid,)))


def _processes(census: Census) -> Iterator[Thing]:
    forgotten = _forgotten_shims(census)
    for process in census["processes"]:
        if process["args"] in forgotten:
            continue
        line = " ".join(process["args"])
        if ids := _ids(line) | _ids(process["cgroup"]):
            yield Thing("process", f"{process['pid']}: {line}", ids)


def _forgotten_shims(census: Census) -> list[Sequence[str]]:
    """Command lines of shims of runc without a bundle. containerd, killed while it starts a pod of
    runc, may take the bundle away when it is back, and forget the shim (containerd#8381).
    """
    bundles = {bundle["id"] for bundle in census["bundles"]}
    lines: list[Sequence[str]] = [
        process["args"]
        for process in census["processes"]
        if process["args"] and process["args"][0].endswith(_RUNC_SHIM)
    ]
    return [args for args in lines if (ids := _shims_id(args)) and bundles.isdisjoint(ids)]


def _socket_of(args: Sequence[str]) -> str:
    """Where a shim of runc with this command line listens (SocketAddress in containerd)."""
    said = "/".join(args[args.index(flag) + 1] for flag in ("-address", "-namespace", "-id"))
    return f"/run/containerd/s/{hashlib.sha256(said.encode()).hexdigest()}"


def _mounts(census: Census) -> Iterator[Thing]:
    """In every mount namespace; what an ended pod left in another than the node's is left, too."""
    holders = {
        process["pid"]: _ids(" ".join((*process["args"], process["cgroup"])))
        for process in census["processes"]
    }
    for mount in census["mounts"]:
        ids = _ids(mount["point"])
        if mount["fstype"] in NFS or _is_placeholder(mount):
            ids |= holders.get(mount["holder"], frozenset())
        elif not ids:
            continue
        yield Thing("mount", f"{mount['fstype']} {mount['source']} on {mount['point']}", ids)


def _network(census: Census) -> Iterator[Thing]:
    sandboxes: dict[str, set[str]] = {name: set() for name in census["namespaces"]}
    for one in census["bundles"]:
        if one["kind"] == "sandbox":
            sandboxes.setdefault(one["namespace"], set()).add(one["id"])
    for one in census["cni_results"]:
        sandboxes.setdefault(one["namespace"], set()).add(one["sandbox"])
    for name in census["namespaces"]:
        yield Thing("network namespace", name, frozenset(sandboxes[name]))
    for name, interfaces in census["interfaces"].items():
        ids = frozenset(sandboxes.get(name, ()))
        for _ in range(interfaces.count(TAP_NAME)):
            yield Thing("tap", f"in {name or 'the node'}", ids if name else frozenset())
    for address, sandbox in census["leases"].items():
        yield Thing("address", address, frozenset((sandbox,)))


def _lacks(census: Census, pod: Pod) -> Iterator[str]:
    alive = _alive(census, [pod])
    sandboxes = [
        one for one in census["bundles"] if one["kind"] == "sandbox" and one["id"] in alive
    ]
    if len(sandboxes) != 1:
        yield "runs in no sandbox"
    for sandbox in sandboxes:
        if sandbox["namespace"] not in census["namespaces"]:
            yield "has no network namespace"
        if pod.sandboxed:
            yield from _sandbox_lacks(census, sandbox)
    yield from _volumes_lack(census, pod)


def _sandbox_lacks(census: Census, sandbox: Mapping[str, Any]) -> Iterator[str]:
    commands = [process["args"] for process in census["processes"]]
    found = {probe.part_of(args, sandbox["id"]) for args in commands}
    yield from (f"has no {part}" for part in probe.PARTS if part not in found)
    if sandbox["id"] not in census["sandboxes"]:
        yield "has no state"
    taps = census["interfaces"].get(sandbox["namespace"], []).count(TAP_NAME)
    if taps != 1:
        yield f"has {taps} taps"


def _volumes_lack(census: Census, pod: Pod) -> Iterator[str]:
    """As many volumes as claims: placeholders and no NFS, or NFS and no placeholder."""
    mounts = [one for one in census["mounts"] if one["holder"] == 1]
    mine = [one for one in mounts if (at := _VOLUME.fullmatch(one["point"])) and at[1] == pod.uid]
    direct = pod.sandboxed and pod.passthrough
    placeholders = sum(_is_placeholder(one) for one in mine)
    nfs = sum(one["fstype"] in NFS for one in mine)
    expected = (pod.claims, 0) if direct else (0, pod.claims)
    if (placeholders, nfs) != expected:
        yield f"has {placeholders} placeholders and {nfs} NFS mounts for {pod.claims} volumes"
    beneath = [one["point"] for one in mounts if one["fstype"] in NFS]
    if direct and any(f"/pods/{pod.uid}/" in point for point in beneath):
        yield "opted in, and the node has an NFS mount for it"


def _is_placeholder(mount: Mapping[str, Any]) -> bool:
    return (mount["fstype"], mount["source"]) == (PLACEHOLDER_FSTYPE, PLACEHOLDER_SOURCE)


def _ids(text: str) -> frozenset[str]:
    """Ids of sandboxes and containers, and of pods in kubelet's paths and control groups."""
    uids = (uid.replace("_", "-") for uid in _UID.findall(text))
    return frozenset((*_ID.findall(text), *uids))
