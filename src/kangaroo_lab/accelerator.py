"""How a node's machine runs: on the machine's KVM if that really works, emulated otherwise.

/dev/kvm says little: it exists where no guest kernel gets past its first instructions, and a node
also needs nested virtualisation. So the decision is a trial boot with a deadline.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kangaroo.errors import DeadlineExceeded, KangarooError
from kangaroo.linux.process import run_sync
from kangaroo_lab.enclosure import enclosed

KVM, TCG = "kvm", "tcg"
# A kernel that panics for want of a root, and powers off on panic, boots in two seconds on KVM.
_TRIAL_TIMEOUT_S = 15
_TRIAL_MEMORY_MIB = 512

_COSTLY = ("cx16", "la57", "smap", "pku", "erms", "fsrm")
ARGUMENTS = {
    KVM: ("-accel", "kvm", "-cpu", "host", "-smp", "2"),
    # One processor: with two, an SVM guest in the emulated node now and then has its state
    # overwritten. The large translation buffer spares retranslation: half of it is full in six busy
    # minutes. cx16 upset kernel 6.12 once.
    # Each exit of a sandbox empties the emulated TLB, so what makes page walks longer (la57) or
    # switches address spaces more often (smap, pku) is left out: an eighth less time for a boot.
    # With erms and fsrm a kernel clears and copies by the byte, and is emulated by the byte: a
    # huge page takes five times as long.
    TCG: ("-accel", "tcg,tb-size=1024", "-cpu", f"max,+svm,-{',-'.join(_COSTLY)}", "-smp", "1"),
}
# A fifth of the emulator's time goes into looking up translations, at random, in a table of 16 MiB
# and more. In huge pages that needs no page walk each time.
ENVIRONMENT = ("env", "GLIBC_TUNABLES=glibc.malloc.hugetlb=1")


def choose(host_tools: Path, boot: Path) -> str:
    """KVM or TCG. `boot` has vmlinuz. `$KANGAROO_LAB_ACCEL` decides without a trial."""
    if explicit := os.environ.get("KANGAROO_LAB_ACCEL"):
        if explicit not in ARGUMENTS:
            raise KangarooError(f"KANGAROO_LAB_ACCEL={explicit!r} is neither kvm nor tcg")
        return explicit
    return KVM if _nested() and _boots(host_tools, boot) else TCG


def _nested() -> bool:
    switches = (Path(f"/sys/module/kvm_{maker}/parameters/nested") for maker in ("intel", "amd"))
    on = any(switch.exists() and switch.read_text().strip() in "1Y" for switch in switches)
    return on and Path("/dev/kvm").exists()


def _boots(host_tools: Path, boot: Path) -> bool:
    """Whether a kernel reaches its panic on KVM; QEMU then ends by itself."""
    argv: Sequence[str] = [
        *("qemu-system-x86_64", "-M", "q35", *ARGUMENTS[KVM], "-m", str(_TRIAL_MEMORY_MIB)),
        *("-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(boot / "vmlinuz"), "-append", "console=ttyS0 panic=-1"),
    ]
    command = enclosed(host_tools, argv, read_only={boot: str(boot)})
    try:
        return "Kernel panic" in run_sync(command, timeout_s=_TRIAL_TIMEOUT_S)
    except (KangarooError, DeadlineExceeded, OSError):
        return False
