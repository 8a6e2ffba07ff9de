"""Which bind mounts of a container are NAS volumes, by the node's mount table. Pure (step 4)."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from kangaroo.errors import FailedPrecondition
from kangaroo.linux import mountinfo
from kangaroo.linux.mountinfo import MountEntry
from kangaroo.nas import kubelet_target
from kangaroo.nas.guest_mount import is_nas
from kangaroo.nas.placeholder import is_placeholder
from kangaroo.runtime.oci import Bind


@dataclass(frozen=True)
class OnNode:
    """The node still has the volume: `volume` is its mount; the bind is `subpath` below it."""

    volume: MountEntry
    subpath: str


@dataclass(frozen=True)
class OnPlaceholder:
    """The volume is in a guest: `volume` is the mount of its placeholder on the node."""

    volume: MountEntry
    subpath: str


@dataclass(frozen=True)
class NotNas:
    """Anything else; it travels by virtio-fs."""


Origin = OnNode | OnPlaceholder | NotNas


class PodMounts:
    """The node's mount table, seen from one pod's kubelet directory.

    Only a volume that kubelet mounted for this pod is taken over. An NFS mount anywhere else
    belongs to the node: that of a hostPath, also where kubelet binds a directory of it for a
    subPath, and one that somebody made inside an emptyDir.
    """

    def __init__(self, pod_directory: str, entries: Sequence[MountEntry]) -> None:
        self._entries = tuple(entries)
        self._pod_directory = pod_directory
        self._volumes = tuple(
            (target.volume, entry)
            for entry in self._entries
            if _within(entry.mount_point, pod_directory)
            and (
                target := kubelet_target.parse(entry.mount_point, posixpath.dirname(pod_directory))
            )
        )

    def volumes(self) -> tuple[OnNode | OnPlaceholder, ...]:
        """The pod's NAS volumes, where they are."""
        found: list[OnNode | OnPlaceholder] = []
        for _, entry in self._volumes:
            # What is mounted over is not there: a placeholder lies on the directory, not on NFS.
            if mountinfo.at(entry.mount_point, self._entries) != entry:
                continue
            if is_nas(entry):
                found.append(OnNode(entry, ""))
            elif is_placeholder(entry):
                found.append(OnPlaceholder(entry, ""))
        return tuple(found)

    def origin(self, bind: Bind) -> Origin:
        """Where the source of `bind` comes from. Raises FailedPrecondition on a lost subPath."""
        entry = mountinfo.covering(bind.source, self._entries)
        self._require_subpath(bind, entry)
        if entry is None or not _within(entry.mount_point, self._pod_directory):
            return NotNas()
        inside = posixpath.relpath(bind.source, entry.mount_point)
        if is_nas(entry):
            return self._on_node(entry, inside)
        if is_placeholder(entry):
            return self._on_placeholder(entry, inside)
        return NotNas()

    def is_volume(self, entry: MountEntry) -> bool:
        """Whether `entry` is a volume of the pod, and no mere subPath of one."""
        return any(entry == volume for _, volume in self._volumes)

    def mount_points(self, volume: MountEntry) -> tuple[str, ...]:
        """Every mount point of the volume's tree under the pod's directory, deepest and topmost
        first.

        These are the volume itself and the binds that kubelet made of its directories for subPath.
        The superblock alone does not tell: two volumes of one server may share it, so the source
        must be at or below the volume's.
        """
        found = [
            entry
            for entry in self._entries
            if entry.device == volume.device
            and _within(entry.mount_point, self._pod_directory)
            and _beneath_source(volume.source, entry.source) is not None
            and self._part_of(entry, volume)
        ]
        found.sort(key=lambda entry: (len(entry.mount_point), entry.mount_id), reverse=True)
        return tuple(entry.mount_point for entry in found)

    def _require_subpath(self, bind: Bind, entry: MountEntry | None) -> None:
        """kubelet always mounts what it prepares for a subPath. Where nothing is mounted, a volume
        was taken meanwhile, and what was written there would stay on the node.
        """
        if not _within(bind.source, f"{self._pod_directory}/volume-subpaths"):
            return
        if entry is None or not _within(entry.mount_point, self._pod_directory):
            raise FailedPrecondition(
                f"nothing is mounted on {bind.source}, which kubelet prepared for a subPath",
                hint="kubelet prepares it again when it retries",
            )

    def _on_node(self, entry: MountEntry, inside: str) -> Origin:
        volume = self._volume_of(entry)
        if volume is None:
            return NotNas()
        below = _beneath_source(volume.source, entry.source) or ""
        return OnNode(volume, _join(below, inside))

    def _on_placeholder(self, entry: MountEntry, inside: str) -> Origin:
        for _, volume in self._volumes:
            if volume.device == entry.device and volume.root == "/":
                return OnPlaceholder(volume, _join(entry.root.strip("/"), inside))
        return NotNas()

    def _part_of(self, entry: MountEntry, volume: MountEntry) -> bool:
        whole = self._volume_of(entry)
        return whole is not None and whole.mount_point == volume.mount_point

    def _volume_of(self, entry: MountEntry) -> MountEntry | None:
        """The pod's volume that `entry` is, or of which kubelet bound a directory for a subPath.
        None for what is no volume of kubelet's.

        kubelet's path of a subPath names the volume (GetPodVolumeSubpathsDir). A bind that is left
        of a volume that was taken meanwhile stands for itself.
        """
        named = []
        for name, volume in self._volumes:
            if volume == entry:
                return volume
            if _within(entry.mount_point, f"{self._pod_directory}/volume-subpaths/{name}"):
                named.append(volume)
        for volume in named:
            if (
                volume.device == entry.device
                and _beneath_source(volume.source, entry.source) is not None
            ):
                return volume
        return entry if named else None


def _within(path: str, directory: str) -> bool:
    return path.startswith(directory + "/")


def _beneath_source(volume: str, source: str) -> str | None:
    """The path of `source` below `volume` (both `server:/path`), "" when equal, None when it is not
    below.
    """
    base = volume.rstrip("/")
    if source.rstrip("/") == base:
        return ""
    return source[len(base) + 1 :].strip("/") if source.startswith(base + "/") else None


def _join(*parts: str) -> str:
    joined = posixpath.normpath(posixpath.join("", *(part for part in parts if part)) or ".")
    return "" if joined == "." else joined
