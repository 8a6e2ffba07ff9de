"""The placeholder on the node, and the record of its volume in it.

The record lives exactly as long as the placeholder: kubelet or the CSI driver unmounts both at
once, so nothing is left behind, and a later sandbox of the same pod finds what the path stands for.
"""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path

from kangaroo.errors import FailedPrecondition
from kangaroo.linux import mount, mountinfo
from kangaroo.linux.mount import MountFlag
from kangaroo.nas.placeholder import (
    PLACEHOLDER_DATA,
    PLACEHOLDER_FSTYPE,
    PLACEHOLDER_SOURCE,
    is_placeholder,
)
from kangaroo.runtime.state import PlaceholderState, VolumeState, decode_volume, replace_file

RECORD_NAME = ".kangaroo-volume.json"
_RECORD_VERSION = 1


def put_placeholder(path: str, record: VolumeState) -> PlaceholderState:
    """Mount the placeholder on `path` with the record of its volume. One that stands there is left.
    Raises OSError.
    """
    entry = mountinfo.at(path, mountinfo.read())
    if entry is None or not is_placeholder(entry):
        flags = MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC
        mount.mount(PLACEHOLDER_SOURCE, path, PLACEHOLDER_FSTYPE, flags, PLACEHOLDER_DATA)
        entry = mountinfo.at(path, mountinfo.read())
        if entry is None:
            raise OSError(errno.EIO, "the placeholder is not in the mount table", path)
    record_path = Path(path) / RECORD_NAME
    if not record_path.exists():  # the placeholder has room for one copy only
        document = {"version": _RECORD_VERSION, **dataclasses.asdict(record)}
        replace_file(record_path, json.dumps(document).encode(), mode=0o400)
    return PlaceholderState(path=path, device=entry.device, volume_id=record.volume_id)


def read_record(path: str) -> VolumeState:
    """The record of the placeholder at `path`. Raises FailedPrecondition when it is not there or
    not readable.
    """
    try:
        document = json.loads((Path(path) / RECORD_NAME).read_bytes())
        if document["version"] != _RECORD_VERSION:
            raise ValueError(f"version {document['version']}")
        return decode_volume(document)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(
            f"{path} is the placeholder of a NAS volume, but its record cannot be read: {error!r}",
            hint="delete the pod; its volume is mounted anew for the next one",
        ) from error
