"""From a bare kernel to a system in which containers can run."""

from __future__ import annotations

import ctypes
import errno
import os
import resource

from kangaroo.agent.cgroups import PARENT, ROOT
from kangaroo.errors import Unavailable
from kangaroo.linux import libc
from kangaroo.linux.mount import MountFlag, mount
from kangaroo.wire.agent_protocol import NAS_DIRECTORY, SHARED_DIRECTORY, VIRTIOFS_TAG

_SAFE = MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC
_FILE_SYSTEMS = (
    ("proc", "/proc", "proc", _SAFE, ""),
    ("sysfs", "/sys", "sysfs", _SAFE, ""),
    ("cgroup2", ROOT, "cgroup2", _SAFE, ""),
    ("devpts", "/dev/pts", "devpts", MountFlag.NOSUID | MountFlag.NOEXEC, "mode=620,ptmxmode=666"),
    ("mqueue", "/dev/mqueue", "mqueue", _SAFE, ""),
    ("tmpfs", "/dev/shm", "tmpfs", MountFlag.NOSUID | MountFlag.NODEV, "mode=1777"),
    ("tmpfs", "/run", "tmpfs", MountFlag.NOSUID | MountFlag.NODEV, "mode=755"),
    ("tmpfs", "/tmp", "tmpfs", MountFlag.NOSUID | MountFlag.NODEV, "mode=1777"),
)
_CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")
_MODULES_LIST = "/usr/lib/kangaroo/modules"
_OPEN_FILES = 1 << 20  # the kernel's default fs.nr_open
_SYS_FINIT_MODULE = 313  # x86-64


def mount_pseudo_file_systems() -> None:
    """Everything that a Linux program expects to find mounted."""
    os.umask(0o022)
    for source, target, fstype, flags, data in _FILE_SYSTEMS:
        if target.startswith("/dev/"):
            os.makedirs(target, exist_ok=True)
        mount(source, target, fstype, flags, data)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        if not os.path.lexists(f"/dev/{name}"):
            os.symlink(f"/proc/self/fd{target}", f"/dev/{name}")


def enable_controllers() -> None:
    """Make the containers' parent cgroup and hand it the controllers that the kernel has."""
    parent = f"{ROOT}/{PARENT}"
    os.makedirs(parent, exist_ok=True)
    with open(f"{ROOT}/cgroup.controllers") as file:
        present = file.read().split()
    wanted = " ".join(f"+{name}" for name in _CONTROLLERS if name in present)
    for directory in (ROOT, parent):
        with open(f"{directory}/cgroup.subtree_control", "w") as file:
            file.write(wanted)


def load_modules() -> None:
    """Drivers of devices that no udev is there to announce; the image lists them in load order.

    By finit_module(2), because starting modprobe takes longer than loading them.
    """
    with open(_MODULES_LIST) as file:
        paths = file.read().split()
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc.call("syscall", ctypes.c_long(_SYS_FINIT_MODULE), fd, b"", 0, named=path)
        except FileExistsError:  # it is loaded
            pass
        finally:
            os.close(fd)


def raise_limits() -> None:
    """Containers inherit these where their specification says nothing; runc's, under containerd,
    are as high. Of processes the kernel would let a user have 2048 in a guest of 512 MiB.
    """
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    for unbounded in (resource.RLIMIT_CORE, resource.RLIMIT_NPROC):
        resource.setrlimit(unbounded, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def mount_shared() -> None:
    """The tree that the host shares by virtio-fs. Raises Unavailable when no device offers it."""
    os.makedirs(SHARED_DIRECTORY, exist_ok=True)
    os.makedirs(NAS_DIRECTORY, exist_ok=True)
    try:
        mount(VIRTIOFS_TAG, SHARED_DIRECTORY, "virtiofs", MountFlag.NODEV)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise Unavailable(f"no virtio-fs device offers the tag {VIRTIOFS_TAG!r}") from error


def command_line() -> dict[str, str]:
    """The kernel's parameters; one without `=` has the value ""."""
    with open("/proc/cmdline") as file:
        words = file.read().split()
    return {key: value for key, _, value in (word.partition("=") for word in words)}
