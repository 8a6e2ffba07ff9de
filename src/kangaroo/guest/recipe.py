"""What goes into the guest image. Data only; `kangaroo.guest.build` does the work."""

from __future__ import annotations

from kangaroo.agent.start import BUNDLE

PACKAGES = (
    "base-files",
    "busybox-static",
    "crun",
    "iproute2",
    "kmod",
    "libpython3.13-stdlib",
    "linux-image-cloud-amd64",
    "python3.13-minimal",
)

# Run while building, from the same tree, and then left out of it.
BUILD_PACKAGES = ("erofs-utils", "zstd")

PROGRAMS = (
    "usr/bin/crun",
    "usr/bin/kmod",
    "usr/bin/ip",
    "usr/bin/python3.13",
)

STATIC_PROGRAMS = ("usr/bin/busybox",)

# Loaded by Python's import system, not by the linker, so no ELF header of a program names them.
EXTRA_LIBRARIES = ("libffi.so.8",)

LINKS = {
    "bin": "usr/bin",
    "sbin": "usr/sbin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "usr/bin/python3": "python3.13",
    "usr/bin/sh": "busybox",
    # The kernel runs /sbin/modprobe for file systems and address families that are modules.
    "usr/sbin/modprobe": "../bin/kmod",
    "etc/mtab": "/proc/self/mounts",
}

DIRECTORIES = ("dev", "etc", "proc", "run", "sys", "tmp", "usr/sbin", "usr/lib64")

FILES = {
    "etc/hostname": "kangaroo\n",
    "etc/group": "root:x:0:\n",
    "etc/passwd": "root:x:0:0:root:/:/usr/bin/sh\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}

# Python packages and modules of the standard library that the agent can do without.
PYTHON_LEFT_OUT = (
    "__phello__",
    "_pyrepl",
    "asyncio",
    "concurrent",
    "config-*",
    "curses",
    "dbm",
    "ensurepip",
    "html",
    "http",
    "idlelib",
    "lib2to3",
    "multiprocessing",
    "pydoc*",
    "sqlite3",
    "tkinter",
    "turtle*",
    "unittest",
    "venv",
    "wsgiref",
    "xml",
    "xmlrpc",
)

# Of `kangaroo`, what the agent imports.
AGENT_PACKAGES = ("agent", "linux", "wire")
AGENT_LEFT_OUT = ("wire/gen", "wire/aio.py")
AGENT_BUNDLE = BUNDLE.removeprefix("/")

# Loaded by the initrd, with what they depend on, in this order.
INITRD_MODULES = ("virtio_blk", "erofs")

# Loaded by the agent while it starts.
AGENT_MODULES = ("virtio_net", "vmw_vsock_virtio_transport", "virtio_rng")
AGENT_MODULES_LIST = "usr/lib/kangaroo/modules"

# Loaded on demand through /sbin/modprobe.
ON_DEMAND_MODULES = (
    "af_packet",
    "auth_rpcgss",
    "nfs",
    "nfsv3",
    "nfsv4",
    "nfs_layout_flexfiles",
    "nfs_layout_nfsv41_files",
    "overlay",
    "rpcsec_gss_krb5",
    "tcp_bbr",
    "unix_diag",
    "tcp_diag",
)

# Likewise, whole: a pod with NET_ADMIN has a firewall of its own, by iptables of either kind or by
# nft, and what its rules will be is its own affair.
ON_DEMAND_DIRECTORIES = (
    "kernel/net/ipv4/netfilter",
    "kernel/net/ipv6/netfilter",
    "kernel/net/netfilter",
    "kernel/net/netfilter/ipset",
)
