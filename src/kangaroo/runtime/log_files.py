"""A sandbox's log files, kept at a bounded size: they lie in memory (/run), and a guest can be the
cause of lines without end.

`console.log` is bounded by who writes it. The others are standard error of a process, opened to
append: such a file may be cut while it is written.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

LIMIT_BYTES = 1 << 20
_LOOK_S = 30.0

_LOG = logging.getLogger(__name__)


async def keep_bounded(*logs: Path) -> None:
    """Cut files that have grown past LIMIT_BYTES, for ever. They need not be there."""
    while True:
        for path in logs:
            try:
                cut(path)  # in memory: nothing to wait for
            except FileNotFoundError:
                pass
            except OSError as error:
                _LOG.warning("log not cut path=%s error=%s", path, error)
        await asyncio.sleep(_LOOK_S)


def cut(path: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
    """Past `limit_bytes`, start the file anew; its last `limit_bytes` are in `<name>.1` then. A
    line that is written meanwhile may be lost. Raises OSError.
    """
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size > limit_bytes:
            file.seek(size - limit_bytes)
            path.with_name(f"{path.name}.1").write_bytes(file.read(limit_bytes))
            file.truncate(0)
