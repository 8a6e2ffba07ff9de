"""What nobody else cleans up: state directories without a shim that containerd does not know of.

containerd runs `delete` for a shim that it was connected to. A shim that died before that, or a
`start` that failed or was killed half-way, leaves a directory that nothing names but itself; so
does a `delete` that a busy node did not get done in containerd's five seconds. Every new shim looks
for such directories, at once and again a minute later, when what its pod's last sandbox left is old
enough, and runs `delete` for them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kangaroo.errors import CommandFailed, DeadlineExceeded
from kangaroo.linux.process import run
from kangaroo.runtime.delete import open_daemon

_LOG = logging.getLogger(__name__)

# `start` needs a moment between the directory and the shim, and containerd's own `delete` comes
# first.
MIN_AGE_S = 60.0
_DELETE_TIMEOUT_S = 30.0


def abandoned(root: Path) -> list[str]:
    """The ids of the sandboxes below `root` whose shim is gone, and that nothing has changed for a
    minute.
    """
    found = []
    for entry in os.scandir(root):
        try:
            old = time.time() - entry.stat().st_mtime >= MIN_AGE_S
        except FileNotFoundError:
            continue
        if not old or not entry.is_dir(follow_symlinks=False):
            continue
        daemon = open_daemon(entry.path)
        if daemon is None:
            found.append(entry.name)
        else:
            os.close(daemon)
    return found


async def keep_clean(root: Path, command: Callable[[str, Path], Sequence[str]]) -> None:
    """Sweep now, and again when what was left before now is old enough."""
    await sweep(root, command)
    await asyncio.sleep(MIN_AGE_S)
    await sweep(root, command)


async def sweep(root: Path, command: Callable[[str, Path], Sequence[str]]) -> None:
    """Clean up what is abandoned below `root`. `command` gives the argv of `delete` for an id and
    its directory: it looks again, with a lock, so that several may do this at the same time.
    """
    for sandbox_id in await asyncio.to_thread(abandoned, root):
        _LOG.warning("cleaning up after a shim that is gone sandbox=%s", sandbox_id)
        try:
            await run(command(sandbox_id, root / sandbox_id), timeout_s=_DELETE_TIMEOUT_S)
        except (CommandFailed, DeadlineExceeded, OSError) as error:
            _LOG.error("not cleaned up sandbox=%s error=%s", sandbox_id, error)
