"""The Node service: requests checked, volumes published and taken away on this node."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path

from kangaroo.csi import requests, single_writer, targets, volume_id, volume_stats
from kangaroo.csi.config import Config
from kangaroo.csi.context import Context
from kangaroo.csi.locks import Locks
from kangaroo.csi.share import Worker
from kangaroo.csi.volume_stats import Figures
from kangaroo.errors import FailedPrecondition, InvalidRequest, NotFound
from kangaroo.linux import mountinfo
from kangaroo.nas import volume as nas_volume
from kangaroo.wire.gen import csi_pb2 as csi
from kangaroo.wire.gen import csi_pb2_grpc

_log = logging.getLogger(__name__)

_Mode = csi.VolumeCapability.AccessMode
_READER_MODES = (_Mode.SINGLE_NODE_READER_ONLY, _Mode.MULTI_NODE_READER_ONLY)
_CAPABILITIES = (
    csi.NodeServiceCapability.RPC.GET_VOLUME_STATS,
    csi.NodeServiceCapability.RPC.VOLUME_CONDITION,
    csi.NodeServiceCapability.RPC.EXPAND_VOLUME,
    csi.NodeServiceCapability.RPC.SINGLE_NODE_MULTI_WRITER,
)
_PATH_LIMIT_BYTES = 4096
_MESSAGE_LIMIT = 1024
_EPHEMERAL = f"{requests.FOREIGN_PREFIX}ephemeral"  # said where podInfoOnMount is set


class Node(csi_pb2_grpc.NodeServicer):
    def __init__(self, config: Config) -> None:
        self._node_id = config.effective_node_id
        self._locks = Locks()
        self._sandboxes = Path(config.sandboxes_dir)
        self._claims = Path(config.work_dir) / "single-writer"
        self._takes_ephemeral = config.ephemeral_volumes
        self._creator = (
            Worker(Path(config.work_dir), config.operation_timeout_s)
            if config.create_missing_directories
            else None
        )
        self._timeouts = targets.Timeouts(
            mount_s=config.mount_timeout_s,
            mode_s=config.mode_timeout_s,
            unmount_s=config.unmount_timeout_s,
            probe_s=config.probe_timeout_s,
        )

    async def NodePublishVolume(
        self, request: csi.NodePublishVolumeRequest, context: Context
    ) -> csi.NodePublishVolumeResponse:
        """Mount the volume on target_path. A repeat is OK, one that differs is ALREADY_EXISTS."""
        requests.check_id(request.volume_id)
        target = _target(request.target_path, "target_path")
        flags = requests.mount_flags([requests.capability(request)])
        self._check_ephemeral(request.volume_context)
        read_only = request.readonly or request.volume_capability.access_mode.mode in _READER_MODES
        volume = nas_volume.parse(request.volume_context, flags, read_only=read_only)
        async with contextlib.AsyncExitStack() as held:
            if request.volume_capability.access_mode.mode == _Mode.SINGLE_NODE_SINGLE_WRITER:
                await held.enter_async_context(self._locks.hold(request.volume_id))
                single_writer.claim(self._claims, request.volume_id, target)
            await held.enter_async_context(self._locks.hold(target))
            await targets.publish(volume, target, self._timeouts, self._creator_for(request))
        return csi.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(
        self, request: csi.NodeUnpublishVolumeRequest, context: Context
    ) -> csi.NodeUnpublishVolumeResponse:
        """Take away what is mounted on target_path, and the directory. A repeat is OK."""
        requests.check_id(request.volume_id)
        target = _target(request.target_path, "target_path")
        async with self._locks.hold(target):
            await targets.unpublish(target, self._timeouts)
            single_writer.release(self._claims, request.volume_id, target)
        return csi.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(
        self, request: csi.NodeGetVolumeStatsRequest, context: Context
    ) -> csi.NodeGetVolumeStatsResponse:
        """Bytes and inodes of a volume that is mounted on this node, or in a guest, and whether it
        can be used. One that cannot be is an answer too, without figures when there are none.
        """
        requests.check_id(request.volume_id)
        target = _published(request.volume_path)
        found = await volume_stats.look(target, self._timeouts.probe_s, self._sandboxes)
        problem = found.problem[:_MESSAGE_LIMIT]  # a guest may have said it
        if problem:
            _log.warning("volume abnormal volume=%s %s", request.volume_id, problem)
        return csi.NodeGetVolumeStatsResponse(
            usage=[] if found.figures is None else usage(found.figures),
            volume_condition=csi.VolumeCondition(
                abnormal=bool(problem), message=problem or "the server answers"
            ),
        )

    async def NodeExpandVolume(
        self, request: csi.NodeExpandVolumeRequest, context: Context
    ) -> csi.NodeExpandVolumeResponse:
        """Nothing is to be done on a node; the capacity asked for is what the volume has.

        Raises NotFound when no volume is published on volume_path.
        """
        requests.check_id(request.volume_id)
        target = _published(request.volume_path)
        capacity = requests.capacity(request.capacity_range)
        if request.HasField("volume_capability"):
            requests.check_capability(request.volume_capability, "volume_capability")
        if mountinfo.at(target, mountinfo.read()) is None:
            raise NotFound(f"no volume is published on {target}")
        return csi.NodeExpandVolumeResponse(capacity_bytes=capacity)

    async def NodeGetCapabilities(
        self, request: csi.NodeGetCapabilitiesRequest, context: Context
    ) -> csi.NodeGetCapabilitiesResponse:
        return csi.NodeGetCapabilitiesResponse(
            capabilities=[
                csi.NodeServiceCapability(rpc=csi.NodeServiceCapability.RPC(type=kind))
                for kind in _CAPABILITIES
            ]
        )

    async def NodeGetInfo(
        self, request: csi.NodeGetInfoRequest, context: Context
    ) -> csi.NodeGetInfoResponse:
        return csi.NodeGetInfoResponse(node_id=self._node_id)

    def _check_ephemeral(self, context: Mapping[str, str]) -> None:
        said = context.get(_EPHEMERAL, "false")
        if said not in ("true", "false"):
            raise InvalidRequest(f"volume_context.{_EPHEMERAL}", f"{said!r} is no truth value")
        if said == "true" and not self._takes_ephemeral:
            raise FailedPrecondition(
                "volumes that a pod describes itself are switched off on this node",
                hint="use a PersistentVolume, or set ephemeral_volumes = true in the driver's"
                " configuration",
            )

    def _creator_for(self, request: csi.NodePublishVolumeRequest) -> Worker | None:
        """Who makes a directory that is missing. That of a provisioned volume was made with it, so
        when it is missing somebody took it away.
        """
        provisioned = volume_id.decode(request.volume_id) is not None
        return None if provisioned else self._creator


def usage(figures: Figures) -> list[csi.VolumeUsage]:
    """Inodes are left out where the server does not count them."""
    size = csi.VolumeUsage(
        unit=csi.VolumeUsage.BYTES,
        total=figures.total_bytes,
        used=max(0, figures.total_bytes - figures.free_bytes),
        available=figures.available_bytes,
    )
    used_inodes = figures.total_inodes - figures.free_inodes
    if used_inodes < 0:
        return [size]
    inodes = csi.VolumeUsage(
        unit=csi.VolumeUsage.INODES,
        total=figures.total_inodes,
        used=used_inodes,
        available=figures.free_inodes,
    )
    return [size, inodes]


def _published(path: str) -> str:
    """The volume_path of a request. Raises NotFound for one that no volume can be on."""
    if path and not path.startswith("/"):
        raise NotFound(f"nothing is published on {path!r}, which is no target")
    return _target(path, "volume_path")


def _target(path: str, field: str) -> str:
    if not path:
        raise InvalidRequest(field, "missing")
    if not path.startswith("/"):
        raise InvalidRequest(field, f"{path!r} is not absolute")
    if "\0" in path or ".." in path.split("/") or len(path.encode()) > _PATH_LIMIT_BYTES:
        raise InvalidRequest(field, f"{path!r} is not a path that can be published on")
    try:
        target = targets.canonical(path)
    except (OSError, RuntimeError) as error:  # pathlib's own for links in a circle
        raise InvalidRequest(field, f"{path!r} cannot be followed: {error}") from error
    if target == "/":
        raise InvalidRequest(field, "the root directory is not a target")
    return target
