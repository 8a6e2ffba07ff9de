"""NAS volumes in the guest: mount, statistics, flush and unmount.

Every system call that can wait for a server is made in a forked child with a deadline, never in
PID 1.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import stat
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from kangaroo.agent import log
from kangaroo.agent.children import Children
from kangaroo.agent.flush import flush_and_unmount
from kangaroo.agent.kmsg import KernelLog
from kangaroo.agent.loop import Future, Loop
from kangaroo.errors import (
    AlreadyExists,
    CommandFailed,
    DeadlineExceeded,
    InvalidRequest,
    MountFailed,
    NotFound,
)
from kangaroo.linux.mount import MountFlag, UmountFlag, bind, mount, umount
from kangaroo.linux.openat2 import ensure_directory_beneath, open_beneath
from kangaroo.wire.agent_protocol import NAS_DIRECTORY

_FLAGS = {
    "ro": MountFlag.RDONLY,
    "nosuid": MountFlag.NOSUID,
    "nodev": MountFlag.NODEV,
    "noexec": MountFlag.NOEXEC,
    "noatime": MountFlag.NOATIME,
    "nodiratime": MountFlag.NODIRATIME,
}
_KERNEL_PREFIXES = ("NFS", "nfs", "RPC", "rpc", "lockd", "svc")
_NFS_VOLUMES = "/proc/fs/nfsfs/volumes"
_LOOK_AGAIN_S = 0.1
_LOADED = "RPC: Registered "  # what the first mount's modules say, whatever becomes of the mount

_ACCESS = (
    "the server refuses this guest: the export may allow only the addresses of nodes, or only"
    " privileged ports, which masquerading takes away"
)
_REACH = "the guest cannot reach the server: check its address, the pod's network and firewalls"
_HINTS = {
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.ETIMEDOUT: _REACH,
    errno.ENETUNREACH: _REACH,
    errno.EHOSTUNREACH: _REACH,
    errno.ECONNREFUSED: _REACH,
    errno.EPROTONOSUPPORT: "the server does not speak this NFS version",
    errno.EINVAL: "the guest's kernel does not accept an option or the NFS version",
    errno.ENOENT: "the server does not export this path",
    errno.ENODEV: "the guest's kernel lacks the file system",
}


class Request(NamedTuple):
    """What mount to make."""

    source: str
    fstype: str
    flags: tuple[str, ...]
    options: str


class Volume(NamedTuple):
    """A mounted volume. `request` is what was asked for."""

    mount_point: str
    device: str
    super_options: str
    request: Request


class Volumes:
    """The NAS volumes of this guest, by volume id."""

    def __init__(self, loop: Loop, children: Children) -> None:
        self._loop = loop
        self._children = children
        self._volumes: dict[str, Volume] = {}
        self._mounting: dict[str, Future] = {}

    def mount_point(self, volume_id: str) -> str:
        """Where the volume is mounted. Raises NotFound."""
        return self._find(volume_id).mount_point

    def flags(self, volume_id: str) -> tuple[str, ...]:
        """The mount flags that the volume is mounted with. Raises NotFound."""
        return self._find(volume_id).request.flags

    async def mount(
        self,
        *,
        volume_id: str,
        source: str,
        fstype: str,
        flags: list[str],
        options: str,
        read_ahead_kib: int | None,
        timeout_s: float,
    ) -> Volume:
        """Mount, or return the mount that a repeated call finds. Without `read_ahead_kib` files are
        read ahead as the kernel does by default.

        Raises MountFailed (ETIMEDOUT when the kernel does not come back), InvalidRequest for an
        unknown flag, AlreadyExists when the volume id stands for another mount.
        """
        request = Request(source, fstype, tuple(flags), options)
        while volume_id in self._mounting:
            earlier = Future()
            self._mounting[volume_id].then(earlier.set)
            await earlier
        volume = self._volumes.get(volume_id)
        if volume is None:
            done = self._mounting[volume_id] = Future()
            try:
                volume = await self._mount(volume_id, request, timeout_s)
            finally:
                del self._mounting[volume_id]
                done.set()
            self._volumes[volume_id] = volume
            if read_ahead_kib is not None:
                _set_read_ahead(volume, read_ahead_kib)
            log.info("mounted", volume=volume_id, source=source)
        if volume.request != request:
            raise AlreadyExists(
                f"volume {volume_id} is mounted from {volume.request.source} otherwise"
            )
        return volume

    async def _mount(self, volume_id: str, request: Request, timeout_s: float) -> Volume:
        source, fstype, flags, options = request
        mount_flags = MountFlag.NONE
        for name in flags:
            if name not in _FLAGS:
                raise InvalidRequest("flags", f"{name!r} is no mount flag known here")
            mount_flags |= _FLAGS[name]
        target = f"{NAS_DIRECTORY}/{volume_id}"
        # Of an earlier attempt that came to its end late, before anything looks at it.
        _detach(target)
        os.makedirs(target, mode=0o700, exist_ok=True)
        with KernelLog() as kernel_log:
            try:
                await self._children.call(
                    lambda: mount(source, target, fstype, mount_flags, options),
                    what=f"mount {source}",
                    timeout_s=timeout_s,
                )
            except DeadlineExceeded as error:
                _detach(target)
                reason = f"the server did not answer within {timeout_s:g} s"
                raise _failure(request, errno.ETIMEDOUT, reason, kernel_log) from error
            except OSError as error:
                raise _failure(request, error.errno, "", kernel_log) from error
        found = _mounted(target)
        if found is None:
            raise MountFailed(source, options, "the mount is not in the mount table")
        return Volume(target, *found, request)

    async def unmount(self, *, volume_id: str, timeout_s: float) -> None:
        """Write back and unmount. A volume that is not mounted is fine.

        Raises OSError (EBUSY while a container uses it), DeadlineExceeded.
        """
        volume = self._volumes.get(volume_id)
        if volume is None:
            return
        await self._children.call(
            lambda: flush_and_unmount(volume.mount_point),
            what=f"unmount {volume_id}",
            timeout_s=timeout_s,
        )
        del self._volumes[volume_id]
        log.info("unmounted", volume=volume_id)

    async def unmount_all(self, timeout_s: float) -> list[dict[str, Any]]:
        """Unmount every volume, side by side; what became of each.

        A volume counts as written back when also the file systems are that its server has mounted
        within (`crossmnt` in exports(5)). They are mounts of containers, and end with them.
        """
        deadline = time.monotonic() + timeout_s
        volumes, servers = dict(self._volumes), servers_by_device(_lines(_NFS_VOLUMES))
        ends = {
            volume_id: self._loop.spawn(self.unmount(volume_id=volume_id, timeout_s=timeout_s))
            for volume_id in volumes
        }
        own = {volume.device: servers.get(volume.device, "") for volume in volumes.values()}
        left = await self._left_within(own, deadline)
        outcomes = []
        for volume_id, end in ends.items():
            error: str | None = None
            try:
                await end
            except (OSError, DeadlineExceeded, CommandFailed) as failure:
                error = str(failure)
            if error is None and own[volumes[volume_id].device] in left:
                error = f"a file system within the volume is not done within {timeout_s:g} s"
            if error is not None:
                log.info("not flushed", volume=volume_id, error=error)
            outcomes.append({"volume_id": volume_id, "flushed": error is None, "error": error})
        return outcomes

    async def _left_within(self, servers: dict[str, str], deadline: float) -> set[str]:
        """Of which servers of volumes (`servers`, by device) there are other file systems, once
        there are none, or at the deadline. The kernel tells nobody of the end of one.
        """
        while True:
            found = servers_by_device(_lines(_NFS_VOLUMES))
            left = {found[device] for device in found.keys() - servers.keys()}
            left &= set(servers.values())
            remaining_s = deadline - time.monotonic()
            if not left or remaining_s <= 0:
                return left
            await self._loop.within(Future(), min(_LOOK_AGAIN_S, remaining_s))

    async def stats(self, *, volume_id: str, timeout_s: float) -> dict[str, Any]:
        """statfs and the section of /proc/self/mountstats."""
        mount_point = self._find(volume_id).mount_point
        answer: dict[str, Any] = await self._children.call(
            lambda: _statfs(mount_point), what=f"statfs {volume_id}", timeout_s=timeout_s
        )
        answer["mountstats"] = _mountstats(mount_point)
        return answer

    async def bind(
        self, *, volume_id: str, subpath: str, create: bool, target: str, timeout_s: float
    ) -> None:
        """Bind what lies at `subpath` beneath the volume on the new path `target`.

        Raises InvalidRequest when the subpath leaves the volume, NotFound when there is nothing.
        """
        mount_point = self.mount_point(volume_id)
        await self._resolved(
            lambda: _bind_beneath(mount_point, subpath, create, target),
            volume_id,
            subpath,
            timeout_s,
        )

    async def _resolved(
        self, function: Callable[[], None], volume_id: str, subpath: str, timeout_s: float
    ) -> None:
        what = f"subPath {subpath!r} of volume {volume_id}"
        try:
            await self._children.call(function, what=what, timeout_s=timeout_s)
        except FileNotFoundError as error:
            raise NotFound(
                f"{what} does not exist on {self._find(volume_id).request.source}"
            ) from error
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.ELOOP):
                raise InvalidRequest(what, "it leads out of the volume") from error
            number = error.errno or errno.EIO
            raise OSError(number, f"{os.strerror(number)}, {what}") from error

    def _find(self, volume_id: str) -> Volume:
        volume = self._volumes.get(volume_id)
        if volume is None:
            raise NotFound(f"volume {volume_id} is not mounted in the guest")
        return volume


def _failure(
    request: Request, number: int | None, reason: str, kernel_log: KernelLog
) -> MountFailed:
    name = errno.errorcode.get(number or 0, "")
    parts = [reason or f"{os.strerror(number or 0)} ({name})"]
    if addresses := _guest_addresses():
        parts.append(f"guest address {', '.join(addresses)}")
    lines = kernel_log.lines(*_KERNEL_PREFIXES)
    if said := [line for line in lines if not line.startswith(_LOADED)]:
        parts.append(f"kernel: {'; '.join(said)}")
    hint = _HINTS.get(number or 0)
    return MountFailed(request.source, request.options, "; ".join(parts), errno=number, hint=hint)


def _guest_addresses() -> list[str]:
    """Addresses of the guest that are neither its loopback's nor a link's own."""
    addresses: list[str] = []
    for above, line in itertools.pairwise(_lines("/proc/net/fib_trie")):
        if "/32 host LOCAL" in line:
            address = above.rpartition(" ")[2]
            if not address.startswith("127.") and address not in addresses:
                addresses.append(address)
    for line in _lines("/proc/net/if_inet6"):
        digits, _, _, scope, *_ = line.split()
        if scope == "00":  # global, include/net/ipv6.h
            addresses.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return addresses


def servers_by_device(lines: list[str]) -> dict[str, str]:
    """Server and port of each NFS file system of the guest, as lines of /proc/fs/nfsfs/volumes
    have them after the heading (fs/nfs/client.c, nfs_volume_list_show).
    """
    return {
        device: f"{server} {port}"
        for _, server, port, device, *_ in (line.split() for line in lines[1:])
    }


def _lines(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().splitlines()
    except OSError:
        return []


def _mounted(target: str) -> tuple[str, str] | None:
    """Device and options of the file system that is mounted at `target`."""
    found = None
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields = line.split(" ")
            if fields[4] == target:  # our own paths need no unescaping
                found = fields[2], fields[-1].strip()
    return found


def _set_read_ahead(volume: Volume, kib: int) -> None:
    """A volume that reads ahead otherwise is slower or faster, and works: a failure is logged."""
    try:
        with open(f"/sys/class/bdi/{volume.device}/read_ahead_kb", "w") as file:
            file.write(str(kib))
    except OSError as error:
        log.info("read-ahead is not set", volume=volume.mount_point, error=error)


def _detach(target: str) -> None:
    """Take a mount away that came too late."""
    try:
        umount(target, UmountFlag.DETACH)
    except OSError:
        pass  # it did not come


def _statfs(mount_point: str) -> dict[str, int]:
    found = os.statvfs(mount_point)
    return {
        "total_bytes": found.f_blocks * found.f_frsize,
        "free_bytes": found.f_bfree * found.f_frsize,
        "available_bytes": found.f_bavail * found.f_frsize,
        "total_inodes": found.f_files,
        "free_inodes": found.f_ffree,
    }


def _mountstats(mount_point: str) -> str:
    """The section of one mount; sections begin with `device … mounted on … with fstype …`."""
    with open("/proc/self/mountstats") as file:
        sections = file.read().split("\ndevice ")
    for section in sections:
        if f" mounted on {mount_point} with fstype " in section.partition("\n")[0]:
            return f"device {section.removeprefix('device ').rstrip()}\n"
    return ""


def _bind_beneath(mount_point: str, subpath: str, create: bool, target: str) -> None:
    """In the child: resolve, make the place, bind."""
    root = os.open(mount_point, os.O_PATH | os.O_DIRECTORY)
    try:
        # Looking even "." up needs the right to enter, which a server may deny to root.
        found = _found_beneath(root, subpath, create) if subpath else os.dup(root)
    finally:
        os.close(root)
    try:
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        if stat.S_ISDIR(os.fstat(found).st_mode):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        # The descriptor, not the path: whatever is renamed from now on, this is what was found.
        bind(f"/proc/self/fd/{found}", target)
    finally:
        os.close(found)


def _found_beneath(root: int, subpath: str, create: bool) -> int:
    try:
        return open_beneath(root, subpath, os.O_PATH)
    except FileNotFoundError:
        if not create:
            raise
    # As kubelet does: a directory made for a subPath has the mode of the volume's root.
    return ensure_directory_beneath(root, subpath, stat.S_IMODE(os.fstat(root).st_mode))
