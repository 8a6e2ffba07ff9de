"""How many sandboxes of a node boot at the same time: as many as it has processors.

Booting is work for a processor. A node that starts a hundred pods at once would boot all of them
slowly, and past their deadlines; in turn, each is quick. A slot is a lock on a file, so a shim that
dies gives its slot back.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path

_LOG = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def boot_slot(directory: Path, slots: int) -> AsyncIterator[None]:
    """Hold one of `slots` slots, lock files in `directory`. Waits, cancellably, for one."""
    descriptor = _try_all(directory, slots)
    if descriptor is None:
        _LOG.info("waiting for a boot slot slots=%d", slots)
        descriptor = await _wait(directory / f"boot-{random.randrange(slots)}.lock")
    try:
        yield
    finally:
        os.close(descriptor)


def processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def _try_all(directory: Path, slots: int) -> int | None:
    for number in range(slots):
        descriptor = _open(directory / f"boot-{number}.lock")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            return descriptor
    return None


async def _wait(path: Path) -> int:
    """Block in flock(2), which no event loop can wait for: in a thread that may be left behind."""
    loop = asyncio.get_running_loop()
    locked: asyncio.Future[int] = loop.create_future()

    def hand_over(descriptor: int) -> None:
        if locked.done():
            os.close(descriptor)  # nobody waits any more
        else:
            locked.set_result(descriptor)

    def lock() -> None:
        descriptor = _open(path)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            loop.call_soon_threadsafe(hand_over, descriptor)
        except RuntimeError:  # the loop has closed
            os.close(descriptor)

    threading.Thread(target=lock, name="boot-slot", daemon=True).start()
    return await locked


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
