"""What a new volume is a copy of: a snapshot, a volume, or nothing."""

from __future__ import annotations

from dataclasses import dataclass

from kangaroo.csi import volume_id
from kangaroo.csi.share_records import Source, SourceKind
from kangaroo.csi.storage_class import Provisioning, VolumeAs
from kangaroo.csi.volume_id import Kind, VolumeId
from kangaroo.errors import InvalidRequest, NotFound
from kangaroo.wire.gen import csi_pb2 as csi

_FIELD = "volume_content_source"


@dataclass(frozen=True, slots=True)
class Content:
    """The source and where it lies; `origin` is None when there is none."""

    source: Source
    origin: VolumeId | None = None

    @property
    def share(self) -> tuple[str, str] | None:
        """The server and path of the share that the source lies on."""
        return None if self.origin is None else (self.origin.server, self.origin.base)

    def check(self, wanted: Provisioning) -> None:
        """Raises InvalidRequest for a volume that cannot be made from the source."""
        if self.share is None:
            return
        if wanted.volume_as is VolumeAs.SHAREPATH:
            raise InvalidRequest(_FIELD, "a volume that is a whole share is not made from another")
        if self.share != (wanted.share.server, wanted.share.path):
            raise InvalidRequest(
                _FIELD,
                f"it lies on {':'.join(self.share)}, the new volume on {wanted.share.source}",
                hint="use a class with that server and path: copies are made within a share",
            )


def content_of(request: csi.CreateVolumeRequest) -> Content:
    """The source that a request names. Raises NotFound for one that is none of this driver."""
    if not request.HasField(_FIELD):
        return Content(Source())
    asked = request.volume_content_source
    match asked.WhichOneof("type"):
        case "snapshot":
            kind, text = SourceKind.SNAPSHOT, asked.snapshot.snapshot_id
            origin = volume_id.decode_snapshot(text)
        case "volume":
            kind, text = SourceKind.VOLUME, asked.volume.volume_id
            origin = volume_id.decode(text)
        case _:
            raise InvalidRequest(_FIELD, "names neither a snapshot nor a volume")
    if not text:
        raise InvalidRequest(f"{_FIELD}.{kind}", "its id is missing")
    if origin is None:
        raise NotFound(f"no {kind} of this driver has the id {text}")
    if origin.kind is Kind.SHARE:
        raise InvalidRequest(_FIELD, f"{text} is a whole share, which is not copied")
    return Content(Source(kind, origin.token, text), origin)
