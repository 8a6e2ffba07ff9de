"""The Node service: requests checked, volumes published and taken away on this node."""

from __future__ import annotations

import contextlib
from pathlib import Path

from kangaroo.csi import requests, single_writer, targets
from kangaroo.csi.config import Config
from kangaroo.csi.context import Context
from kangaroo.csi.locks import Locks
from kangaroo.errors import InvalidRequest, NotFound
from kangaroo.nas import volume as nas_volume
from kangaroo.wire.gen import csi_pb2 as csi
from kangaroo.wire.gen import csi_pb2_grpc

_Mode = csi.VolumeCapability.AccessMode
_READER_MODES = (_Mode.SINGLE_NODE_READER_ONLY, _Mode.MULTI_NODE_READER_ONLY)
_CAPABILITIES = (
    csi.NodeServiceCapability.RPC.GET_VOLUME_STATS,
    csi.NodeServiceCapability.RPC.SINGLE_NODE_MULTI_WRITER,
)
_PATH_LIMIT_BYTES = 4096


class Node(csi_pb2_grpc.NodeServicer):
    def __init__(self, config: Config) -> None:
        self._node_id = config.effective_node_id
        self._locks = Locks()
        self._sandboxes = Path(config.sandboxes_dir)
        self._claims = Path(config.work_dir) / "single-writer"
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
        flags = requests.mount_flags(request)
        read_only = request.readonly or request.volume_capability.access_mode.mode in _READER_MODES
        volume = nas_volume.parse(request.volume_context, flags, read_only=read_only)
        async with contextlib.AsyncExitStack() as held:
            if request.volume_capability.access_mode.mode == _Mode.SINGLE_NODE_SINGLE_WRITER:
                await held.enter_async_context(self._locks.hold(request.volume_id))
                single_writer.claim(self._claims, request.volume_id, target)
            await held.enter_async_context(self._locks.hold(target))
            await targets.publish(volume, target, self._timeouts)
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
        """Bytes and inodes of a volume that is mounted on this node, or in a guest."""
        requests.check_id(request.volume_id)
        if request.volume_path and not request.volume_path.startswith("/"):
            raise NotFound(f"nothing is published on {request.volume_path!r}, which is no target")
        target = _target(request.volume_path, "volume_path")
        total, free, available, inodes, free_inodes = await targets.statistics(
            target, self._timeouts, self._sandboxes
        )
        return csi.NodeGetVolumeStatsResponse(
            usage=[
                csi.VolumeUsage(
                    unit=csi.VolumeUsage.BYTES, total=total, used=total - free, available=available
                ),
                csi.VolumeUsage(
                    unit=csi.VolumeUsage.INODES,
                    total=inodes,
                    used=inodes - free_inodes,
                    available=free_inodes,
                ),
            ]
        )

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


def _target(path: str, field: str) -> str:
    if not path:
        raise InvalidRequest(field, "missing")
    if not path.startswith("/"):
        raise InvalidRequest(field, f"{path!r} is not absolute")
    if "\0" in path or ".." in path.split("/") or len(path.encode()) > _PATH_LIMIT_BYTES:
        raise InvalidRequest(field, f"{path!r} is not a path that can be published on")
    target = targets.canonical(path)
    if target == "/":
        raise InvalidRequest(field, "the root directory is not a target")
    return target
