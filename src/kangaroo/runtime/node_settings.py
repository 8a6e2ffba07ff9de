"""The node's kernel settings that its guests get, too (docs/decisions/0025-node-sysctls.md).

No namespace has these of its own: with runc a container has the node's, and a volume the node's NFS
client.
"""

from __future__ import annotations

import re
from pathlib import Path

_SYSCTLS = (
    "fs.inotify.max_user_instances",
    "fs.inotify.max_user_watches",
    "net.core.rmem_max",
    "net.core.wmem_max",
    "vm.max_map_count",
    "vm.overcommit_memory",
)
# What no mount option says of an NFS client: how many requests it has under way at once, over
# version 3 (net/sunrpc/xprtsock.c) and from 4.1 on; and what it does where a server asks for
# patience, or has given a lock away (fs/nfs/super.c).
_MODULE_PARAMETERS = (
    "nfs.delay_retrans",
    "nfs.max_session_slots",
    "nfs.recover_lost_locks",
    "sunrpc.tcp_max_slot_table_entries",
    "sunrpc.tcp_slot_table_entries",
)
_VALUE = re.compile(r"-?[0-9]{1,10}|[NY]")


def kernel_parameters(
    proc_sys: Path = Path("/proc/sys"), sys_module: Path = Path("/sys/module")
) -> tuple[str, ...]:
    """Kernel parameters that set them as they are on the node now: `sysctl.<name>=<number>`, and
    `<module>.<name>=<value>`, which modprobe(8) finds on the command line. One that the node does
    not have is left out; kubelet mounts a pod's volumes, which loads the modules, before it asks
    for the sandbox.
    """
    paths = {f"sysctl.{name}": proc_sys / name.replace(".", "/") for name in _SYSCTLS}
    for name in _MODULE_PARAMETERS:
        module, _, parameter = name.partition(".")
        paths[name] = sys_module / module / "parameters" / parameter
    values = {name: _read(path) for name, path in paths.items()}
    return tuple(f"{name}={value}" for name, value in values.items() if _VALUE.fullmatch(value))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
