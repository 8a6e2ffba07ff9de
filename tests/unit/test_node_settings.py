"""The node's kernel settings on the guest's command line."""

from __future__ import annotations

from pathlib import Path

from kangaroo.runtime import node_settings
from kangaroo.runtime.config import RuntimeConfig
from kangaroo.runtime.host_side import HostSide, Placement
from kangaroo.runtime.sizing import MachineSize

COMMAND_LINE_BYTES = 2047  # COMMAND_LINE_SIZE of x86, with a NUL


def node(root: Path, value: str) -> tuple[Path, Path]:
    """/proc/sys and /sys/module of a node on which everything that is copied has this value."""
    proc_sys, sys_module = root / "sys", root / "module"
    sysctls = [proc_sys / name.replace(".", "/") for name in node_settings._SYSCTLS]
    parameters = [name.replace(".", "/parameters/") for name in node_settings._MODULE_PARAMETERS]
    for path in (*sysctls, *map(sys_module.joinpath, parameters)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return proc_sys, sys_module


def test_they_are_as_on_the_node(tmp_path: Path) -> None:
    parameters = node_settings.kernel_parameters(*node(tmp_path, "7"))
    assert len(parameters) == len(node_settings._SYSCTLS + node_settings._MODULE_PARAMETERS)
    assert {"sysctl.fs.inotify.max_user_watches=7", "nfs.max_session_slots=7"} < set(parameters)


def test_what_the_node_does_not_have_is_left_out(tmp_path: Path) -> None:
    proc_sys, sys_module = node(tmp_path, "7")
    (proc_sys / "net/core/rmem_max").unlink()
    (proc_sys / "vm/overcommit_memory").write_text("1 init=/bin/sh\n")
    (sys_module / "nfs/parameters/delay_retrans").write_text("-1\n")
    (sys_module / "nfs/parameters/recover_lost_locks").write_text("Y\n")
    (sys_module / "sunrpc/parameters/tcp_slot_table_entries").unlink()
    assert node_settings.kernel_parameters(proc_sys, sys_module) == (
        "sysctl.fs.inotify.max_user_instances=7",
        "sysctl.fs.inotify.max_user_watches=7",
        "sysctl.net.core.wmem_max=7",
        "sysctl.vm.max_map_count=7",
        "nfs.delay_retrans=-1",
        "nfs.max_session_slots=7",
        "nfs.recover_lost_locks=Y",
        "sunrpc.tcp_max_slot_table_entries=7",
    )


def test_they_fit_on_the_command_line(tmp_path: Path) -> None:
    """QEMU and the kernel would cut it."""
    longest = (
        f"nfs.nfs4_unique_id={'a' * 63}",
        *node_settings.kernel_parameters(*node(tmp_path, str(2**31 - 1))),
    )
    size = MachineSize(256, 1)
    placement = Placement("s", size, None, None, None, kernel_parameters=longest)
    host = HostSide(placement, RuntimeConfig(guest_debug=True))
    host._port = 2**32 - 1
    ours = " ".join(host._command_line())
    assert len(ours) <= COMMAND_LINE_BYTES
