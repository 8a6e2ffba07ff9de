"""The guest's cgroup figures as the message that containerd's CRI plugin reads. Pure.

The guest is not trusted: what is not a natural number of 64 bits counts as absent.
"""

from __future__ import annotations

from typing import Any

from kangaroo.wire.gen import metrics_pb2

_UINT64_MAX = (1 << 64) - 1
_CPU = {
    "usage_us": "usage_usec",
    "user_us": "user_usec",
    "system_us": "system_usec",
    "nr_periods": "nr_periods",
    "nr_throttled": "nr_throttled",
    "throttled_us": "throttled_usec",
}


def metrics(stats: dict[str, Any]) -> metrics_pb2.Metrics:
    """Return io.containerd.cgroups.v2.Metrics for a ContainerStats answer of the agent.

    A limit that is null, cgroup's "max", becomes the largest number, as in
    containerd's own reader.
    """
    cpu, memory, pids = (_object(stats, key) for key in ("cpu", "memory", "pids"))
    message = metrics_pb2.Metrics()
    for key, name in _CPU.items():
        setattr(message.cpu, name, _number(cpu, key))
    message.pids.current = _number(pids, "current")
    message.pids.limit = _number(pids, "max")  # 0 says that there is none
    _copy_known(_object(memory, "stat"), message.memory)
    message.memory.usage = _number(memory, "current")
    message.memory.usage_limit = _number(memory, "max") or _UINT64_MAX
    _copy_known(_object(memory, "events"), message.memory_events)
    return message


def _copy_known(figures: dict[str, Any], message: Any) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.name in figures:
            setattr(message, field.name, _number(figures, field.name))


def _object(parent: dict[str, Any], key: str) -> dict[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def _number(parent: dict[str, Any], key: str) -> int:
    value = parent.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _UINT64_MAX:
        return value
    return 0
