"""What is done on a share, in a process of its own.

The process mounts the share in a mount namespace that nobody else is in: when it ends, by whatever
end, the mount is gone. It is told one operation as JSON on standard input and answers as JSON on
standard output; a dead server blocks it, and never the driver.

On the share the driver owns PRIVATE_DIRECTORY: `share_records` is what it writes down there,
`share_trash` what is being deleted, `share_copies` what is being copied. Every path is opened
beneath the share's root without following a symbolic link, so nothing outside it is made, renamed
or deleted, whatever a record says and whoever else writes to the share. Standard library and
`kangaroo.linux` only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from typing import Any

from kangaroo.csi import share_directory, share_listing, share_snapshots, share_volumes
from kangaroo.csi.share_records import DIRECTORY, VOLUMES, Record, Refused, Snapshot, opened
from kangaroo.csi.tree_copy import Progress, Unfit
from kangaroo.linux import parent

_TELL_EVERY_S = 1.0


@contextlib.contextmanager
def _exclusive(lock: str) -> Iterator[None]:
    """What changes records and their directories is done by one process of this node at a time,
    one that a killed driver left behind included.
    """
    with opened(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _alone(lock: str, token: str) -> Iterator[None]:
    """What takes long, of one volume or snapshot, is done by one process at a time, likewise. A
    byte of one file stands for each.
    """
    place = int.from_bytes(sha256(token.encode()).digest()[:7])
    with opened(os.open(f"{lock}.long", os.O_RDWR | os.O_CREAT, 0o600)) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, place)
        yield


@dataclass(frozen=True, slots=True)
class _Operations:
    """The operations that a request can name, on one share."""

    root: int
    lock: str
    request: Mapping[str, Any]

    def perform(self) -> object:
        token: str = self.request.get("token", "")
        match self.request["operation"]:
            case "create" | "resize" | "begin-snapshot" as operation:
                with _exclusive(self.lock):
                    return _document(self._change(operation, token))
            case "fill" | "fill-snapshot" | "delete" | "delete-snapshot" as operation:
                kind = "snapshot" if operation.endswith("-snapshot") else "volume"
                with _alone(self.lock, f"{kind} {token}"):
                    return _document(self._long(operation, token))
            case "ensure_directory":
                path, permissions = self.request["path"], self.request["permissions"]
                return share_directory.ensure(self.root, path, permissions)
            case operation:
                return self._look(operation, token)

    def _change(self, operation: str, token: str) -> Record | Snapshot | None:
        request = self.request
        if operation == "create":
            record = Record.of(request["record"])
            return share_volumes.create(self.root, token, record, request["permissions"])
        if operation == "resize":
            return share_volumes.resize(self.root, token, request["capacity"])
        return share_snapshots.begin(self.root, token, Snapshot.of(request["snapshot"]))

    def _long(self, operation: str, token: str) -> Record | Snapshot | None:
        exclusive = partial(_exclusive, self.lock)
        match operation:
            case "fill":
                permissions = self.request["permissions"]
                with _telling() as progress:
                    return share_volumes.fill(self.root, token, permissions, progress, exclusive)
            case "fill-snapshot":
                with _telling() as progress:
                    return share_snapshots.fill(self.root, token, progress, exclusive)
            case "delete-snapshot":
                share_snapshots.delete(self.root, token, exclusive)
            case _:
                share_volumes.delete(self.root, token, exclusive)
        return None

    def _look(self, operation: str, token: str) -> object:
        match operation:
            case "read":
                return _document(VOLUMES.read(self.root, token))
            case "look":
                return share_listing.volume(self.root, token)
            case "look-snapshot":
                return share_listing.snapshot(self.root, token)
            case "list":
                return share_listing.volumes(self.root, token, self.request["limit"])
            case "list-snapshots":
                return share_listing.snapshots(self.root, token, self.request["limit"])
            case "capacity":
                return share_volumes.capacity(self.root)
        raise ValueError(f"no operation {operation!r}")


def _document(record: Record | Snapshot | None) -> object:
    return None if record is None else asdict(record)


@contextlib.contextmanager
def _telling() -> Iterator[Progress]:
    """Progress that goes to the driver as lines {"progress": …}, and once more at the end."""
    last = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _TELL_EVERY_S:
            last = now
            _say_progress(progress)

    progress = Progress(tell)
    yield progress
    _say_progress(progress)


def _say_progress(progress: Progress) -> None:
    said = ("files", "bytes", "vanished", "vanished_names")
    _say({"progress": {name: getattr(progress, name) for name in said}})


def _say(document: object) -> None:
    print(json.dumps(document), flush=True)


def main(arguments: Sequence[str]) -> int:
    """`LOCK MOUNTPOINT COMMAND…`: run the mount command, then the operation on what it mounted.

    Answers {"result"}, or {"failed": "mount", "status", "output"}, or {"failed": "operation",
    "errno", "kind", "reason"}; lines {"progress"} come before it. The driver's end is this
    process's, too.
    """
    parent.die_with()
    lock, target, *command = arguments
    request = json.load(sys.stdin)
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        output = mounted.stderr + mounted.stdout
        _say({"failed": "mount", "status": mounted.returncode, "output": output})
    else:
        _say(_answer(target, request, lock))
    return 0


def _answer(target: str, request: Mapping[str, Any], lock: str) -> object:
    try:
        with opened(os.open(target, DIRECTORY)) as root:
            return {"result": _Operations(root, lock, request).perform()}
    except Refused as error:
        return _failed(0, error.kind, str(error))
    except Unfit as error:
        return _failed(0, "", str(error))
    except BrokenPipeError:
        raise  # the driver is gone
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(error.errno or errno.EIO, "", f"{where}{error.strerror}")


def _failed(number: int, kind: str, reason: str) -> object:
    """A reason may have a name of the share in it, which may be no text."""
    text = reason.encode(errors="replace").decode()
    return {"failed": "operation", "errno": number, "kind": kind, "reason": text}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
