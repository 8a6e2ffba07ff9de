"""A machine as data, and its QEMU command line as a pure function of it.

The machine is QEMU's `microvm` (docs/system/i386/microvm.rst) with virtio devices on PCI Express:
no firmware menus, no chipset. Every host resource that needs privilege (tap, vhost, sockets, log
files) arrives as an inherited descriptor, so that QEMU itself runs unprivileged and opens nothing
but the guest image, its firmware and /dev/kvm.

PCI is for its interrupts: a device on virtio-mmio has one line, and its driver reads and
acknowledges a register at each interrupt, two exits to QEMU. MSI-X has neither, and with vhost an
interrupt never passes QEMU (docs/decisions/0015-virtio-over-pci.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

# What a Linux guest of this machine should know. Times are of Linux 6.12 under emulated KVM.
KERNEL_PARAMETERS = (
    "initcall_blacklist=cmos_init",  # there is no RTC; its driver polls the absent chip for 6 s
    "cryptomgr.notests",  # self tests of ciphers, 1 s
    "no_timer_check",  # KVM's timers work; the check waits ten ticks
    "tsc=reliable",
    "oops=panic",  # what goes on after one may hang; `panic=-1` ends QEMU, and so the sandbox
    "swiotlb=noforce",  # 64 MiB for devices that cannot reach all memory; virtio can
    "reboot=t",  # without ACPI's reset register a triple fault is the one way that always ends QEMU
)

# As the node's, but for what a guest does not need and could use against it: virtualisation of its
# own, performance counters. Of wider addresses than 48 bits `microvm` gives devices the topmost
# quarter, which KVM cannot map where it has page tables of four levels only.
_HOST_CPU = "host,host-phys-bits-limit=48,vmx=off,svm=off,pmu=off"

_CONSOLE_FDSET = 1


class Accelerator(Enum):
    """How guest instructions run. `TCG` is for tests on machines without a usable KVM."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class GuestImage:
    """Kernel, initial ramdisk and read-only root of a guest. The ramdisk and root are optional for
    tests.
    """

    kernel: Path
    initrd: Path | None = None
    rootfs: Path | None = None


@dataclass(frozen=True)
class VirtiofsDevice:
    """A directory that the guest mounts by `tag`; `fd` is connected to its virtiofsd already."""

    tag: str
    fd: int


@dataclass(frozen=True)
class VsockDevice:
    """`vhost_fd` has the context id `cid` set already."""

    cid: int
    vhost_fd: int


@dataclass(frozen=True)
class NetworkDevice:
    """A tap and, where the node has it, vhost-net. `mac` is what the guest sees."""

    mac: str
    tap_fd: int
    vhost_fd: int | None = None


@dataclass(frozen=True)
class MachineSpec:
    """Everything that decides a QEMU command line. Descriptors are numbers in the process that
    starts QEMU.

    `memory_fd` is `machine.guest_memory()`; `qmp_fd` listens; `console_fd` is the write end of a
    pipe (`console.Console`).
    """

    name: str
    qemu: Path
    image: GuestImage | None
    memory_fd: int
    memory_mib: int
    vcpus: int
    qmp_fd: int
    console_fd: int
    accelerator: Accelerator = Accelerator.KVM
    command_line: tuple[str, ...] = ()
    virtiofs: VirtiofsDevice | None = None
    vsock: VsockDevice | None = None
    network: NetworkDevice | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that QEMU must inherit."""
        fds: list[int | None] = [self.memory_fd, self.qmp_fd, self.console_fd]
        if self.virtiofs is not None:
            fds.append(self.virtiofs.fd)
        if self.vsock is not None:
            fds.append(self.vsock.vhost_fd)
        if self.network is not None:
            fds += [self.network.tap_fd, self.network.vhost_fd]
        return tuple(fd for fd in fds if fd is not None)


def argv(spec: MachineSpec) -> tuple[str, ...]:
    """The QEMU command line of `spec`. Pure."""
    return (
        str(spec.qemu),
        *_base(spec),
        *_monitor(spec),
        *_console(spec),
        *_boot(spec),
        *_virtiofs(spec),
        *_vsock(spec),
        *_network(spec),
    )


def _base(spec: MachineSpec) -> Iterator[str]:
    kvm = spec.accelerator is Accelerator.KVM
    yield from ("-name", _escape(spec.name))
    # A PIT that nobody programs ticks all the same, and each tick wakes QEMU and stops the guest.
    # Linux does without it where KVM gives it a clock and timers.
    timers = ",pit=off" if kvm else ""
    # With `dump-guest-core` a QEMU that crashes would write the guest's memory to the node's disk.
    machine = f"microvm,accel={spec.accelerator.value},pcie=on{timers}"
    yield from ("-M", f"{machine},memory-backend=mem,dump-guest-core=off")
    # The default, SeaBIOS, puts the ACPI tables at the end of memory, and then loads the initrd
    # there, over them as it happens to be long. Without its tables the guest finds no PCI.
    yield from ("-bios", "qboot.rom")
    yield from ("-cpu", _HOST_CPU if kvm else "max")
    yield from ("-smp", str(spec.vcpus))
    yield from ("-m", f"{spec.memory_mib}M")
    # vhost-user and vhost map guest memory themselves, so it must be shareable. Only this kind of
    # backend can be told to align it, without which no huge page fits.
    path, size = f"/proc/self/fd/{spec.memory_fd}", f"{spec.memory_mib}M"
    yield from (
        "-object",
        f"memory-backend-file,id=mem,share=on,align=2M,mem-path={path},size={size}",
    )
    yield from ("-nodefaults", "-no-user-config", "-nographic", "-no-reboot")
    yield from (
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    )
    yield from ("-object", "rng-builtin,id=entropy")
    yield from ("-device", _device("virtio-rng-pci", "rng=entropy"))


def _monitor(spec: MachineSpec) -> Iterator[str]:
    yield from ("-chardev", f"socket,id=qmp,fd={spec.qmp_fd},server=on,wait=off")
    yield from ("-mon", "chardev=qmp,mode=control")


def _console(spec: MachineSpec) -> Iterator[str]:
    yield from ("-add-fd", f"fd={spec.console_fd},set={_CONSOLE_FDSET}")
    yield from ("-chardev", f"file,id=console,path=/dev/fdset/{_CONSOLE_FDSET},append=on")
    yield from ("-serial", "chardev:console")


def _boot(spec: MachineSpec) -> Iterator[str]:
    if spec.image is None:
        return
    yield from ("-kernel", str(spec.image.kernel))
    if spec.image.initrd is not None:
        yield from ("-initrd", str(spec.image.initrd))
    if spec.command_line:
        yield from ("-append", " ".join(spec.command_line))
    if spec.image.rootfs is not None:
        path = _escape(str(spec.image.rootfs))
        yield from ("-blockdev", f"driver=file,node-name=root-file,filename={path},read-only=on")
        yield from ("-blockdev", "driver=raw,node-name=root,file=root-file,read-only=on")
        yield from ("-device", _device("virtio-blk-pci", "drive=root"))


def _virtiofs(spec: MachineSpec) -> Iterator[str]:
    if spec.virtiofs is None:
        return
    yield from ("-chardev", f"socket,id=virtiofs,fd={spec.virtiofs.fd}")
    # This one has no legacy form.
    yield from (
        "-device",
        f"vhost-user-fs-pci,chardev=virtiofs,tag={spec.virtiofs.tag},queue-size=1024",
    )


def _vsock(spec: MachineSpec) -> Iterator[str]:
    if spec.vsock is not None:
        vsock = spec.vsock
        yield from (
            "-device",
            _device("vhost-vsock-pci", f"guest-cid={vsock.cid},vhostfd={vsock.vhost_fd}"),
        )


def _network(spec: MachineSpec) -> Iterator[str]:
    if spec.network is None:
        return
    tap = f"tap,id=net0,fd={spec.network.tap_fd}"
    if spec.network.vhost_fd is not None:
        tap += f",vhost=on,vhostfd={spec.network.vhost_fd}"
    yield from ("-netdev", tap)
    # Nothing boots from the network, so no option ROM.
    settings = f"netdev=net0,mac={spec.network.mac},romfile="
    yield from ("-device", _device("virtio-net-pci", settings))


def _device(kind: str, settings: str) -> str:
    """A virtio device of version 1 only: a legacy one wants I/O ports, of which there are none."""
    return f"{kind},{settings},disable-legacy=on"


def _escape(value: str) -> str:
    """QEMU's option parser reads `,,` as one literal comma."""
    return value.replace(",", ",,")
