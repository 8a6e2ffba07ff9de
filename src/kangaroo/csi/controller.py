"""The Controller service: volumes made as directories of a NAS, and taken away."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from kangaroo.csi import requests, storage_class, volume_id
from kangaroo.csi.config import Config
from kangaroo.csi.context import Context
from kangaroo.csi.locks import Locks
from kangaroo.csi.share import Worker
from kangaroo.csi.share_worker import Record
from kangaroo.csi.storage_class import Provisioning, VolumeAs
from kangaroo.csi.volume_id import Kind, VolumeId
from kangaroo.errors import AlreadyExists, InvalidRequest, NotFound
from kangaroo.nas import volume as nas_volume
from kangaroo.nas.volume import NasVolume
from kangaroo.wire.gen import csi_pb2 as csi
from kangaroo.wire.gen import csi_pb2_grpc

_log = logging.getLogger(__name__)

_CAPABILITIES = (
    csi.ControllerServiceCapability.RPC.CREATE_DELETE_VOLUME,
    csi.ControllerServiceCapability.RPC.GET_CAPACITY,
    csi.ControllerServiceCapability.RPC.EXPAND_VOLUME,
    csi.ControllerServiceCapability.RPC.SINGLE_NODE_MULTI_WRITER,
)
_MOUNT_OPTIONS = "mountOptions"  # the only key of a secret that is read


class Controller(csi_pb2_grpc.ControllerServicer):
    def __init__(self, config: Config) -> None:
        self._worker = Worker(Path(config.work_dir), config.operation_timeout_s)
        self._locks = Locks()

    async def CreateVolume(
        self, request: csi.CreateVolumeRequest, context: Context
    ) -> csi.CreateVolumeResponse:
        """Make a volume. A repeat is OK; one that asks for something else is ALREADY_EXISTS."""
        if not request.name:
            raise InvalidRequest("name", "missing")
        requests.check_capabilities(request.volume_capabilities)
        if request.HasField("volume_content_source"):
            raise InvalidRequest("volume_content_source", "a volume is made empty")
        if request.mutable_parameters:
            raise InvalidRequest("mutable_parameters", "a volume has none")
        capacity = requests.capacity(request.capacity_range)
        wanted = storage_class.parse(request.parameters, request.name)
        made = VolumeId(
            kind=Kind.SHARE if wanted.volume_as is VolumeAs.SHAREPATH else Kind.DIRECTORY,
            version=wanted.share.version,
            server=wanted.share.server,
            base=wanted.share.path,
            token=volume_id.token_of(request.name),
        )
        encoded = made.encode()
        if made.kind is Kind.DIRECTORY:
            async with self._locks.hold(encoded):
                share = _share(made, request.secrets)
                await self._make(share, made.token, wanted, request, capacity)
        volume = csi.Volume(
            volume_id=encoded, capacity_bytes=capacity, volume_context=wanted.context
        )
        return csi.CreateVolumeResponse(volume=volume)

    async def DeleteVolume(
        self, request: csi.DeleteVolumeRequest, context: Context
    ) -> csi.DeleteVolumeResponse:
        """Do what the class's onDelete says. A volume that is not there, or not ours, is OK."""
        requests.check_id(request.volume_id)
        found = volume_id.decode(request.volume_id)
        if found is None:
            _log.warning("nothing to delete, the id is not of this driver id=%s", request.volume_id)
        elif found.kind is Kind.DIRECTORY:
            async with self._locks.hold(request.volume_id):
                await self._worker.delete(_share(found, request.secrets), found.token)
        return csi.DeleteVolumeResponse()

    async def ValidateVolumeCapabilities(
        self, request: csi.ValidateVolumeCapabilitiesRequest, context: Context
    ) -> csi.ValidateVolumeCapabilitiesResponse:
        """Confirm what every NAS volume has. Raises NotFound for a volume that is not there."""
        requests.check_id(request.volume_id)
        if not request.volume_capabilities:
            raise InvalidRequest("volume_capabilities", "missing")
        await self._require(request.volume_id, request.secrets)
        try:
            requests.check_capabilities(request.volume_capabilities)
        except InvalidRequest as error:
            return csi.ValidateVolumeCapabilitiesResponse(message=str(error))
        confirmed = csi.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
        )
        return csi.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    async def GetCapacity(
        self, request: csi.GetCapacityRequest, context: Context
    ) -> csi.GetCapacityResponse:
        """What is free on the shares of a class together. Without a server there is no storage."""
        if not request.parameters:
            return csi.GetCapacityResponse(available_capacity=0)
        shares = storage_class.shares(request.parameters)
        free = [(await self._worker.capacity(share))[1] for share in shares]
        return csi.GetCapacityResponse(available_capacity=sum(free))

    async def ControllerExpandVolume(
        self, request: csi.ControllerExpandVolumeRequest, context: Context
    ) -> csi.ControllerExpandVolumeResponse:
        """Write the new capacity down; NFS has nothing to enforce it with. It never shrinks."""
        requests.check_id(request.volume_id)
        if not request.HasField("capacity_range"):
            raise InvalidRequest("capacity_range", "missing")
        capacity = requests.capacity(request.capacity_range)
        found = volume_id.decode(request.volume_id)
        if found is None:
            raise NotFound("no volume of this driver has this id")
        if found.kind is Kind.DIRECTORY:
            async with self._locks.hold(request.volume_id):
                share = _share(found, request.secrets)
                record = await self._worker.resize(share, found.token, capacity)
            if record is None:
                raise NotFound(f"{share.source} has no such volume")
            capacity = record.capacity
        return csi.ControllerExpandVolumeResponse(
            capacity_bytes=capacity, node_expansion_required=False
        )

    async def ControllerGetCapabilities(
        self, request: csi.ControllerGetCapabilitiesRequest, context: Context
    ) -> csi.ControllerGetCapabilitiesResponse:
        return csi.ControllerGetCapabilitiesResponse(
            capabilities=[
                csi.ControllerServiceCapability(rpc=csi.ControllerServiceCapability.RPC(type=kind))
                for kind in _CAPABILITIES
            ]
        )

    async def _make(
        self,
        share: NasVolume,
        token: str,
        wanted: Provisioning,
        request: csi.CreateVolumeRequest,
        capacity: int,
    ) -> None:
        asked = Record(request.name, wanted.subdir, capacity, wanted.on_delete)
        there = await self._worker.create(share, token, asked, wanted.permissions)
        for field in ("name", "subdir", "capacity", "on_delete"):
            old, new = getattr(there, field), getattr(asked, field)
            if old != new:
                raise AlreadyExists(f"volume {request.name}: {field} is {old}, not {new}")

    async def _require(self, text: str, secrets: Mapping[str, str]) -> None:
        found = volume_id.decode(text)
        if found is None:
            raise NotFound("no volume of this driver has this id")
        share = _share(found, secrets)
        if found.kind is Kind.SHARE:
            await self._worker.capacity(share)
        elif await self._worker.read(share, found.token) is None:
            raise NotFound(f"{share.source} has no such volume")


def _share(made: VolumeId, secrets: Mapping[str, str]) -> NasVolume:
    """How the controller itself reaches the share: the same for every call about a volume."""
    flags = [secrets[_MOUNT_OPTIONS]] if secrets.get(_MOUNT_OPTIONS) else []
    return nas_volume.parse({"server": made.server, "path": made.base, "vers": made.version}, flags)
