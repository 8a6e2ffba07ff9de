"""The machine's command line, whole: a change of any word is a decision."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kangaroo.vmm.confinement import Confinement, Credentials
from kangaroo.vmm.spec import (
    Accelerator,
    GuestImage,
    MachineSpec,
    NetworkDevice,
    VirtiofsDevice,
    VsockDevice,
    argv,
)

SPEC = MachineSpec(
    name="kangaroo-0123",
    qemu=Path("/usr/bin/qemu-system-x86_64"),
    image=GuestImage(Path("/g/vmlinuz"), Path("/g/initrd.img"), Path("/g/root,fs.erofs")),
    memory_fd=9,
    memory_mib=512,
    vcpus=2,
    qmp_fd=10,
    console_fd=11,
    command_line=("console=ttyS0", "kangaroo.port=1234"),
    virtiofs=VirtiofsDevice("kangaroo", 12),
    vsock=VsockDevice(cid=77, vhost_fd=13),
    network=NetworkDevice(mac="02:00:00:00:00:01", tap_fd=14, vhost_fd=15),
)


def option(name: str, words: tuple[str, ...]) -> list[str]:
    """The values of every `name` on a command line."""
    return [words[i + 1] for i, word in enumerate(words) if word == name]


def test_whole_command_line() -> None:
    assert argv(SPEC) == (
        "/usr/bin/qemu-system-x86_64",
        "-name",
        "kangaroo-0123",
        "-M",
        "microvm,accel=kvm,pcie=on,pit=off,memory-backend=mem,dump-guest-core=off",
        "-bios",
        "qboot.rom",
        "-cpu",
        "host,host-phys-bits-limit=48,vmx=off,svm=off,pmu=off",
        "-smp",
        "2",
        "-m",
        "512M",
        "-object",
        "memory-backend-file,id=mem,share=on,align=2M,mem-path=/proc/self/fd/9,size=512M",
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-no-reboot",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-object",
        "rng-builtin,id=entropy",
        "-device",
        "virtio-rng-pci,rng=entropy,disable-legacy=on",
        "-chardev",
        "socket,id=qmp,fd=10,server=on,wait=off",
        "-mon",
        "chardev=qmp,mode=control",
        "-add-fd",
        "fd=11,set=1",
        "-chardev",
        "file,id=console,path=/dev/fdset/1,append=on",
        "-serial",
        "chardev:console",
        "-kernel",
        "/g/vmlinuz",
        "-initrd",
        "/g/initrd.img",
        "-append",
        "console=ttyS0 kangaroo.port=1234",
        "-blockdev",
        "driver=file,node-name=root-file,filename=/g/root,,fs.erofs,read-only=on",
        "-blockdev",
        "driver=raw,node-name=root,file=root-file,read-only=on",
        "-device",
        "virtio-blk-pci,drive=root,disable-legacy=on",
        "-chardev",
        "socket,id=virtiofs,fd=12",
        "-device",
        "vhost-user-fs-pci,chardev=virtiofs,tag=kangaroo,queue-size=1024",
        "-device",
        "vhost-vsock-pci,guest-cid=77,vhostfd=13,disable-legacy=on",
        "-netdev",
        "tap,id=net0,fd=14,vhost=on,vhostfd=15",
        "-device",
        "virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01,romfile=,disable-legacy=on",
    )


def test_every_descriptor_is_inherited() -> None:
    assert SPEC.descriptors == (9, 10, 11, 12, 13, 14, 15)


def test_absent_devices_leave_no_trace() -> None:
    bare = dataclasses.replace(SPEC, virtiofs=None, vsock=None, network=None)
    words = " ".join(argv(bare))
    assert bare.descriptors == (9, 10, 11)
    for absent in ("vhost-user-fs", "vsock", "netdev", "fd=12", "fd=14"):
        assert absent not in words


def test_network_without_vhost_net() -> None:
    network = NetworkDevice(mac="02:00:00:00:00:01", tap_fd=14)
    spec = dataclasses.replace(SPEC, network=network)
    assert option("-netdev", argv(spec)) == ["tap,id=net0,fd=14"]
    assert spec.descriptors == (9, 10, 11, 12, 13, 14)


def test_emulated_machine_asks_for_every_cpu_feature() -> None:
    words = argv(dataclasses.replace(SPEC, accelerator=Accelerator.TCG))
    assert option("-M", words) == [
        "microvm,accel=tcg,pcie=on,memory-backend=mem,dump-guest-core=off"
    ]
    assert option("-cpu", words) == ["max"]


def test_unconfined_argv_is_unchanged() -> None:
    assert Confinement().wrap(("qemu", "-x")) == ("qemu", "-x")


def test_confinement_enters_cgroup_then_namespace_then_drops_rights() -> None:
    confinement = Confinement(
        cgroup=Path("/sys/fs/cgroup/pod"),
        netns=Path("/run/netns/pod"),
        credentials=Credentials(uid=900, gid=901, groups=(36, 37)),
    )
    assert confinement.wrap(("qemu",)) == (
        "/bin/sh",
        "-ec",
        'echo 0 > "$1/cgroup.procs"; shift; exec "$@"',
        "join-cgroup",
        "/sys/fs/cgroup/pod",
        "nsenter",
        "--net=/run/netns/pod",
        "setpriv",
        "--reuid=900",
        "--regid=901",
        "--groups=36,37",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--no-new-privs",
        "qemu",
    )


def test_credentials_without_groups_keep_none() -> None:
    wrapped = Confinement(credentials=Credentials(900, 901)).wrap(("qemu",))
    assert "--clear-groups" in wrapped
