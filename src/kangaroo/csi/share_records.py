"""What the driver writes down on a share, in PRIVATE_DIRECTORY, and its directories there.

`volumes/TOKEN.json` and `snapshots/TOKEN.json` are records. Others write to the share, too: one
is believed no more than an id, and every path is opened beneath the share's root without following
a symbolic link. Standard library and `kangaroo.linux` only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, Generic, TypeVar

from kangaroo.linux.openat2 import ensure_directory_beneath, open_beneath

PRIVATE_DIRECTORY = ".kangaroo"
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY

_VERSION = 1
_PRIVATE_MODE = 0o700
_SUFFIX = ".json"
_LIMIT_BYTES = 65536
_TOKEN = re.compile(r"[a-z2-7]{26}")


class OnDelete(StrEnum):
    """What DeleteVolume does with the volume's directory."""

    DELETE = "delete"
    RETAIN = "retain"
    ARCHIVE = "archive"


class Refused(Exception):
    """The share is not in the state that an operation needs. `kind` tells the leaves apart."""

    kind: ClassVar[str] = ""


class Absent(Refused):
    """What an operation is about is not on the share."""

    kind = "absent"


class TooSmall(Refused):
    """A volume would have less room than what is to be copied into it."""

    kind = "too small"


class Busy(Refused):
    """Another process is at it."""

    kind = "busy"


class SourceKind(StrEnum):
    """What a volume's first content is a copy of."""

    NONE = ""
    VOLUME = "volume"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class Source:
    """What a volume is made from: `token` names its record, `id` is what CSI calls it."""

    kind: SourceKind = SourceKind.NONE
    token: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        if self.kind is not SourceKind.NONE:
            _require_token(self.token)


@dataclass(frozen=True, slots=True)
class Record:
    """A volume as it is written down. `made`: its directory was not there before. `whole`: nothing
    is still to be copied into it.
    """

    name: str
    subdir: str
    capacity: int
    on_delete: OnDelete
    made: bool = True
    id: str = ""  # what CSI calls it
    source: Source = Source()
    whole: bool = True

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Record:
        """The record that `dataclasses.asdict` made a document of. Raises TypeError, ValueError."""
        source = document.get("source", {})
        source = Source(**{**source, "kind": SourceKind(source.get("kind", ""))})
        on_delete = OnDelete(document["on_delete"])
        record = cls(**{**document, "on_delete": on_delete, "source": source})
        _require_fields(source, SourceKind, str, str)
        _require_fields(record, str, str, int, OnDelete, bool, str, Source, bool)
        checked(record.subdir)
        return record


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot as it is written down. `source` is its volume's token, `created_s` when it was
    begun, in seconds since the epoch, `size` the capacity of the volume then.
    """

    name: str
    id: str
    source: str
    source_id: str
    size: int
    created_s: int
    whole: bool

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Snapshot:
        """Like `Record.of`."""
        snapshot = cls(**document)
        _require_fields(snapshot, str, str, str, str, int, int, bool)
        _require_token(snapshot.source)
        return snapshot


# Held while it is found out or changed which volumes there are.
Exclusive = Callable[[], AbstractContextManager[None]]

_R = TypeVar("_R", Record, Snapshot)


@dataclass(frozen=True, slots=True)
class Shelf(Generic[_R]):
    """The records of one kind, in a directory of the share."""

    directory: str
    kind: type[_R]

    def read(self, root: int, token: str) -> _R | None:
        """A record. Raises Refused for one that cannot be understood."""
        path = f"{self.directory}/{_file(token)}"
        try:
            # O_NONBLOCK: somebody may have put a FIFO there.
            fd = open_beneath(root, path, os.O_RDONLY | os.O_NONBLOCK, follow=False)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Refused(f"{path} is not a file")
            raw = file.read(_LIMIT_BYTES)
        try:
            document = json.loads(raw)
            if document.pop("version") != _VERSION:
                raise Refused(f"{path} is of another version")
            return self.kind.of(document)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(f"{path} is damaged: {error}") from error

    def require(self, root: int, token: str) -> _R:
        """Like `read`; raises Absent when there is none."""
        record = self.read(root, token)
        if record is None:
            raise Absent(f"{self.directory}/{_file(token)} is not there")
        return record

    def write(self, root: int, token: str, record: _R) -> None:
        """Write a record, also over an older one; after a crash there is the one or the other."""
        raw = json.dumps({"version": _VERSION, **asdict(record)}).encode()
        with private(root, self.directory) as directory:
            temporary = f"{_file(token)}.new"
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=directory), "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, _file(token), src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)

    def forget(self, root: int, token: str) -> None:
        """Take a record away, if it is there."""
        with (
            contextlib.suppress(FileNotFoundError),
            opened(open_beneath(root, self.directory, DIRECTORY, follow=False)) as directory,
        ):
            os.unlink(_file(token), dir_fd=directory)
            os.fsync(directory)

    def give_up(self, root: int, token: str) -> None:
        """Take a record away whose copy has failed; not if another process has made it whole."""
        record = self.read(root, token)
        if record is not None and not record.whole:
            self.forget(root, token)

    def has(self, root: int, token: str) -> bool:
        """Whether there is a record, good or damaged."""
        return exists(root, f"{self.directory}/{_file(token)}")

    def tokens(self, root: int) -> list[str]:
        """Of which there are records, in order."""
        try:
            fd = open_beneath(root, self.directory, DIRECTORY, follow=False)
        except FileNotFoundError:
            return []
        with opened(fd) as directory, os.scandir(directory) as entries:
            names = (entry.name for entry in entries)
            found = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
        return sorted(token for token in found if _TOKEN.fullmatch(token))


VOLUMES = Shelf(f"{PRIVATE_DIRECTORY}/volumes", Record)
SNAPSHOTS = Shelf(f"{PRIVATE_DIRECTORY}/snapshots", Snapshot)


def checked(subdir: str) -> str:
    """A volume's directory, as a path beneath the share. Raises ValueError."""
    parts = subdir.split("/")
    os.fsencode(subdir)  # it has to be a name that a file system can have
    odd = "\0" in subdir or any(part in ("", ".", "..") for part in parts)
    if odd or parts[0] == PRIVATE_DIRECTORY:
        raise ValueError(f"{subdir!r} is not a volume's directory")
    return subdir


def exists(root: int, path: str) -> bool:
    try:
        with opened(open_beneath(root, path, os.O_PATH, follow=False)):
            return True
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def private(root: int, path: str) -> Iterator[int]:
    """One of the driver's own directories, made when it is not there."""
    with (
        opened(ensure_directory_beneath(root, path, _PRIVATE_MODE, follow=False)) as found,
        opened(open_beneath(found, ".", DIRECTORY)) as directory,
    ):
        yield directory


@contextlib.contextmanager
def opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _file(token: str) -> str:
    return f"{token}{_SUFFIX}"


def _require_fields(document: Record | Snapshot | Source, *kinds: type) -> None:
    """Of these types, and such as CSI's messages hold: numbers of 63 bits, and text."""
    values = [getattr(document, field.name) for field in fields(document)]
    if tuple(type(value) for value in values) != kinds:
        raise TypeError(f"wrong types: {document!r}")
    for value in values:
        if isinstance(value, str):
            value.encode()
        elif isinstance(value, int) and not 0 <= value < 2**63:
            raise ValueError(f"{value} is out of range")


def _require_token(token: str) -> None:
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{token!r} is not a token")
