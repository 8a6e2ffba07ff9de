"""NAS passthrough: move a pod's NAS volumes from the node's kernel into the guest's (steps 4 to 7).

For each volume, in this order: the guest mounts it; the state file says so; the node unmounts it; a
placeholder takes its place. So a guest that cannot mount costs nothing, and after a crash at any
point either the node still has the mount or the state names the path that stands for it. The
placeholder carries a record of the volume: a later sandbox of the same pod finds there what to
mount.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kangaroo.errors import KangarooError, MountFailed, Unsupported
from kangaroo.linux import mountinfo
from kangaroo.linux.mountinfo import MountEntry
from kangaroo.nas.guest_mount import GuestMount, from_mount
from kangaroo.nas.passthrough import PassthroughPolicy
from kangaroo.runtime.agent_client import AgentClient
from kangaroo.runtime.node_mounts import NodeMounts
from kangaroo.runtime.oci import Bind, NasBind
from kangaroo.runtime.pod_events import Reason
from kangaroo.runtime.state import (
    PlaceholderState,
    SandboxState,
    VolumeState,
    mount_entry,
    volume_state,
)
from kangaroo.runtime.takeover_plan import NotNas, OnNode, OnPlaceholder, PodMounts

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PodVolumes:
    """Whose volumes these are: kubelet's directory of the pod, and the addresses that servers will
    see.
    """

    pod_directory: Path
    guest_addresses: tuple[str, ...]


class Passthrough:
    """The NAS volumes of one sandbox. `state` and `save` give and replace the sandbox's state on
    disk; `tell` says to the pod's owner what became of a volume.
    """

    def __init__(
        self,
        *,
        policy: PassthroughPolicy,
        pod: PodVolumes,
        agent: AgentClient,
        state: Callable[[], SandboxState],
        save: Callable[[SandboxState], None],
        mount_timeout_s: float,
        node: NodeMounts,
        tell: Callable[[Reason, str], None],
    ) -> None:
        self._policy = policy
        self._pod = pod
        self._agent = agent
        self._state = state
        self._save = save
        self._mount_timeout_s = mount_timeout_s
        self._node = node
        self._tell = tell
        self._options: dict[str, str] = {}  # of what the guest has mounted
        self._fallen_back: set[str] = set()
        self._lock = asyncio.Lock()

    async def prepare(self) -> None:
        """Mount the volumes of the pod in the guest, side by side; the node keeps what it has.

        So one that the guest cannot mount fails the sandbox, which kubelet makes again until it
        can: a container that fails to start is for some pods the end (restartPolicy). Raises as
        `place`.
        """
        async with self._lock:
            mounts = self._mounts()
            attempts = [self._prepare(mounts, origin) for origin in mounts.volumes()]
            outcomes = await asyncio.gather(*attempts, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def place(self, binds: Sequence[Bind]) -> dict[int, NasBind]:
        """The binds of one container that are NAS directories, by index, mounted in the guest by
        now; the others travel by virtio-fs.

        Where each comes from is decided before the first is taken: taking a volume also takes the
        binds that kubelet made of its directories. A repeat finds the volumes mounted and does
        nothing more. Raises MountFailed or Unsupported (the node's mount is then as it was),
        FailedPrecondition when a placeholder has lost its record.
        """
        async with self._lock:
            mounts = self._mounts()
            origins = [(bind.index, mounts.origin(bind)) for bind in binds]
            volumes: dict[str, str | None] = {}
            placed = {}
            for index, origin in origins:
                if isinstance(origin, NotNas):
                    continue
                path = origin.volume.mount_point
                if path not in volumes:
                    volumes[path] = await self._mount(mounts, origin)
                volume_id = volumes[path]
                if volume_id is not None:
                    # kubelet made the directory on the placeholder, where the NAS does not see it.
                    create = isinstance(origin, OnPlaceholder) and bool(origin.subpath)
                    placed[index] = NasBind(volume_id, origin.subpath, create=create)
            return placed

    def _mounts(self) -> PodMounts:
        return PodMounts(str(self._pod.pod_directory), self._node.table())

    async def _prepare(self, mounts: PodMounts, origin: OnNode | OnPlaceholder) -> None:
        record = (
            await self._recorded(origin.volume)
            if isinstance(origin, OnPlaceholder)
            else await self._in_guest(mounts, origin.volume)
        )
        if record is not None:
            self._save(self._state().with_volume(record))

    async def _mount(self, mounts: PodMounts, origin: OnNode | OnPlaceholder) -> str | None:
        if isinstance(origin, OnPlaceholder):
            return await self._from_placeholder(origin.volume)
        return await self._from_node(mounts, origin.volume)

    async def _from_node(self, mounts: PodMounts, volume: MountEntry) -> str | None:
        record = await self._in_guest(mounts, volume)
        if record is None:
            return None
        await self._take_from_node(mounts, volume, record)
        self._tell(
            Reason.IN_GUEST,
            f"{record.source} is mounted in the guest, no longer on the node: "
            f"{self._options[record.volume_id]}",
        )
        return record.volume_id

    async def _in_guest(self, mounts: PodMounts, volume: MountEntry) -> VolumeState | None:
        """The record of a volume that the node has, once the guest has it, too; None where it
        travels by virtio-fs.
        """
        if not self._policy.enabled or volume.mount_point in self._fallen_back:
            return None
        read_ahead_kib = self._node.read_ahead_kib(volume.device)
        try:
            if not mounts.is_volume(volume):
                raise Unsupported(
                    f"{volume.mount_point}: the subPath is {volume.source}, which is not beneath"
                    " the volume's directory: moved, or another file system of the server",
                    hint="mount that directory as a volume of its own",
                )
            guest_mount = from_mount(volume, guest_addresses=self._pod.guest_addresses)
            await self._mount_in_guest(guest_mount, read_ahead_kib)
        except (MountFailed, Unsupported) as error:
            if not self._policy.fallback_virtiofs:
                raise
            self._fall_back(volume, error)
            return None
        return volume_state(guest_mount.volume_id, volume, read_ahead_kib)

    def _fall_back(self, volume: MountEntry, error: MountFailed | Unsupported) -> None:
        """For as long as the sandbox lives: a later container that took the volume would leave the
        earlier one with a mount of its own on the node.
        """
        self._fallen_back.add(volume.mount_point)
        _LOG.warning("guest cannot mount NAS volume, falling back to virtio-fs error=%s", error)
        self._tell(Reason.FALLBACK, f"mounted on the node and shared by virtio-fs: {error}")

    async def _mount_in_guest(self, guest_mount: GuestMount, read_ahead_kib: int | None) -> None:
        if guest_mount.volume_id in self._options:
            return
        try:
            await self._agent.mount_nas(
                volume_id=guest_mount.volume_id,
                source=guest_mount.source,
                fstype=guest_mount.fstype,
                flags=list(guest_mount.flags),
                options=guest_mount.options,
                read_ahead_kib=read_ahead_kib,
                timeout_s=self._mount_timeout_s,
            )
        except MountFailed as error:
            raise self._explain(guest_mount, error) from error
        self._options[guest_mount.volume_id] = guest_mount.options
        _LOG.info(
            "NAS volume mounted in the guest volume=%s source=%s options=%s",
            guest_mount.volume_id,
            guest_mount.source,
            guest_mount.options,
        )

    def _explain(self, guest_mount: GuestMount, error: MountFailed) -> MountFailed:
        name = errno.errorcode.get(error.errno, "") if error.errno is not None else ""
        reason = f"the guest at {guest_mount.guest_address} cannot mount it: {error.reason}"
        if name and name not in reason:
            reason += f" [{name}]"
        return MountFailed(
            guest_mount.source, guest_mount.options, reason, errno=error.errno, hint=error.hint
        )

    async def _take_from_node(
        self, mounts: PodMounts, volume: MountEntry, record: VolumeState
    ) -> None:
        """Record the volume, unmount it on the node, and put the placeholder there."""
        path = volume.mount_point
        unfinished = PlaceholderState(path=path, device="", volume_id=record.volume_id)
        self._save(self._state().with_volume(record).with_placeholder(unfinished))
        mount_points = mounts.mount_points(volume)
        try:
            for mount_point in mount_points:
                await self._node.unmount(mount_point)
        except BaseException:
            # umount(2) takes a mount from the table before it waits for the server. A bare path
            # would be the node's disk to the pod's next sandbox.
            if mountinfo.at(path, self._node.table()) is None:
                with contextlib.suppress(KangarooError, OSError):
                    self._put_placeholder(path, record)
            raise
        self._put_placeholder(path, record)
        for mount_point in {*mount_points} - {path}:
            self._node.remove_mount_point(mount_point)
        _LOG.info("NAS volume taken from the node volume=%s path=%s", record.volume_id, path)

    def _put_placeholder(self, path: str, record: VolumeState) -> None:
        self._save(self._state().with_placeholder(self._node.put_placeholder(path, record)))

    async def _from_placeholder(self, placeholder: MountEntry) -> str:
        path = placeholder.mount_point
        for known in self._state().placeholders:
            if known.path == path and known.device == placeholder.device:
                return known.volume_id
        record = await self._recorded(placeholder)
        standing = PlaceholderState(path, placeholder.device, record.volume_id)
        self._save(self._state().with_volume(record).with_placeholder(standing))
        return record.volume_id

    async def _recorded(self, placeholder: MountEntry) -> VolumeState:
        """The record of a volume that another sandbox of this pod took, once our guest has it."""
        recorded = self._node.read_record(placeholder.mount_point)
        entry = mount_entry(recorded)
        guest_mount = from_mount(entry, guest_addresses=self._pod.guest_addresses)
        await self._mount_in_guest(guest_mount, recorded.read_ahead_kib)
        return dataclasses.replace(recorded, volume_id=guest_mount.volume_id)
