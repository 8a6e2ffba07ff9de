"""The tree that virtiofsd exports to the guest: `<container>/rootfs` and `<container>/mounts/<n>`,
all bind mounts.

The directory is a shared mount, so what is mounted in it later appears in virtiofsd's own mount
namespace, which is a slave of it. Volumes are bound recursively and made slaves of where they come
from: what kubelet mounts or swaps in them later is seen, and nothing goes back. Removal detaches
mounts and deletes only empty directories and mount points, so a mistake here can never delete a
volume's data.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kangaroo.errors import InvalidRequest, MountFailed, Unsupported
from kangaroo.linux import bind, mount, mountinfo, python_child
from kangaroo.linux.mount import MountFlag, UmountFlag
from kangaroo.linux.process import run

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


@dataclass(frozen=True)
class RootfsMount:
    """One mount of a container's root as containerd gives it; `target` is a path inside the root,
    normally empty.
    """

    type: str
    source: str
    target: str
    options: tuple[str, ...]


class SharedDirectory:
    """One sandbox's exported tree, in a directory of the sandbox's own. Every method is idempotent;
    mount errors are `MountFailed`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

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
        self, container_id: str, number: int, source: str, *, read_only: bool, timeout_s: float
    ) -> tuple[str, ...]:
        """Bind `source` on `<container>/mounts/<number>`; it may be a directory or a regular file.
        Returns those flags of the mount it lies on that only a mount in the guest can keep up.

        `read_only` is enforced here on the node: what the guest makes of its own mount is up to
        whoever is root there.

        Raises InvalidRequest when it does not exist, Unsupported for a socket or a device,
        MountFailed, and DeadlineExceeded when it lies on a file system whose server or daemon
        does not answer.
        """
        target = self.root / container_id / "mounts" / str(number)
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        entry = mountinfo.covering(source, mountinfo.read())
        remote = entry is not None and entry.fstype not in _LOCAL_FSTYPES
        if not await _is_directory(source, remote=remote, timeout_s=timeout_s):
            target.touch(mode=0o600)
        else:
            target.mkdir(mode=0o755, exist_ok=True)
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
        return tuple(flag for flag in _GUESTS_FLAGS if entry is not None and flag in entry.options)

    def remove(self, container_id: str) -> None:
        """Take a container's mounts and directories away."""
        directory = self.root / container_id
        _detach_below(directory)
        _remove_skeleton(directory)

    def destroy(self) -> None:
        """Take everything away, the shared mount included."""
        with contextlib.suppress(FileNotFoundError):
            for directory in sorted(self.root.iterdir()):
                self.remove(directory.name)
        _detach_below(self.root)
        try:
            self.root.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:  # what is left goes with the state directory
            _LOG.warning("cannot remove path=%s error=%s", self.root, error)
        _detach_below(self.root.parent)


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


async def _is_directory(source: str, *, remote: bool, timeout_s: float) -> bool:
    if remote:
        kind = await run(("stat", "-L", "-c", "%F", "--", source), timeout_s=timeout_s)
        directory, regular = kind.strip() == "directory", kind.startswith("regular")
    else:
        try:
            mode = Path(source).stat().st_mode
        except FileNotFoundError as error:
            raise InvalidRequest("mount source", f"{source} does not exist") from error
        directory, regular = stat.S_ISDIR(mode), stat.S_ISREG(mode)
    if not directory and not regular:
        raise Unsupported(
            f"mount source {source} is not supported by a Kangaroo sandbox: "
            "a socket, pipe or device of the node does not work in the guest"
        )
    return directory


def _detach_below(directory: Path) -> None:
    """Detach every mount at or below `directory`, the deepest and the topmost first."""
    prefix = str(directory)
    points = [
        entry.mount_point
        for entry in mountinfo.read()
        if entry.mount_point == prefix or entry.mount_point.startswith(prefix + "/")
    ]
    for point in sorted(points, key=len, reverse=True):
        try:
            mount.umount(point, UmountFlag.DETACH | UmountFlag.NOFOLLOW)
        except OSError as error:
            # A recursive detach of a parent, or propagation, may have taken it already.
            _LOG.debug("detach mount_point=%s error=%s", point, error)


def _remove_skeleton(directory: Path) -> None:
    """Remove the directories and mount points that we made. Never recursive: what is not empty
    stays, with a warning.
    """
    mounts = directory / "mounts"
    points = sorted(mounts.iterdir()) if mounts.is_dir() else []
    for path in (*points, mounts, directory / "rootfs", directory):
        try:
            if path.is_dir():
                path.rmdir()
            elif path.is_file() and path.stat().st_size == 0:
                path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            _LOG.warning("cannot remove path=%s error=%s", path, error)
