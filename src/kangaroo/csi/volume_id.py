"""Ids of provisioned volumes and of snapshots: they alone say where one lies, after any restart.

`k1:KIND:VERSION:SERVER:BASE:TOKEN`, where SERVER and BASE are percent-encoded. The token comes from
the name that the volume was asked for by, so a repeated CreateVolume leads to the same volume. It
names a record on the share, not a path: an id that somebody made up leads to no directory.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote, unquote

from kangaroo.errors import InvalidRequest
from kangaroo.nas import volume as nas_volume

LIMIT_BYTES = 128  # "Size Limits" of the CSI specification

_PREFIX = "k1"
_TOKEN = re.compile(r"[a-z2-7]{26}")
_TOKEN_BYTES = 16
_UNQUOTED = "/[]"


class Kind(StrEnum):
    """What an id is of."""

    DIRECTORY = "d"
    SHARE = "s"
    SNAPSHOT = "n"


_VOLUMES = frozenset({Kind.DIRECTORY, Kind.SHARE})
_SNAPSHOTS = frozenset({Kind.SNAPSHOT})


@dataclass(frozen=True, slots=True)
class VolumeId:
    """An id taken apart. `version` is the NFS version by which the share is reached."""

    kind: Kind
    version: str
    server: str
    base: str
    token: str

    def __str__(self) -> str:
        server, base = (quote(part, safe=_UNQUOTED) for part in (self.server, self.base))
        return f"{_PREFIX}:{self.kind}:{self.version}:{server}:{base}:{self.token}"

    def encode(self) -> str:
        """The id as text. Raises InvalidRequest when it is longer than CSI promises to carry."""
        text = str(self)
        excess = len(text) - LIMIT_BYTES
        if excess > 0:
            raise InvalidRequest(
                "parameters.server",
                f"server and path {self.server}:{self.base} are {excess} bytes too long for a"
                f" volume id of {LIMIT_BYTES} bytes",
                hint="use a shorter path or the server's address",
            )
        return text


def token_of(name: str) -> str:
    """26 characters of base32: 128 bits of the name's SHA-256."""
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:_TOKEN_BYTES]
    return base64.b32encode(digest).decode().rstrip("=").lower()


def decode(text: str) -> VolumeId | None:
    """Take a volume's id apart; None for one that this driver did not make."""
    return _decode(text, _VOLUMES)


def decode_snapshot(text: str) -> VolumeId | None:
    """The same for a snapshot's."""
    return _decode(text, _SNAPSHOTS)


def _decode(text: str, kinds: AbstractSet[Kind]) -> VolumeId | None:
    parts = text.split(":")
    if len(parts) != 6 or parts[0] != _PREFIX or parts[1] not in kinds:
        return None
    _, kind, version, server, base, token = parts
    volume_id = VolumeId(Kind(kind), version, unquote(server), unquote(base), token)
    if not _TOKEN.fullmatch(token) or str(volume_id) != text:
        return None
    try:
        checked = nas_volume.parse(
            {"server": volume_id.server, "path": volume_id.base, "vers": version}
        )
    except InvalidRequest:
        return None
    known = (checked.server, checked.path, checked.version)
    return volume_id if known == (volume_id.server, volume_id.base, version) else None
