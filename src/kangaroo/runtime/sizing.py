"""How large a pod's machine is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kangaroo.errors import InvalidRequest
from kangaroo.runtime.config import RuntimeConfig

# containerd writes the sums over the pod's containers here (pkg/cri/annotations); 0 or -1 means no
# limit. A container without one adds nothing, so the sum alone does not say whether there is one.
_MEMORY_BYTES = "io.kubernetes.cri.sandbox-memory"
_CPU_QUOTA_US = "io.kubernetes.cri.sandbox-cpu-quota"
_CPU_PERIOD_US = "io.kubernetes.cri.sandbox-cpu-period"
_CPU_SHARES = "io.kubernetes.cri.sandbox-cpu-shares"

_SHARES_OF_A_CPU = 1024  # of what the pod requests

_MIB = 1024 * 1024


@dataclass(frozen=True)
class MachineSize:
    """Guest memory and virtual processors."""

    memory_mib: int
    vcpus: int


def machine_size(
    annotations: Mapping[str, str], config: RuntimeConfig, *, memory_bounded: bool
) -> MachineSize:
    """The size for a pod: its limits, rounded up, on top of what the guest itself needs.

    `memory_bounded` says that each of its containers has a memory limit. Processors are never fewer
    than the pod requests: a pod with processors of its own has no quota.

    Raises InvalidRequest naming an annotation that is not a number.
    """
    limit_bytes = _number(annotations, _MEMORY_BYTES)
    pod_mib = max(0, -(-limit_bytes // _MIB))
    if limit_bytes <= 0 or not memory_bounded:
        pod_mib = max(pod_mib, config.unlimited_pod_memory_mib)
    quota_us = _number(annotations, _CPU_QUOTA_US)
    period_us = _number(annotations, _CPU_PERIOD_US)
    limited = quota_us > 0 and period_us > 0
    vcpus = -(-quota_us // period_us) if limited else config.vcpus
    vcpus = max(vcpus, -(-_number(annotations, _CPU_SHARES) // _SHARES_OF_A_CPU))
    return MachineSize(
        memory_mib=min(config.memory_mib + pod_mib, config.max_memory_mib),
        vcpus=min(vcpus, config.max_vcpus),
    )


def _number(annotations: Mapping[str, str], name: str) -> int:
    value = annotations.get(name, "0")
    try:
        return int(value)
    except ValueError:
        raise InvalidRequest(f"annotation {name}", f"{value!r} is not a number") from None
