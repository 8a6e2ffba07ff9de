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
# Of its memory a guest's kernel keeps 64 bytes for each page of 4 KiB (struct page).
_PAGE_STRUCTS = 64
# What the pod's control group holds beside the guest's memory: QEMU and virtiofsd; and for every
# GiB of small pages 2 MiB of QEMU's page tables, 2 of KVM's, and 2 that say where a page is.
_BESIDE_MIB, _TABLES = 96, 160


@dataclass(frozen=True)
class MachineSize:
    """Guest memory and virtual processors. `missing_mib` is how much less memory it is than the
    pod's limits ask for.
    """

    memory_mib: int
    vcpus: int
    missing_mib: int = 0


def machine_size(
    annotations: Mapping[str, str],
    config: RuntimeConfig,
    *,
    memory_bounded: bool,
    group_bytes: int | None = None,
) -> MachineSize:
    """The size for a pod: its limits, rounded up, on top of what the guest itself needs.

    `memory_bounded` says that each of its containers has a memory limit; `group_bytes` is the limit
    of its control group, into which the machine has to fit: where it does not, the guest's kernel
    ends what takes too much, and not the node's the whole machine. Processors are never fewer than
    the pod requests: a pod with processors of its own has no quota.

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
    wanted_mib = config.memory_mib + pod_mib + -(-pod_mib // _PAGE_STRUCTS)
    memory_mib = min(wanted_mib, config.max_memory_mib)
    if group_bytes is not None:
        group_mib = group_bytes // _MIB
        fitting_mib = group_mib - _BESIDE_MIB - group_mib // _TABLES
        memory_mib = min(memory_mib, max(fitting_mib, config.memory_mib))
    return MachineSize(memory_mib, min(vcpus, config.max_vcpus), wanted_mib - memory_mib)


def _number(annotations: Mapping[str, str], name: str) -> int:
    value = annotations.get(name, "0")
    try:
        return int(value)
    except ValueError:
        raise InvalidRequest(f"annotation {name}", f"{value!r} is not a number") from None
