"""The NFS client's counters of every NAS volume of this node's pods: of those mounted on the node
from its mountstats, of those in guests from the guests, by the shims of their sandboxes.

Nothing here waits for a server: the kernel shows its counters without asking one, and a guest,
which asks one, has a deadline, as its shim has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kangaroo.csi import guest_volumes, pod_volumes
from kangaroo.csi.pod_volumes import InGuest, PodVolume
from kangaroo.linux import mountinfo
from kangaroo.nas import mountstats

_log = logging.getLogger(__name__)

# Below the ten seconds that Prometheus waits by default.
_DEADLINE_S = 8.0
_GUEST_S = 2.0
# Enough that guests of a dead server do not keep those of others waiting.
_ASKED_AT_ONCE = 64
# A second reader, or one that asks too often, gets what the first one got.
_FRESH_S = 2.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One volume's counters; None when nobody told them in time."""

    volume: PodVolume
    counters: mountstats.Statistics | None


class VolumeCounters:
    """Reads all counters, once at a time, however many ask.

    `failed` is called with "node", "guest" or "state" for each thing that could not be read.
    """

    def __init__(
        self,
        *,
        pods: Path,
        sandboxes: Path,
        guest_s: float,
        failed: Callable[[str], None],
        proc: Path = Path("/proc/self"),
    ) -> None:
        self._pods = str(pods.resolve())  # as the mount table shows it
        self._sandboxes = sandboxes
        self._guest_s = min(guest_s, _GUEST_S)
        self._failed = failed
        self._proc = proc
        self._task: asyncio.Task[tuple[Reading, ...]] | None = None
        self._read_at = 0.0

    async def read(self) -> tuple[Reading, ...]:
        """The counters, of now or of a moment ago, within the deadline. What could not be read is
        left out or has no counters.
        """
        stale = time.monotonic() - self._read_at > _FRESH_S
        if self._task is None or (self._task.done() and stale):
            self._task = asyncio.create_task(self._read(), name="volume-counters")
        return await asyncio.shield(self._task)

    async def aclose(self) -> None:
        """Give up what is being read."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _read(self) -> tuple[Reading, ...]:
        deadline = time.monotonic() + _DEADLINE_S
        readings, asked = await asyncio.to_thread(self._on_this_node)
        limit = asyncio.Semaphore(_ASKED_AT_ONCE)
        tasks = {asyncio.create_task(self._ask(one, limit)): one for one in asked}
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=max(0.0, deadline - time.monotonic()))
        finally:
            for task in tasks:
                task.cancel()
        readings += [self._outcome(task, one) for task, one in tasks.items()]
        self._read_at = time.monotonic()
        return tuple(readings)

    def _on_this_node(self) -> tuple[list[Reading], list[InGuest]]:
        """In a thread: a mount table of many volumes takes a while to read."""
        try:
            readings = self._node_readings()
        except (OSError, ValueError) as error:
            _log.warning("the node's counters are not readable error=%r", error)
            self._failed("node")
            readings = []
        guests = pod_volumes.in_guests(self._sandboxes, self._pods, lambda: self._failed("state"))
        return readings, guests

    def _node_readings(self) -> list[Reading]:
        volumes = pod_volumes.on_node(mountinfo.read(self._proc / "mountinfo"), self._pods)
        if not volumes:
            return []
        text = (self._proc / "mountstats").read_bytes().decode("utf-8", "surrogateescape")
        counters = {one.mount_point: one for one in mountstats.parse(text, volumes.__contains__)}
        return [Reading(volume, counters.get(path)) for path, volume in volumes.items()]

    async def _ask(self, asked: InGuest, limit: asyncio.Semaphore) -> mountstats.Statistics:
        async with limit, asyncio.timeout(2 * self._guest_s):
            text = await guest_volumes.counters(asked.socket, asked.volume.path, self._guest_s)
        return mountstats.parse_one(text)

    def _outcome(self, task: asyncio.Task[mountstats.Statistics], asked: InGuest) -> Reading:
        error = task.exception() if task.done() else TimeoutError("no time was left for it")
        if error is None:
            return Reading(asked.volume, task.result())
        self._failed("guest")
        _log.debug("no counters from the guest target=%s error=%r", asked.volume.path, error)
        return Reading(asked.volume, None)
