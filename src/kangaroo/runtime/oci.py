"""Rewrite a container's OCI specification for the guest. Pure.

The node's view goes out (namespaces with paths, the node's cgroup path, hooks, security labels of a
kernel that is not the guest's, CPU numbers of the node), the guest's comes in (root and bind
sources below the shared directory). What isolates the container *inside* the guest stays: users,
capabilities, seccomp, masked paths, rlimits, memory and CPU limits.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kangaroo.errors import InvalidRequest
from kangaroo.wire.agent_protocol import SHARED_DIRECTORY, SHARED_VOLUMES

Spec = Mapping[str, Any]

_BIND_OPTIONS = {"bind", "rbind"}
_SYSCTL_NAME = re.compile(r"[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)+")

# The pod shares these with the guest, which is the pod's own; a network or IPC namespace per
# container would part its containers from each other.
_GUEST_NAMESPACES = ("pid", "mount", "cgroup")
_KEPT_RESOURCES = ("cpu", "devices", "memory", "pids", "unified")
_KEPT_CPU = ("shares", "quota", "period", "burst", "idle")
_KEPT_MEMORY = ("limit", "reservation")


@dataclass(frozen=True)
class Bind:
    """A bind mount of the specification: its place in `mounts`, and what the node and the container
    see.
    """

    index: int
    source: str
    destination: str
    read_only: bool


@dataclass(frozen=True)
class SharedBind:
    """The bind travels by virtio-fs, as number `number` of the volumes in the shared tree; `flags`
    are those of the node's mount that only a mount in the guest can keep up.
    """

    number: int
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class NasBind:
    """The bind is a directory of a NAS volume that the guest has mounted."""

    volume_id: str
    subpath: str
    create: bool


BindPlace = SharedBind | NasBind


def binds(spec: Spec, sandbox_id: str) -> tuple[Bind, ...]:
    """The bind mounts whose source is on the node. The pod's own /dev/shm is not one: it lives in
    the guest.

    Raises InvalidRequest on a source or destination that is not absolute.
    """
    found = []
    for index, mount in enumerate(spec.get("mounts") or ()):
        if not _is_bind(mount) or _is_pod_shm(mount, sandbox_id):
            continue
        source, destination = str(mount.get("source", "")), str(mount.get("destination", ""))
        for name, path in (("source", source), ("destination", destination)):
            if not path.startswith("/"):
                raise InvalidRequest(f"mounts[{index}].{name}", f"{path!r} is not an absolute path")
        read_only = "ro" in (mount.get("options") or ())
        found.append(Bind(index, source, destination, read_only))
    return tuple(found)


def guest_spec(
    spec: Spec, *, container_id: str, sandbox_id: str, places: Mapping[int, BindPlace]
) -> dict[str, Any]:
    """The specification for the agent. `places` has one for each of `binds(spec)`, by index."""
    root = spec.get("root") or {}
    return {
        "ociVersion": spec.get("ociVersion", "1.0.2"),
        "process": guest_process(spec["process"]),
        "root": {
            "path": f"{SHARED_DIRECTORY}/{container_id}/rootfs",
            "readonly": bool(root.get("readonly", False)),
        },
        "mounts": [
            _mount(mount, sandbox_id, places.get(index))
            for index, mount in enumerate(spec.get("mounts") or ())
        ],
        "linux": _linux(spec.get("linux") or {}),
    }


def guest_process(process: Mapping[str, Any]) -> dict[str, Any]:
    """An OCI process (of an exec) for the guest: without the node's security labels."""
    dropped = ("apparmorProfile", "selinuxLabel")
    return {key: copy.deepcopy(value) for key, value in process.items() if key not in dropped}


def guest_resources(resources: Mapping[str, Any]) -> dict[str, Any]:
    """OCI linux.resources that mean the same in the guest: CPU numbers, swap and block devices are
    the node's.
    """
    kept = {key: copy.deepcopy(resources[key]) for key in _KEPT_RESOURCES if resources.get(key)}
    for key, allowed in (("cpu", _KEPT_CPU), ("memory", _KEPT_MEMORY)):
        if key in kept:
            kept[key] = {name: v for name, v in kept[key].items() if name in allowed}
    return kept


def volumes(spec: Spec, places: Mapping[int, BindPlace]) -> list[dict[str, str | bool]]:
    """The `volumes` of the agent's CreateContainer."""
    mounts = spec.get("mounts") or ()
    return [
        {
            "destination": mounts[index]["destination"],
            "volume_id": place.volume_id,
            "subpath": place.subpath,
            "create": place.create,
        }
        for index, place in sorted(places.items())
        if isinstance(place, NasBind)
    ]


def oom_score(spec: Spec) -> int | None:
    """`process.oomScoreAdj`, which kubelet makes of a pod's quality of service and requests."""
    score = (spec.get("process") or {}).get("oomScoreAdj")
    return score if isinstance(score, int) and -1000 <= score <= 1000 else None


def sysctls(spec: Spec) -> dict[str, str]:
    """The pod's kernel settings. Raises InvalidRequest for a name that none can have."""
    found = {}
    for name, value in ((spec.get("linux") or {}).get("sysctl") or {}).items():
        if not _SYSCTL_NAME.fullmatch(name):
            raise InvalidRequest(f"sysctl {name}", "no kernel has a setting of such a name")
        found[name] = str(value)
    return found


def _is_bind(mount: Mapping[str, Any]) -> bool:
    return mount.get("type") == "bind" or bool(_BIND_OPTIONS & set(mount.get("options") or ()))


def _is_pod_shm(mount: Mapping[str, Any], sandbox_id: str) -> bool:
    # containerd makes one tmpfs per pod at …/sandboxes/<id>/shm. An emptyDir on /dev/shm is not
    # that.
    source = str(mount.get("source", ""))
    return mount.get("destination") == "/dev/shm" and source.endswith(f"/{sandbox_id}/shm")


def _mount(mount: Mapping[str, Any], sandbox_id: str, place: BindPlace | None) -> dict[str, Any]:
    result = copy.deepcopy(dict(mount))
    if _is_bind(mount):
        result["type"] = "bind"
    if isinstance(place, SharedBind):
        result["source"] = f"{SHARED_VOLUMES}/{place.number}"
        given = mount.get("options") or ()
        result["options"] = [*given, *(flag for flag in place.flags if flag not in given)]
    elif isinstance(place, NasBind):
        result["source"] = ""  # the agent resolves it beneath the volume
    elif _is_bind(mount) and _is_pod_shm(mount, sandbox_id):
        result["source"] = "/dev/shm"
    return result


def _namespaces(linux: Mapping[str, Any]) -> list[str]:
    """The namespaces that the container gets for itself inside the guest.

    A pid namespace with a path is the pod's (shareProcessNamespace, or a debugger of another
    container): the guest's own serves for it, in which every process of the pod is seen.
    """
    given = {entry["type"]: entry.get("path") for entry in linux.get("namespaces") or ()}
    own = {"mount": True, "pid": not given.get("pid"), "cgroup": "cgroup" in given}
    return [kind for kind in _GUEST_NAMESPACES if own[kind]]


def _linux(linux: Mapping[str, Any]) -> dict[str, Any]:
    wanted = _namespaces(linux)
    result: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in wanted],
        "resources": guest_resources(linux.get("resources") or {}),
    }
    for key in ("maskedPaths", "readonlyPaths", "seccomp"):
        if linux.get(key):
            result[key] = copy.deepcopy(linux[key])
    return result
