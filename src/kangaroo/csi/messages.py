"""What is on a share, as CSI's messages."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from kangaroo.csi.share_records import Record, Snapshot, Source, SourceKind
from kangaroo.wire.gen import csi_pb2 as csi


def volume(encoded: str, record: Record | None) -> csi.Volume:
    """A volume whose record may not be readable; then its capacity is not known."""
    if record is None:
        return csi.Volume(volume_id=encoded)
    return csi.Volume(
        volume_id=encoded,
        capacity_bytes=record.capacity,
        content_source=source(record.source),
    )


def condition(problem: str) -> csi.VolumeCondition:
    """What is wrong with a volume; "" is nothing."""
    return csi.VolumeCondition(abnormal=bool(problem), message=problem or "its directory is there")


def snapshot(record: Snapshot) -> csi.Snapshot:
    return csi.Snapshot(
        snapshot_id=record.id,
        source_volume_id=record.source_id,
        size_bytes=record.size,
        creation_time=Timestamp(seconds=record.created_s),
        ready_to_use=record.whole,
    )


def source(of: Source) -> csi.VolumeContentSource | None:
    """What a volume was made from, None for nothing."""
    if of.kind is SourceKind.SNAPSHOT:
        snapshot_source = csi.VolumeContentSource.SnapshotSource(snapshot_id=of.id)
        return csi.VolumeContentSource(snapshot=snapshot_source)
    if of.kind is SourceKind.VOLUME:
        volume_source = csi.VolumeContentSource.VolumeSource(volume_id=of.id)
        return csi.VolumeContentSource(volume=volume_source)
    return None
