"""The node's kernel settings on the guest's command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kangaroo.runtime import node_sysctls, oci
from kangaroo.runtime.config import RuntimeConfig
from kangaroo.runtime.host_side import HostSide, Placement
from kangaroo.runtime.sizing import MachineSize

pytestmark = pytest.mark.unit

COMMAND_LINE_BYTES = 2047  # COMMAND_LINE_SIZE of x86, with a NUL


def node(root: Path, value: str) -> Path:
    """A /proc/sys in which everything that is copied has this value."""
    for name in node_sysctls._SYSCTLS:
        path = root / name.replace(".", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def test_they_are_as_on_the_node(tmp_path: Path) -> None:
    parameters = node_sysctls.kernel_parameters(node(tmp_path, "7"))
    assert len(parameters) == len(node_sysctls._SYSCTLS)
    assert "sysctl.fs.inotify.max_user_watches=7" in parameters


def test_what_the_node_does_not_have_is_left_out(tmp_path: Path) -> None:
    node(tmp_path, "7")
    (tmp_path / "net/core/rmem_max").unlink()
    (tmp_path / "vm/overcommit_memory").write_text("1 init=/bin/sh\n")
    names = [parameter.partition("=")[0] for parameter in node_sysctls.kernel_parameters(tmp_path)]
    assert names == [
        "sysctl.fs.inotify.max_user_instances",
        "sysctl.fs.inotify.max_user_watches",
        "sysctl.net.core.wmem_max",
        "sysctl.vm.max_map_count",
    ]


def test_they_fit_on_the_command_line_beside_all_that_a_pod_may_say(tmp_path: Path) -> None:
    """QEMU and the kernel would cut it."""
    longest = (
        f"nfs.nfs4_unique_id={'a' * 63}",
        *node_sysctls.kernel_parameters(node(tmp_path, str(2**31 - 1))),
    )
    size = MachineSize(256, 1)
    placement = Placement("s", size, None, None, None, kernel_parameters=longest)
    host = HostSide(placement, RuntimeConfig(guest_debug=True))
    host._port = 2**32 - 1
    ours = " ".join(host._command_line())
    assert len(ours) + 1 + oci._SYSCTLS_BYTES <= COMMAND_LINE_BYTES
