"""The Controller service: volumes made as directories of a NAS, copied, listed, and taken away."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from kangaroo.csi import messages, requests, shares, storage_class, volume_id
from kangaroo.csi.config import Config
from kangaroo.csi.content_source import Content, content_of
from kangaroo.csi.context import Context
from kangaroo.csi.copies import Copies
from kangaroo.csi.listing import Listing
from kangaroo.csi.locks import Locks
from kangaroo.csi.share import Look, Worker
from kangaroo.csi.share_records import Record, SourceKind
from kangaroo.csi.shares import Shares
from kangaroo.csi.snapshots import Snapshots
from kangaroo.csi.storage_class import Provisioning, VolumeAs
from kangaroo.csi.volume_id import Kind, VolumeId
from kangaroo.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    InvalidRequest,
    MountFailed,
    NotFound,
    OutOfRange,
    Unavailable,
)
from kangaroo.wire.gen import csi_pb2 as csi
from kangaroo.wire.gen import csi_pb2_grpc

_log = logging.getLogger(__name__)

_RPC = csi.ControllerServiceCapability.RPC
_CAPABILITIES = (
    _RPC.CREATE_DELETE_VOLUME,
    _RPC.CLONE_VOLUME,
    _RPC.CREATE_DELETE_SNAPSHOT,
    _RPC.LIST_SNAPSHOTS,
    _RPC.GET_SNAPSHOT,
    _RPC.LIST_VOLUMES,
    _RPC.GET_VOLUME,
    _RPC.VOLUME_CONDITION,
    _RPC.GET_CAPACITY,
    _RPC.EXPAND_VOLUME,
    _RPC.SINGLE_NODE_MULTI_WRITER,
)
# Of what a sidecar gives a call, beside what the record took: it asks again, less and less often.
_FILL_PATIENCE_S = 45.0
_UNREACHABLE = (Unavailable, DeadlineExceeded, MountFailed)


class Controller(csi_pb2_grpc.ControllerServicer):
    def __init__(self, config: Config) -> None:
        work = Path(config.work_dir)
        self._worker = Worker(work, config.operation_timeout_s, config.copy_stall_timeout_s)
        self._locks = Locks()
        self._copies = Copies()
        self._shares = Shares(config.shares, work / "shares.json")
        self._snapshots = Snapshots(self._worker, self._shares, self._copies, self._locks)

    async def CreateVolume(
        self, request: csi.CreateVolumeRequest, context: Context
    ) -> csi.CreateVolumeResponse:
        """Make a volume. A repeat is OK; one that asks for something else is ALREADY_EXISTS.

        With a source, ABORTED while it is being copied; a repeat asks how far it is.
        """
        requests.check_id(request.name, "name")
        requests.check_capabilities(request.volume_capabilities)
        if request.mutable_parameters:
            raise InvalidRequest("mutable_parameters", "a volume has none")
        capacity = requests.capacity(request.capacity_range)
        content = content_of(request)
        wanted = storage_class.parse(
            request.parameters,
            request.name,
            content.share,
            mount_options=requests.mount_flags(request.volume_capabilities),
        )
        content.check(wanted)
        made = VolumeId(
            kind=Kind.SHARE if wanted.volume_as is VolumeAs.SHAREPATH else Kind.DIRECTORY,
            version=wanted.share.version,
            server=wanted.share.server,
            base=wanted.share.path,
            token=volume_id.token_of(request.name),
        )
        encoded = made.encode()
        if made.kind is Kind.DIRECTORY:
            capacity = await self._make(made, wanted, content, request, capacity)
        volume = csi.Volume(
            volume_id=encoded,
            capacity_bytes=capacity,
            volume_context=wanted.context,
            content_source=messages.source(content.source),
        )
        return csi.CreateVolumeResponse(volume=volume)

    async def DeleteVolume(
        self, request: csi.DeleteVolumeRequest, context: Context
    ) -> csi.DeleteVolumeResponse:
        """Do what the class's onDelete says. A volume that is not there, or not ours, is OK; one
        that is being made is no more. Its snapshots stay. FAILED_PRECONDITION while it is copied.
        """
        requests.check_id(request.volume_id)
        found = volume_id.decode(request.volume_id)
        if found is None:
            _log.warning("nothing to delete, the id is not of this driver id=%s", request.volume_id)
        elif found.kind is Kind.DIRECTORY:
            async with self._locks.hold(request.volume_id):
                self._copies.require_unused(request.volume_id)
                await self._copies.stop(request.volume_id)
                share = shares.of(found, request.secrets)
                await self._worker.delete(share, found.token)
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
        flags = requests.mount_flags(request.volume_capabilities)
        shares = storage_class.shares(request.parameters, mount_options=flags)
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
                share = shares.of(found, request.secrets)
                record = await self._worker.resize(share, found.token, capacity)
            if record is None:
                raise NotFound(f"{share.source} has no such volume")
            capacity = record.capacity
            if 0 < request.capacity_range.limit_bytes < capacity:
                raise OutOfRange(f"the volume has {capacity} bytes, and a volume never shrinks")
        return csi.ControllerExpandVolumeResponse(
            capacity_bytes=capacity, node_expansion_required=False
        )

    async def CreateSnapshot(
        self, request: csi.CreateSnapshotRequest, context: Context
    ) -> csi.CreateSnapshotResponse:
        """Copy a volume. While that goes on the snapshot is not ready to use; a repeat asks again,
        and does not begin another.
        """
        requests.check_id(request.name, "name")
        requests.check_id(request.source_volume_id, "source_volume_id")
        _refuse_parameters(request.parameters)
        made = await self._snapshots.create(request.name, request.source_volume_id, request.secrets)
        return csi.CreateSnapshotResponse(snapshot=messages.snapshot(made))

    async def DeleteSnapshot(
        self, request: csi.DeleteSnapshotRequest, context: Context
    ) -> csi.DeleteSnapshotResponse:
        """One that is not there, or not ours, is OK; one that is being made is made no more."""
        requests.check_id(request.snapshot_id, "snapshot_id")
        await self._snapshots.delete(request.snapshot_id, request.secrets)
        return csi.DeleteSnapshotResponse()

    async def GetSnapshot(
        self, request: csi.GetSnapshotRequest, context: Context
    ) -> csi.GetSnapshotResponse:
        requests.check_id(request.snapshot_id, "snapshot_id")
        found = await self._snapshots.get(request.snapshot_id, request.secrets)
        return csi.GetSnapshotResponse(snapshot=messages.snapshot(found))

    async def ListSnapshots(
        self, request: csi.ListSnapshotsRequest, context: Context
    ) -> csi.ListSnapshotsResponse:
        """All snapshots of the known shares, those of a volume, or one; ready or not."""
        if request.snapshot_id:
            try:
                found, token = [await self._snapshots.get(request.snapshot_id, request.secrets)], ""
            except NotFound:
                found, token = [], ""
            if request.source_volume_id:
                found = [one for one in found if one.source_id == request.source_volume_id]
        else:
            found, token = await self._snapshots.page(
                request.max_entries,
                request.starting_token,
                request.source_volume_id,
                request.secrets,
            )
        entries = [
            csi.ListSnapshotsResponse.Entry(snapshot=messages.snapshot(one)) for one in found
        ]
        return csi.ListSnapshotsResponse(entries=entries, next_token=token)

    async def ListVolumes(
        self, request: csi.ListVolumesRequest, context: Context
    ) -> csi.ListVolumesResponse:
        """The volumes of the known shares that are whole, with their condition."""
        listed = Listing(
            Kind.DIRECTORY,
            volume_id.decode,
            self._worker.volumes,
            _is_whole,
            self._shares.forget,
        )
        found, token = await listed.page(
            self._shares.all(), request.max_entries, request.starting_token
        )
        entries = [
            csi.ListVolumesResponse.Entry(
                volume=messages.volume(str(one.id), one.look.record),
                status=csi.ListVolumesResponse.VolumeStatus(
                    volume_condition=messages.condition(one.look.problem)
                ),
            )
            for one in found
        ]
        return csi.ListVolumesResponse(entries=entries, next_token=token)

    async def ControllerGetVolume(
        self, request: csi.ControllerGetVolumeRequest, context: Context
    ) -> csi.ControllerGetVolumeResponse:
        """A volume and its condition: abnormal when its directory is gone, its record damaged or
        its share not reached. NOT_FOUND for one that has no record.
        """
        requests.check_id(request.volume_id)
        found = volume_id.decode(request.volume_id)
        if found is None:
            raise NotFound("no volume of this driver has this id")
        share = shares.of(found, {})
        record, problem = None, ""
        try:
            if found.kind is Kind.SHARE:
                await self._worker.capacity(share)
            else:
                look = await self._worker.look(share, found.token)
                if look is None:
                    raise NotFound(f"{share.source} has no such volume")
                record, problem = look.record, look.problem
        except _UNREACHABLE as error:
            problem = str(error)
        return csi.ControllerGetVolumeResponse(
            volume=messages.volume(request.volume_id, record),
            status=csi.ControllerGetVolumeResponse.VolumeStatus(
                volume_condition=messages.condition(problem)
            ),
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
        made: VolumeId,
        wanted: Provisioning,
        content: Content,
        request: csi.CreateVolumeRequest,
        capacity: int,
    ) -> int:
        """Make a volume's record and directory; its capacity in bytes."""
        encoded, share = made.encode(), shares.of(made, request.secrets)
        asked = Record(
            request.name,
            wanted.subdir,
            capacity,
            wanted.on_delete,
            id=encoded,
            source=content.source,
        )
        async with self._locks.hold(encoded):
            there = await self._worker.create(share, made.token, asked, wanted.permissions)
        _check_same(asked, there)
        self._shares.remember(share)
        if not there.whole:
            fill = partial(self._worker.fill, share, made.token, wanted.permissions)
            source_id = content.source.id
            done = await self._copies.join(
                encoded,
                fill,
                share=share.source,
                source=source_id,
                patience_s=_FILL_PATIENCE_S,
            )
            if not done:
                raise Aborted(
                    f"volume {request.name}: {source_id} is still being copied into it",
                    hint="the driver's log tells how far it is; a repeated call waits for it",
                )
        return there.capacity

    async def _require(self, text: str, secrets: Mapping[str, str]) -> None:
        found = volume_id.decode(text)
        if found is None:
            raise NotFound("no volume of this driver has this id")
        share = shares.of(found, secrets)
        if found.kind is Kind.SHARE:
            await self._worker.capacity(share)
        elif await self._worker.read(share, found.token) is None:
            raise NotFound(f"{share.source} has no such volume")


def _check_same(asked: Record, there: Record) -> None:
    """Raises AlreadyExists when the volume that is there is not the one that is asked for."""
    same = ["name", "subdir", "on_delete"]
    if asked.capacity or asked.source.kind is SourceKind.NONE:
        same.append("capacity")
    for field in same:
        old, new = getattr(there, field), getattr(asked, field)
        if old != new:
            raise AlreadyExists(f"volume {asked.name}: {field} is {old}, not {new}")
    if (there.source.kind, there.source.token) != (asked.source.kind, asked.source.token):
        raise AlreadyExists(
            f"volume {asked.name}: its source is {there.source.id or 'none'},"
            f" not {asked.source.id or 'none'}"
        )


def _is_whole(look: Look[Record]) -> bool:
    return look.record is None or look.record.whole


def _refuse_parameters(parameters: Mapping[str, str]) -> None:
    for key in parameters:
        if not key.startswith(requests.FOREIGN_PREFIX):
            raise InvalidRequest(f"parameters.{key}", "unknown: a snapshot class has none")
