"""What is done on a share for the Controller service, in a process of its own.

The process mounts the share in a mount namespace that nobody else is in: when it ends, by whatever
end, the mount is gone. It is told one operation as JSON on standard input and answers as JSON on
standard output; a dead server blocks it, and never the driver.

On the share the driver owns PRIVATE_DIRECTORY: `volumes/TOKEN.json` is the record of a volume,
`trash/TOKEN` a directory that is being deleted. Every path is opened beneath the share's root
without following a symbolic link, so nothing outside it is made, renamed or deleted, whatever a
record says and whoever else writes to the share. Standard library and `kangaroo.linux` only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from kangaroo.csi import share_directory
from kangaroo.linux.openat2 import ensure_directory_beneath, open_beneath

PRIVATE_DIRECTORY = ".kangaroo"

_VERSION = 1
_VOLUMES = f"{PRIVATE_DIRECTORY}/volumes"
_TRASH = f"{PRIVATE_DIRECTORY}/trash"
_PRIVATE_MODE = 0o700
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_RECORD_SUFFIX = ".json"
_RECORD_LIMIT_BYTES = 65536
# NAME_MAX without what an archived name has around it.
_ARCHIVED_NAME_BYTES = 220
_ERROR_LIMIT = 1000


class OnDelete(StrEnum):
    """What DeleteVolume does with the volume's directory."""

    DELETE = "delete"
    RETAIN = "retain"
    ARCHIVE = "archive"


class Refused(Exception):
    """The share is not in the state that an operation needs."""


@dataclass(frozen=True, slots=True)
class Record:
    """A volume as it is written down. `made`: its directory was not there before."""

    name: str
    subdir: str
    capacity: int
    on_delete: OnDelete
    made: bool = True

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Record:
        """The record that `dataclasses.asdict` made a document of. Raises TypeError, ValueError."""
        record = cls(**{**document, "on_delete": OnDelete(document["on_delete"])})
        kinds = (type(record.name), type(record.subdir), type(record.capacity), type(record.made))
        if kinds != (str, str, int, bool):
            raise TypeError(f"wrong types: {document!r}")
        return record


def create(root: int, token: str, asked: Record, permissions: int) -> Record:
    """Write `asked` down and make its directory; the record that is there already wins.

    A repeat, also after a kill at any point, comes to the same end.
    """
    record = read(root, token)
    if record is None:
        made = not _exists(root, asked.subdir)
        record = replace(asked, made=made)
        _write(root, token, record)
    with _opened(
        ensure_directory_beneath(root, _checked(record.subdir), permissions, follow=False)
    ):
        return record


def resize(root: int, token: str, capacity: int) -> Record | None:
    """Write a larger capacity down; the record as it is then, None without one."""
    record = read(root, token)
    if record is None or record.capacity >= capacity:
        return record
    record = replace(record, capacity=capacity)
    _write(root, token, record)
    return record


def delete(root: int, token: str, exclusive: AbstractContextManager[None]) -> None:
    """Do with the volume what its record says, and forget it. A repeat does nothing, or goes on.

    A directory that was there before the volume, or that another volume shares, is left alone.
    `exclusive` is held while that is found out, not while a tree is deleted. Raises Refused when
    another volume lies in the directory.
    """
    record = read(root, token)
    if record is None:
        return
    with exclusive:
        _retire(root, token, record)
    if record.on_delete is OnDelete.DELETE:
        with _private(root, _TRASH) as trash:
            _delete_tree(token, trash)
    with _opened(open_beneath(root, _VOLUMES, _DIRECTORY, follow=False)) as volumes:
        os.unlink(_file(token), dir_fd=volumes)
        os.fsync(volumes)


def read(root: int, token: str) -> Record | None:
    """The record of a volume. Raises Refused for one that cannot be understood."""
    try:
        # O_NONBLOCK: somebody may have put a FIFO there.
        flags = os.O_RDONLY | os.O_NONBLOCK
        fd = open_beneath(root, f"{_VOLUMES}/{_file(token)}", flags, follow=False)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Refused(f"{_VOLUMES}/{_file(token)} is not a file")
        raw = file.read(_RECORD_LIMIT_BYTES)
    try:
        document = json.loads(raw)
        if document.pop("version") != _VERSION:
            raise Refused(f"{_VOLUMES}/{_file(token)} is of another version")
        record = Record.of(document)
        _checked(record.subdir)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{_VOLUMES}/{_file(token)} is damaged: {error}") from error
    return record


def capacity(root: int) -> tuple[int, int]:
    """Total and available bytes of the share, as the server tells them."""
    numbers = os.fstatvfs(root)
    return numbers.f_blocks * numbers.f_frsize, numbers.f_bavail * numbers.f_frsize


def _retire(root: int, token: str, record: Record) -> None:
    """Rename the volume's directory out of the way, into the archive or the trash."""
    if not record.made or record.on_delete is OnDelete.RETAIN or _shared(root, token, record):
        return
    above, _, name = _checked(record.subdir).rpartition("/")
    with _opened(open_beneath(root, above, _DIRECTORY, follow=False)) as parent:
        if record.on_delete is OnDelete.ARCHIVE:
            _move(name, parent, _archived(name), parent)
            return
        with _private(root, _TRASH) as trash:
            if not _exists(trash, token):
                _move(name, parent, token, trash)


def _move(name: str, directory: int, new: str, into: int) -> None:
    with contextlib.suppress(FileNotFoundError):  # moved by a call that was then killed
        os.rename(name, new, src_dir_fd=directory, dst_dir_fd=into)


def _archived(name: str) -> str:
    kept = os.fsencode(name)[:_ARCHIVED_NAME_BYTES].decode(errors="ignore")
    return f"archived-{kept}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"


def _shared(root: int, token: str, record: Record) -> bool:
    """Whether another volume has the same directory. Raises Refused when one lies inside it."""
    with (
        _opened(open_beneath(root, _VOLUMES, _DIRECTORY, follow=False)) as volumes,
        os.scandir(volumes) as entries,
    ):
        names = [entry.name for entry in entries if entry.name.endswith(_RECORD_SUFFIX)]
    others = (
        read(root, name.removesuffix(_RECORD_SUFFIX)) for name in names if name != _file(token)
    )
    same = False
    for other in others:
        if other is None:
            continue
        if other.subdir.startswith(f"{record.subdir}/"):
            raise Refused(f"{record.subdir} holds the volume {other.name} in {other.subdir}")
        same = same or other.subdir == record.subdir
    return same


def _delete_tree(name: str, directory: int) -> None:
    """`rm` goes down any depth by descriptors and follows no link; shutil.rmtree recurses."""
    command = ("rm", "--recursive", "--force", "--one-file-system", "--", f"./{name}")
    where = f"/proc/self/fd/{directory}"
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(f"not all of it could be deleted: {done.stderr.strip()[:_ERROR_LIMIT]}")


def _write(root: int, token: str, record: Record) -> None:
    raw = json.dumps({"version": _VERSION, **asdict(record)}).encode()
    with _private(root, _VOLUMES) as volumes:
        temporary = f"{_file(token)}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=volumes), "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, _file(token), src_dir_fd=volumes, dst_dir_fd=volumes)
        os.fsync(volumes)


def _exists(root: int, subdir: str) -> bool:
    try:
        with _opened(open_beneath(root, subdir, os.O_PATH, follow=False)):
            return True
    except FileNotFoundError:
        return False


def _file(token: str) -> str:
    return f"{token}{_RECORD_SUFFIX}"


def _checked(subdir: str) -> str:
    """A record lies on the share, where others write too: its path is believed no more than an
    id's.
    """
    parts = subdir.split("/")
    odd = "\0" in subdir or any(part in ("", ".", "..") for part in parts)
    if odd or parts[0] == PRIVATE_DIRECTORY:
        raise Refused(f"{subdir!r} is not a volume's directory")
    return subdir


@contextlib.contextmanager
def _private(root: int, path: str) -> Iterator[int]:
    """One of the driver's own directories, made when it is not there."""
    with (
        _opened(ensure_directory_beneath(root, path, _PRIVATE_MODE, follow=False)) as found,
        _opened(open_beneath(found, ".", _DIRECTORY)) as directory,
    ):
        yield directory


@contextlib.contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _exclusive(lock: str) -> Iterator[None]:
    """What changes records and their directories is done by one process of this node at a time,
    one that a killed driver left behind included.
    """
    with _opened(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


def _perform(
    root: int, request: Mapping[str, Any], exclusive: AbstractContextManager[None]
) -> object:
    token: str = request.get("token", "")
    record: Record | None
    match request["operation"]:
        case "create":
            with exclusive:
                record = create(root, token, Record.of(request["record"]), request["permissions"])
        case "resize":
            with exclusive:
                record = resize(root, token, request["capacity"])
        case "read":
            record = read(root, token)
        case "delete":
            delete(root, token, exclusive)
            return None
        case "capacity":
            return capacity(root)
        case "ensure_directory":
            return share_directory.ensure(root, request["path"], request["permissions"])
        case other:
            raise ValueError(f"no operation {other!r}")
    return None if record is None else asdict(record)


def main(arguments: Sequence[str]) -> int:
    """`LOCK MOUNTPOINT COMMAND…`: run the mount command, then the operation on what it mounted.

    Answers {"result"}, or {"failed": "mount", "status", "output"}, or {"failed": "operation",
    "errno", "reason"}.
    """
    lock, target, *command = arguments
    request = json.load(sys.stdin)
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        output = mounted.stderr + mounted.stdout
        answer: object = {"failed": "mount", "status": mounted.returncode, "output": output}
    else:
        answer = _answer(target, request, _exclusive(lock))
    json.dump(answer, sys.stdout)
    return 0


def _answer(
    target: str, request: Mapping[str, Any], exclusive: AbstractContextManager[None]
) -> object:
    try:
        with _opened(os.open(target, _DIRECTORY)) as root:
            return {"result": _perform(root, request, exclusive)}
    except Refused as error:
        return {"failed": "operation", "errno": 0, "reason": str(error)}
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        number = error.errno or errno.EIO
        return {"failed": "operation", "errno": number, "reason": f"{where}{error.strerror}"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
