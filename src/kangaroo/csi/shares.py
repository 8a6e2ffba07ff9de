"""The shares that volumes and snapshots lie on, as the Controller service reaches them."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kangaroo.csi.volume_id import VolumeId
from kangaroo.errors import InvalidRequest
from kangaroo.nas import volume as nas_volume
from kangaroo.nas.volume import NasVolume

_log = logging.getLogger(__name__)

_VERSION = 1
_MOUNT_OPTIONS = "mountOptions"  # the only key of a secret that is read
# No path of a volume has a comma.
_SHARE = re.compile(r"(?P<server>\[[^\]]*\]|[^:]*):(?P<path>/[^,]*)(,(?P<options>.*))?")


def of(found: VolumeId, secrets: Mapping[str, str]) -> NasVolume:
    """The share that an id names: the same for every call about a volume or a snapshot."""
    flags = [secrets[_MOUNT_OPTIONS]] if secrets.get(_MOUNT_OPTIONS) else []
    return nas_volume.parse(
        {"server": found.server, "path": found.base, "vers": found.version}, flags
    )


def parse(text: str) -> NasVolume:
    """A share written SERVER:/PATH or SERVER:/PATH,OPTIONS, which are mount options and may say the
    version. Raises InvalidRequest.
    """
    match = _SHARE.fullmatch(text)
    if match is None:
        raise InvalidRequest("shares", f"{text!r} is not a server:/path")
    return nas_volume.parse(match.groupdict(default=""))


def check(texts: Sequence[str]) -> None:
    """Raises InvalidRequest for one that `parse` does not take."""
    for text in texts:
        parse(text)


class Shares:
    """The shares to list: those of the configuration, and those that were used since the node was
    booted, which `memory` keeps over a restart of the driver. One that the configuration has
    options for is mounted with these, any other in the version that it was used in.
    """

    def __init__(self, configured: Sequence[str], memory: Path) -> None:
        self._memory = memory
        shares = {text: parse(text) for text in configured}
        self._configured = frozenset(share.source for share in shares.values())
        self._with_options = frozenset(shares[text].source for text in shares if "," in text)
        self._known = {share.source: share for share in shares.values()}
        for share in _remembered(memory):
            self._learn(share)

    def all(self) -> list[NasVolume]:
        """In the order of their sources."""
        return [self._known[source] for source in sorted(self._known)]

    def remember(self, share: NasVolume) -> None:
        """The share is used. Without the options that a secret may have given it."""
        if self._learn(share):
            self._write()

    def forget(self, share: NasVolume) -> bool:
        """Its server does not have the share, or not for this node: it is not listed again until it
        is used again. False for one of the configuration, which stays.
        """
        if share.source in self._configured:
            return False
        if self._known.pop(share.source, None) is not None:
            _log.warning("share forgotten, its server does not have it share=%s", share.source)
            self._write()
        return True

    def _learn(self, share: NasVolume) -> bool:
        """Know it as it was used; whether that is news."""
        known = self._known.get(share.source)
        settled = known is not None and known.version == share.version
        if settled or share.source in self._with_options:
            return False
        attributes = {"server": share.server, "path": share.path, "vers": share.version}
        self._known[share.source] = nas_volume.parse(attributes)
        return True

    def _write(self) -> None:
        shares = [[one.server, one.path, one.version] for one in self.all()]
        temporary = self._memory.with_suffix(".new")
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as file:
            json.dump({"version": _VERSION, "shares": shares}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._memory)


def _remembered(memory: Path) -> list[NasVolume]:
    try:
        document = json.loads(memory.read_text())
        if document["version"] != _VERSION:
            raise ValueError(f"version {document['version']}")
        return [
            nas_volume.parse({"server": server, "path": path, "vers": version})
            for server, path, version in document["shares"]
        ]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, InvalidRequest) as error:
        _log.warning("shares are forgotten, their file is damaged path=%s error=%s", memory, error)
        return []
