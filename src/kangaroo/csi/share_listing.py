"""What is on a share, a page at a time, and in which condition. Standard library and
`kangaroo.linux` only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from kangaroo.csi import share_copies
from kangaroo.csi.share_records import SNAPSHOTS, VOLUMES, Record, Refused, Shelf, opened
from kangaroo.linux.openat2 import open_beneath

# Of an answer, which has to fit into what is kept of a child's output.
_PAGE_BYTES = 512 << 10

Entry = Mapping[str, Any]


def volumes(root: int, after: str, limit: int) -> Entry:
    """A page of volumes whose token is greater than `after`: see `_page`."""
    return _page(root, VOLUMES, after, limit, lambda token: volume(root, token))


def snapshots(root: int, after: str, limit: int) -> Entry:
    """A page of snapshots, likewise."""
    return _page(root, SNAPSHOTS, after, limit, lambda token: snapshot(root, token))


def volume(root: int, token: str) -> Entry | None:
    """{"token", "record", "problem"}: the record is None when it cannot be understood, and not
    whole while a copy is not at its place; the problem is empty when there is none. None without a
    record.
    """
    try:
        record = VOLUMES.read(root, token)
    except (Refused, OSError) as error:
        return {"token": token, "record": None, "problem": str(error)}
    if record is None:
        return None
    if share_copies.waits(root, share_copies.of_volume(token)):
        record = replace(record, whole=False)
    return {"token": token, "record": asdict(record), "problem": _problem(root, record)}


def snapshot(root: int, token: str) -> Entry | None:
    """The same of a snapshot."""
    try:
        record = SNAPSHOTS.read(root, token)
    except (Refused, OSError) as error:
        return {"token": token, "record": None, "problem": str(error)}
    return None if record is None else {"token": token, "record": asdict(record), "problem": ""}


def _page(
    root: int,
    shelf: Shelf[Any],
    after: str,
    limit: int,
    look: Callable[[str], Entry | None],
) -> Entry:
    """{"entries", "more"}: in the order of their tokens, `limit` at most unless it is 0, fewer when
    they would be too large. Damaged ones are in it.
    """
    entries: list[Entry] = []
    size = 0
    for token in shelf.tokens(root):
        if token <= after:
            continue
        if (limit and len(entries) == limit) or size > _PAGE_BYTES:
            return {"entries": entries, "more": True}
        entry = look(token)
        if entry is not None:
            entries.append(entry)
            size += len(json.dumps(entry))
    return {"entries": entries, "more": False}


def _problem(root: int, record: Record) -> str:
    if not record.whole:
        return "its content is still being copied"
    try:
        with opened(open_beneath(root, record.subdir, os.O_PATH | os.O_DIRECTORY, follow=False)):
            return ""
    except FileNotFoundError:
        return f"its directory {record.subdir} is gone"
    except OSError as error:
        return f"its directory {record.subdir} cannot be opened: {error.strerror}"
