"""What a sandbox refuses, read from the OCI specification that containerd made of the pod. Pure.

Refusals are by decision: a field that would silently do nothing, or would open the node to the
guest, is an error that names the field. How containerd's CRI plugin shows each in the specification
stands next to the check.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kangaroo.errors import Unsupported

Spec = Mapping[str, Any]

# runtime-spec, config-linux.md, "Devices"
_DEVICE_KINDS = {"b": "block device", "c": "character device", "p": "named pipe"}


def check_sandbox(spec: Spec) -> None:
    """Refuse a pod that shares the node's namespaces. Raises Unsupported naming the pod's field."""
    _require_namespaces(spec)


def check_container(spec: Spec) -> None:
    """Refuse a container that needs the node itself. Raises Unsupported naming the field."""
    _require_namespaces(spec)
    _refuse_privileged(spec)
    _refuse_devices(spec)
    _refuse_huge_pages(spec)


def network_namespace(spec: Spec) -> str | None:
    """The path of the pod's network namespace; None for a container without one (`ctr run`)."""
    entry = _namespaces(spec).get("network")
    return str(entry["path"]) if entry and entry.get("path") else None


# Namespace type in the specification → the pod's field that takes it away. For `hostNetwork: true`
# and its like the CRI plugin leaves the entry out, which to an OCI runtime means the node's own
# namespace.
_HOST_FIELDS = {"network": "hostNetwork", "pid": "hostPID", "ipc": "hostIPC"}


def _require_namespaces(spec: Spec) -> None:
    present = _namespaces(spec)
    for kind, field in _HOST_FIELDS.items():
        if kind not in present:
            raise _refusal(f"{field}: true", "its namespaces are the guest's, never the node's")
    if "user" in present:
        raise _refusal("hostUsers: false", "the guest already separates its users from the node's")


def _refuse_privileged(spec: Spec) -> None:
    # A privileged container gets a writable sysfs and a rule that allows every device.
    writable_sysfs = any(
        mount.get("type") == "sysfs" and "ro" not in mount.get("options", ())
        for mount in spec.get("mounts", ())
    )
    rules = _linux(spec).get("resources", {}).get("devices") or ()
    all_devices = any(
        rule.get("allow") and rule.get("type") in (None, "a") and rule.get("major") is None
        for rule in rules
    )
    if writable_sysfs or all_devices:
        raise _refusal(
            "securityContext.privileged: true", "a container never gets the node's rights"
        )


def _refuse_devices(spec: Spec) -> None:
    for device in _linux(spec).get("devices") or ():
        kind = _DEVICE_KINDS.get(str(device.get("type")), "device")
        raise _refusal(f"{kind} {device.get('path')}", "devices of the node are not in the guest")


def _refuse_huge_pages(spec: Spec) -> None:
    # kubelet sends a limit of 0 for each size that was not asked for.
    for entry in _linux(spec).get("resources", {}).get("hugepageLimits") or ():
        if entry.get("limit"):
            raise _refusal(f"{entry.get('pageSize')} huge pages", "the guest has none of its own")


def _refusal(what: str, why: str) -> Unsupported:
    return Unsupported(f"{what} is not supported by a Kangaroo sandbox: {why}")


def _namespaces(spec: Spec) -> dict[str, Mapping[str, Any]]:
    return {entry["type"]: entry for entry in _linux(spec).get("namespaces") or ()}


def _linux(spec: Spec) -> Mapping[str, Any]:
    linux = spec.get("linux")
    return linux if isinstance(linux, Mapping) else {}
