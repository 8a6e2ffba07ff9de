"""The tree that virtiofsd exports to the guest: `<container>/rootfs` and `volumes/<n>`, all bind
mounts.

A volume that several containers of the pod have is bound once: each bind is a file system of its
own in the guest, and what lies in two has no sockets, pipes, locks or pages in common
(docs/decisions/0027-one-bind-of-a-volume.md).

The directory is a shared mount, so what is mounted in it later appears in virtiofsd's own mount
namespace, which is a slave of it. Volumes are bound recursively and made slaves of where they come
from: what kubelet mounts or swaps in them later is seen, and nothing goes back. Removal detaches
mounts and deletes only empty directories and mount points, so a mistake here can never delete a
volume's data.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kangaroo.errors import InvalidRequest, MountFailed, Unsupported
from kangaroo.linux import bind, mount, mountinfo, python_child
from kangaroo.linux.mount import MountFlag, UmountFlag
from kangaroo.linux.process import run
from kangaroo.runtime.oci import SharedBind
from kangaroo.wire.agent_protocol import VOLUMES_NAME

_LOG = logging.getLogger(__name__)

# File systems that answer without a server or a daemon, which may be gone.
_LOCAL_FSTYPES = {
    *("bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660", "ntfs3"),
    *("overlay", "squashfs", "udf", "vfat", "xfs", "zfs"),
    *("cgroup2", "debugfs", "devtmpfs", "hugetlbfs", "proc", "ramfs", "sysfs", "tmpfs", "tracefs"),
}
_FLAGS = {
    "ro": MountFlag.RDONLY,
    "nosuid": MountFlag.NOSUID,
    "nodev": MountFlag.NODEV,
    "noexec": MountFlag.NOEXEC,
    "noatime": MountFlag.NOATIME,
    "relatime": MountFlag.RELATIME,
    "bind": MountFlag.BIND,
    "rbind": MountFlag.BIND | MountFlag.REC,
}
# What programs of a guest may do with files is decided there, by the flags of its own mounts.
_GUESTS_FLAGS = ("nosuid", "nodev", "noexec")
_LOWER = "lowerdir="
_IGNORED = {"rw", "defaults", "suid", "dev", "exec", "atime"}
# Where kubelet puts one directory of several emptyDirs, and one bind of it for each container that
# has a subPath of a volume.
_EMPTY_DIRS, _SUB_PATHS = "/kubernetes.io~empty-dir/", "/volume-subpaths/"


@dataclass(frozen=True)
class RootfsMount:
    """One mount of a container's root as containerd gives it; `target` is a path inside the root,
    normally empty.
    """

    type: str
    source: str
    target: str
    options: tuple[str, ...]


@dataclass
class _Volume:
    bind: SharedBind
    containers: set[str] = field(default_factory=set)


class SharedDirectory:
    """One sandbox's exported tree, in a directory of the sandbox's own. Every method is idempotent;
    mount errors are `MountFailed`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        # By what is bound. No number is used twice: a guest remembers what it had.
        self._volumes: dict[tuple[object, ...], _Volume] = {}
        self._numbers = itertools.count()
        self._binding = asyncio.Lock()

    def prepare(self) -> None:
        """Make the directory a shared mount of its own, within one of the directory above it."""
        self.root.mkdir(mode=0o755, exist_ok=True)
        if mountinfo.at(str(self.root), mountinfo.read()) is None:
            above = self.root.parent
            for directory in (above, self.root):
                mount.bind(directory, directory)
                # Out of the peer group of /run first: its other members must not get a copy of
                # every mount made here.
                mount.make_private(directory)
            mount.make_shared(self.root)
            # A pod's hostPath of / or /run is bound recursively: were the trees of all sandboxes in
            # it, each such pod would double the mounts of the node.
            mount.make_unbindable(above)

    def mount_rootfs(self, container_id: str, rootfs: Sequence[RootfsMount]) -> None:
        """Mount a container's root on `<container>/rootfs`."""
        target = self.root / container_id / "rootfs"
        target.mkdir(mode=0o755, parents=True, exist_ok=True)
        for entry in rootfs:
            flags, data = _parse_options(entry.options)
            place = _below(target, entry.target)
            try:
                if flags & MountFlag.BIND:
                    recursive, read_only = MountFlag.REC in flags, MountFlag.RDONLY in flags
                    mount.bind(entry.source, place, recursive=recursive, read_only=read_only)
                else:
                    with _fitting(data) as fitting:
                        mount.mount(entry.source, place, entry.type, flags, fitting)
            except OSError as error:
                raise MountFailed(
                    entry.source, ",".join(entry.options), str(error), errno=error.errno
                ) from error

    async def bind(
        self, container_id: str, source: str, *, read_only: bool, timeout_s: float
    ) -> SharedBind:
        """Bind `source`, a directory or a regular file, or find it bound for another container.

        `read_only` is enforced here on the node: what the guest makes of its own mount is up to
        whoever is root there. An emptyDir is the exception. Some container of the pod writes to
        it, and one that only reads it is to find that one's sockets.

        Raises InvalidRequest when it does not exist, Unsupported for a socket or a device,
        MountFailed, and DeadlineExceeded when it lies on a file system whose server or daemon
        does not answer.
        """
        entry = mountinfo.covering(source, mountinfo.read())
        remote = entry is not None and entry.fstype not in _LOCAL_FSTYPES
        inode = await _inode(source, remote=remote, timeout_s=timeout_s)
        read_only = read_only and _EMPTY_DIRS not in source
        # Of one directory kubelet makes a bind for each container with a subPath.
        name = "" if _SUB_PATHS in source else source
        key = (name, inode, read_only)
        async with self._binding:
            volume = self._volumes.get(key)
            if volume is None:
                number = next(self._numbers)
                target = self.root / VOLUMES_NAME / str(number)
                try:
                    await _bind(
                        *(source, target, inode),
                        remote=remote,
                        read_only=read_only,
                        timeout_s=timeout_s,
                    )
                except BaseException:
                    await asyncio.to_thread(_take_away, [target])
                    raise
                options = entry.options if entry is not None else ()
                flags = tuple(flag for flag in _GUESTS_FLAGS if flag in options)
                volume = self._volumes[key] = _Volume(SharedBind(number, flags))
            volume.containers.add(container_id)
            return volume.bind

    async def remove(self, container_id: str) -> None:
        """Take a container's root and directories away, and what no other container has bound."""
        over = [self.root / container_id]
        for key, volume in list(self._volumes.items()):
            volume.containers.discard(container_id)
            if not volume.containers:
                del self._volumes[key]
                over.append(self.root / VOLUMES_NAME / str(volume.bind.number))
        await asyncio.to_thread(_take_away, over)

    def destroy(self) -> None:
        """Take everything away, the shared mount included."""
        with contextlib.suppress(FileNotFoundError):
            volumes = self.root / VOLUMES_NAME
            _take_away([*_entries(volumes), *_entries(self.root)])
        _detach_below(self.root)
        try:
            self.root.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:  # what is left goes with the state directory
            _LOG.warning("cannot remove path=%s error=%s", self.root, error)
        _detach_below(self.root.parent)


@dataclass(frozen=True)
class _Inode:
    """What is bound, and whether it is a directory."""

    device: int
    number: int
    directory: bool


async def _bind(
    source: str, target: Path, inode: _Inode, *, remote: bool, read_only: bool, timeout_s: float
) -> None:
    target.parent.mkdir(mode=0o755, exist_ok=True)
    if inode.directory:
        target.mkdir(mode=0o755, exist_ok=True)
    else:
        target.touch(mode=0o600)
    try:
        if remote:
            # A path on a dead server blocks mount(2) too; in a child it can be given up.
            access = "ro" if read_only else "rw"
            argv = python_child.command(bind.__name__, access, source, str(target))
            await run(argv, timeout_s=timeout_s, env=python_child.environment())
        else:
            mount.bind(source, target, recursive=True, read_only=read_only)
        mount.make_slave(target, recursive=True)
    except OSError as error:
        raise MountFailed(source, "rbind", str(error), errno=error.errno) from error


def _parse_options(options: Sequence[str]) -> tuple[MountFlag, str]:
    flags = MountFlag.NONE
    data = []
    for option in options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option not in _IGNORED:
            data.append(option)
    return flags, ",".join(data)


@contextlib.contextmanager
def _fitting(options: str) -> Iterator[str]:
    """`options` as they are, or shorter where mount(2) would not take them whole: an overlay of
    some fifty layers and more. The directory that all of them are in is then a descriptor.
    """
    before, key, rest = options.partition(_LOWER)
    if len(os.fsencode(options)) <= mount.DATA_LIMIT or not key:
        yield options
        return
    layers, comma, after = rest.partition(",")
    paths = layers.split(":")
    common = os.path.commonpath(paths)
    directory = os.open(common, os.O_PATH | os.O_DIRECTORY)
    try:
        short = (f"/proc/self/fd/{directory}{path.removeprefix(common)}" for path in paths)
        yield f"{before}{key}{':'.join(short)}{comma}{after}"
    finally:
        os.close(directory)


def _below(root: Path, target: str) -> Path:
    parts = [part for part in target.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidRequest("rootfs target", f"{target!r} leaves the root")
    return root.joinpath(*parts)


async def _inode(source: str, *, remote: bool, timeout_s: float) -> _Inode:
    if remote:
        told = await run(("stat", "-L", "-c", "%f %d %i", "--", source), timeout_s=timeout_s)
        mode_digits, device, number = told.split()
        mode, inode = int(mode_digits, 16), (int(device), int(number))
    else:
        try:
            found = Path(source).stat()
        except FileNotFoundError as error:
            raise InvalidRequest("mount source", f"{source} does not exist") from error
        mode, inode = found.st_mode, (found.st_dev, found.st_ino)
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise Unsupported(
            f"mount source {source} is not supported by a Kangaroo sandbox: "
            "a socket, pipe or device of the node does not work in the guest"
        )
    return _Inode(*inode, directory=stat.S_ISDIR(mode))


def _detach_below(*paths: Path) -> None:
    """Detach every mount at or below `paths`, the deepest and the topmost first."""
    prefixes = tuple(f"{path}/" for path in paths)
    points = [
        entry.mount_point
        for entry in mountinfo.read()
        if f"{entry.mount_point}/".startswith(prefixes)
    ]
    for point in sorted(points, key=len, reverse=True):
        try:
            mount.umount(point, UmountFlag.DETACH | UmountFlag.NOFOLLOW)
        except OSError as error:
            # A recursive detach of a parent, or propagation, may have taken it already.
            _LOG.debug("detach mount_point=%s error=%s", point, error)


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _take_away(paths: Sequence[Path]) -> None:
    """Detach what is mounted there, and remove the directories and mount points that we made. Never
    recursive: what is not empty stays, with a warning.
    """
    _detach_below(*paths)
    for path in paths:
        for each in (path / "rootfs", path):
            try:
                if each.is_dir():
                    each.rmdir()
                elif each.is_file() and each.stat().st_size == 0:
                    each.unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                _LOG.warning("cannot remove path=%s error=%s", each, error)
