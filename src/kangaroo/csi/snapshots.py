"""Snapshots: copies of volumes on the share of their volume. Knows no gRPC."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from kangaroo.csi import shares, volume_id
from kangaroo.csi.copies import Copies
from kangaroo.csi.listing import Listing
from kangaroo.csi.locks import Locks
from kangaroo.csi.share import Look, Worker
from kangaroo.csi.share_records import Snapshot
from kangaroo.csi.shares import Shares
from kangaroo.csi.volume_id import Kind
from kangaroo.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound

_log = logging.getLogger(__name__)

# The CSI project's snapshotter asks again for one that is not ready.
_PATIENCE_S = 10.0

Secrets = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Snapshots:
    """What the Controller service does with snapshots. `Worker`'s errors are raised besides."""

    worker: Worker
    shares: Shares
    copies: Copies
    locks: Locks

    async def create(self, name: str, source_id: str, secrets: Secrets) -> Snapshot:
        """Begin the snapshot `name` of a volume, or go on; it is not `whole` while it is copied.

        Raises NotFound without the volume, AlreadyExists when another volume has the snapshot.
        """
        volume = volume_id.decode(source_id)
        if volume is None:
            raise NotFound(f"no volume of this driver has the id {source_id}")
        if volume.kind is not Kind.DIRECTORY:
            raise InvalidRequest("source_volume_id", "a volume that is a whole share has none")
        share = shares.of(volume, secrets)
        made = replace(volume, kind=Kind.SNAPSHOT, token=volume_id.token_of(name))
        encoded = made.encode()
        asked = Snapshot(
            name=name,
            id=encoded,
            source=volume.token,
            source_id=source_id,
            size=0,
            created_s=int(time.time()),
            whole=False,
        )
        async with self.locks.hold(encoded):
            there = await self.worker.begin_snapshot(share, made.token, asked)
        if (there.name, there.source) != (name, volume.token):
            raise AlreadyExists(f"snapshot {name} is of another volume: {there.source_id}")
        self.shares.remember(share)
        if not there.whole:
            fill = partial(self.worker.fill_snapshot, share, made.token)
            whole = await self.copies.join(
                encoded, fill, share=share.source, source=source_id, patience_s=_PATIENCE_S
            )
            there = replace(there, whole=whole)
        return replace(there, id=encoded)

    async def delete(self, snapshot_id: str, secrets: Secrets) -> None:
        """Delete a snapshot, also one that is being made. One that is not there, or not ours, is
        deleted. Raises FailedPrecondition while a volume is made from it.
        """
        found = volume_id.decode_snapshot(snapshot_id)
        if found is None:
            _log.warning("nothing to delete, the id is not of this driver id=%s", snapshot_id)
            return
        async with self.locks.hold(snapshot_id):
            self.copies.require_unused(snapshot_id)
            await self.copies.stop(snapshot_id)
            await self.worker.delete_snapshot(shares.of(found, secrets), found.token)

    async def get(self, snapshot_id: str, secrets: Secrets) -> Snapshot:
        """Raises NotFound, FailedPrecondition for one whose record is damaged."""
        found = volume_id.decode_snapshot(snapshot_id)
        if found is None:
            raise NotFound(f"no snapshot of this driver has the id {snapshot_id}")
        share = shares.of(found, secrets)
        look = await self.worker.look_snapshot(share, found.token)
        if look is None:
            raise NotFound(f"{share.source} has no such snapshot")
        if look.record is None:
            raise FailedPrecondition(f"{share.source}: {look.problem}")
        return replace(look.record, id=snapshot_id)

    async def page(
        self, max_entries: int, starting_token: str, source_id: str, secrets: Secrets
    ) -> tuple[list[Snapshot], str]:
        """A page of all snapshots, or of those of a volume, and the token of the next one.

        Snapshots whose record is damaged are left out, and said in the log.
        """
        known = self.shares.all()
        source = volume_id.decode(source_id)
        if source_id:
            if source is None:
                return [], ""
            known = [shares.of(source, secrets)]

        def keep(look: Look[Snapshot]) -> bool:
            if look.record is None:
                _log.warning("a snapshot is damaged error=%s", look.problem)
                return False
            return source is None or look.record.source == source.token

        listed = Listing(
            Kind.SNAPSHOT,
            volume_id.decode_snapshot,
            self.worker.snapshots,
            keep,
            self.shares.forget,
        )
        found, token = await listed.page(known, max_entries, starting_token)
        records = ((str(one.id), one.look.record) for one in found)
        return [replace(record, id=text) for text, record in records if record is not None], token
