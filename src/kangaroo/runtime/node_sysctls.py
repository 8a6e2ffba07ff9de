"""The node's kernel settings that its guests get, too (docs/decisions/0025-node-sysctls.md).

No namespace has these of its own: with runc a container has the node's.
"""

from __future__ import annotations

from pathlib import Path

_SYSCTLS = (
    "fs.inotify.max_user_instances",
    "fs.inotify.max_user_watches",
    "net.core.rmem_max",
    "net.core.wmem_max",
    "vm.max_map_count",
    "vm.overcommit_memory",
)


def kernel_parameters(proc_sys: Path = Path("/proc/sys")) -> tuple[str, ...]:
    """Kernel parameters `sysctl.<name>=<number>` that set them as they are on the node now. One
    that the node does not have is left out.
    """
    values = {name: _read(proc_sys / name.replace(".", "/")) for name in _SYSCTLS}
    return tuple(f"sysctl.{name}={value}" for name, value in values.items() if value.isdecimal())


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
