"""The node's disk: a Debian root as an ext4 image, its kernel and its initrd.

What differs between nodes is not in it: name, addresses, keys, containerd's configuration. The lab
gives that at boot, as a unit in a systemd credential `systemd.extra-unit.<unit>` (SMBIOS type 11 or
the kernel command line) and `systemd.wants=<unit>`. The network device is eth0 with
`net.ifnames=0`. Not `ip=`: the initrd has no network driver and would wait for a device.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from kangaroo.guest import debian
from kangaroo.linux.process import run_sync

PACKAGES = (
    "busybox-static",
    "ca-certificates",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "crun",
    "dbus",
    "e2fsprogs",
    "ethtool",
    "initramfs-tools",
    "ipxe-qemu",
    "iproute2",
    "iptables",
    "kmod",
    "ktls-utils",
    "linux-image-cloud-amd64",
    "lsof",
    "netbase",
    "nfs-common",
    "nfs-kernel-server",
    "nftables",
    "openssh-server",
    "procps",
    "python3",
    "qemu-system-x86",
    "runc",
    "seabios",
    "socat",
    "strace",
    "systemd",
    "systemd-sysv",
    "udev",
    "virtiofsd",
    "xfsprogs",
    "zstd",
)
DISK_SIZE = "16G"  # sparse

# udev loads KVM for the processor that there is.
MODULES = (
    "vhost_vsock",
    "vhost_net",
    "nfs",
    "nfsv3",
    "nfsv4",
    "fuse",
    "virtiofs",
    "overlay",
    "br_netfilter",
)
# What udev would load by itself at the cost of seconds, for hardware that a node does not use.
UNUSED_MODULES = (
    "aesni_intel",
    "ahci",
    "button",
    "cdrom",
    "efi_pstore",
    "evdev",
    "ghash_clmulni_intel",
    "libahci",
    "libata",
    "serio_raw",
    "sg",
    "sha1_ssse3",
    "sha256_ssse3",
    "sha512_ssse3",
    "sr_mod",
    "vmw_vmci",
)
# The emulated processor unpacks the initrd, so it holds no more than it takes to mount the disk.
INITRD_MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c")

MASKED_UNITS = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "man-db.timer",
    "nfs-blkmap.service",
    "rpc-svcgssd.service",
    "serial-getty@ttyS0.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-binfmt.service",
    "systemd-networkd-wait-online.service",
    "systemd-pcrphase.service",
    "systemd-tpm2-setup.service",
    "systemd-tpm2-setup-early.service",
    "systemd-update-utmp.service",
    "systemd-firstboot.service",
    "xfs_scrub_all.timer",
)
# The lab writes their configuration and starts them then. It sets the network up, too.
DISABLED_UNITS = (
    "containerd.service",
    "nfs-server.service",
    "ssh.service",
    "systemd-network-generator.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "tlshd.service",
)
UNUSED_GENERATORS = (
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-ssh-generator",
    "systemd-tpm2-generator",
)

FILES = {
    "etc/fstab": "/dev/vda / ext4 defaults,noatime 0 0\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/hostname": "localhost\n",
    "etc/machine-id": "",  # the node makes its own at boot
    "etc/modules-load.d/kangaroo.conf": "\n".join(MODULES) + "\n",
    "etc/modprobe.d/kangaroo.conf": "".join(f"blacklist {name}\n" for name in UNUSED_MODULES),
    "etc/sysctl.d/90-kangaroo.conf": (
        "net.ipv4.ip_forward = 1\n"
        "net.bridge.bridge-nf-call-iptables = 1\n"
        "fs.inotify.max_user_instances = 1024\n"
        "kernel.panic = 10\n"
        "kernel.panic_on_oops = 1\n"
        "vm.overcommit_memory = 1\n"
    ),
    "etc/ssh/sshd_config.d/kangaroo.conf": (
        "PermitRootLogin prohibit-password\n"
        "UseDNS no\n"
        "MaxStartups 100\n"
        "MaxSessions 100\n"
        "PerSourcePenalties no\n"
    ),
    "etc/systemd/journald.conf.d/kangaroo.conf": (
        "[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\nSystemMaxUse=512M\n"
    ),
    "etc/systemd/system.conf.d/kangaroo.conf": (
        "[Manager]\nDefaultTimeoutStopSec=20s\nDefaultLimitNOFILE=1048576\n"
    ),
    # The key comes as a systemd credential; the tmpfiles entry for it is systemd's own.
    "etc/initramfs-tools/conf.d/kangaroo": "MODULES=list\nCOMPRESS=zstd\nFSTYPE=ext4\n",
    "etc/initramfs-tools/modules": "\n".join(INITRD_MODULES) + "\n",
}
REMOVED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt")

_TOOL_TIMEOUT_S = 900.0


def recipe() -> str:
    """Everything that decides what the image is, as one text."""
    parts = (PACKAGES, DISK_SIZE, MODULES, INITRD_MODULES, MASKED_UNITS, DISABLED_UNITS)
    return repr((*parts, UNUSED_MODULES, UNUSED_GENERATORS, FILES, REMOVED, _HOOKS, debian.SUITE))


def build(output: Path) -> None:
    """Make `disk.raw`, `vmlinuz` and `initrd.img` in `output`. Needs root."""
    root = output / "root"
    debian.bootstrap(root, PACKAGES, hooks=_hooks(output))
    _copy_boot(root, output)
    for name in REMOVED:
        shutil.rmtree(root / name, ignore_errors=True)
    _make_disk(root, output / "disk.raw")
    shutil.rmtree(root)


_HOOKS = (
    'mkdir -p "$1/etc/systemd/system-generators"',
    'chroot "$1" systemctl mask --quiet {masked}',
    'chroot "$1" systemctl disable --quiet {disabled}',
    'for name in {generators}; do ln -s /dev/null "$1/etc/systemd/system-generators/$name"; done',
    # containerd's CNI path, and where Debian puts the plugins.
    'mkdir -p "$1/opt/cni" && ln -s /usr/lib/cni "$1/opt/cni/bin"',
    'chroot "$1" update-initramfs -u',
    # Nothing of /etc and /var is older than /usr: no ldconfig, hwdb or catalogue at first boot.
    'touch "$1/etc/.updated" "$1/var/.updated"',
)


def _hooks(output: Path) -> list[str]:
    """FILES go in first: update-initramfs reads some of them."""
    files = output / "files"
    for name, text in FILES.items():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text(text)
    units = {
        "masked": " ".join(MASKED_UNITS),
        "disabled": " ".join(DISABLED_UNITS),
        "generators": " ".join(UNUSED_GENERATORS),
    }
    copy = f'cp -r --no-preserve=ownership "{files}/." "$1/"'
    return [copy, *(hook.format(**units) for hook in _HOOKS), f'rm -r "{files}"']


def _copy_boot(root: Path, output: Path) -> None:
    for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd.img", "initrd.img-*")):
        (source,) = (root / "boot").glob(pattern)
        shutil.copyfile(source, output / name)


def _make_disk(root: Path, disk: Path) -> None:
    options = ["-q", "-F", "-t", "ext4", "-L", "kangaroo-node", "-m", "0", "-d", str(root)]
    features = ["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]
    run_sync(["mke2fs", *options, *features, str(disk), DISK_SIZE], timeout_s=_TOOL_TIMEOUT_S)
