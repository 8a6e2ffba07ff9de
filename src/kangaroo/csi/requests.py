"""What the requests of the Node and the Controller service have in common, checked."""

from __future__ import annotations

from collections.abc import Iterable

from kangaroo.csi.volume_id import LIMIT_BYTES
from kangaroo.errors import InvalidRequest
from kangaroo.wire.gen import csi_pb2 as csi

# Of attributes and parameters that kubelet and the sidecars add to what people wrote.
FOREIGN_PREFIX = "csi.storage.k8s.io/"

_FSTYPES = ("", "nfs", "nfs4")


def check_id(text: str, field: str = "volume_id") -> None:
    """Raises InvalidRequest for an id or a name that is missing or longer than the specification
    allows.
    """
    if not text:
        raise InvalidRequest(field, "missing")
    if len(text.encode()) > LIMIT_BYTES:
        raise InvalidRequest(field, f"longer than {LIMIT_BYTES} bytes")


def capability(request: csi.NodePublishVolumeRequest) -> csi.VolumeCapability:
    """The one capability of a request. Raises InvalidRequest."""
    if not request.HasField("volume_capability"):
        raise InvalidRequest("volume_capability", "missing")
    check_capability(request.volume_capability, "volume_capability")
    return request.volume_capability


def mount_flags(capabilities: Iterable[csi.VolumeCapability]) -> list[str]:
    """The mount flags of capabilities, each once. A class's are those of all of a claim's."""
    flags = (flag for capability in capabilities for flag in capability.mount.mount_flags)
    return list(dict.fromkeys(flags))


def check_capabilities(capabilities: Iterable[csi.VolumeCapability]) -> None:
    """Raises InvalidRequest for none, or for one that this driver has not."""
    field = "volume_capabilities"
    present = list(capabilities)
    if not present:
        raise InvalidRequest(field, "missing")
    for capability in present:
        check_capability(capability, field)


def check_capability(capability: csi.VolumeCapability, field: str) -> None:
    """Raises InvalidRequest for a capability that this driver has not."""
    if capability.WhichOneof("access_type") == "block":
        raise InvalidRequest(field, "a NAS volume is a file system, not a block device")
    if capability.access_mode.mode == csi.VolumeCapability.AccessMode.UNKNOWN:
        raise InvalidRequest(f"{field}.access_mode", "missing")
    if capability.mount.fs_type not in _FSTYPES:
        raise InvalidRequest(f"{field}.fs_type", f"{capability.mount.fs_type!r} is not nfs")


def capacity(asked: csi.CapacityRange) -> int:
    """The capacity in bytes that is asked for, 0 when nothing is. Raises InvalidRequest."""
    required, limit = asked.required_bytes, asked.limit_bytes
    if required < 0 or limit < 0:
        raise InvalidRequest("capacity_range", "negative")
    if limit and required > limit:
        raise InvalidRequest("capacity_range", f"required {required} is more than limit {limit}")
    return required or limit
