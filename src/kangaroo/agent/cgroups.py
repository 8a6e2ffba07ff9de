"""A container's cgroup: members, figures, and the kernel's word when it ran out of memory."""

from __future__ import annotations

import os
import signal
from typing import Any

from kangaroo.agent.loop import PRIORITY, Future, Loop

ROOT = "/sys/fs/cgroup"
PARENT = "kangaroo"


class Cgroup:
    """The cgroup of one container, version 2; without an id that of all of them."""

    def __init__(self, container_id: str = "") -> None:
        self.path = f"{ROOT}/{PARENT}/{container_id}"

    def pids(self) -> list[int]:
        """Processes in it and beneath it."""
        found: list[int] = []
        for directory, _, _ in os.walk(self.path):
            found += [int(line) for line in _read(f"{directory}/cgroup.procs").split()]
        return sorted(found)

    def signal_all(self, number: int) -> bool:
        """Send a signal to every process; whether there was one."""
        if number == signal.SIGKILL and os.path.exists(f"{self.path}/cgroup.kill"):
            alive = bool(self.pids())
            with open(f"{self.path}/cgroup.kill", "w") as file:
                file.write("1")
            return alive
        sent = False
        for pid in self.pids():
            try:
                os.kill(pid, number)
                sent = True
            except ProcessLookupError:
                pass
        return sent

    async def emptied(self, loop: Loop, timeout_s: float) -> bool:
        """Wait until no process is left in it and beneath it; whether it came to that. Mapped files
        that they changed are written back by then, and their mount namespaces gone.
        """
        try:
            events = os.open(f"{self.path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # there is no such group
            return True
        empty = Future()

        def look() -> None:
            if not _populated(events):
                empty.set()

        loop.watch(events, PRIORITY, look)
        try:
            look()
            return await loop.within(empty, timeout_s)
        finally:
            loop.unwatch(events)
            os.close(events)

    def stats(self) -> dict[str, Any]:
        """What ContainerStats answers; a controller that is off gives zeros."""
        cpu = _table(_read(f"{self.path}/cpu.stat"))
        return {
            "cpu": {
                "usage_us": cpu.get("usage_usec", 0),
                "user_us": cpu.get("user_usec", 0),
                "system_us": cpu.get("system_usec", 0),
                "nr_periods": cpu.get("nr_periods", 0),
                "nr_throttled": cpu.get("nr_throttled", 0),
                "throttled_us": cpu.get("throttled_usec", 0),
            },
            "memory": {
                "current": _limit(_read(f"{self.path}/memory.current")) or 0,
                "max": _limit(_read(f"{self.path}/memory.max")),
                "stat": _table(_read(f"{self.path}/memory.stat")),
                "events": _table(_read(f"{self.path}/memory.events")),
            },
            "pids": {
                "current": _limit(_read(f"{self.path}/pids.current")) or 0,
                "max": _limit(_read(f"{self.path}/pids.max")),
            },
        }


class OutOfMemory:
    """Counts a container's OOM kills. `fd` is ready with EPOLLPRI when the counters change."""

    def __init__(self, cgroup: Cgroup) -> None:
        self.fd = os.open(f"{cgroup.path}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        self._seen = self._kills()

    def happened(self) -> bool:
        """Whether there was a kill since the last call. Raises OSError when the cgroup is gone."""
        kills = self._kills()
        before, self._seen = self._seen, kills
        return kills > before

    def close(self) -> None:
        os.close(self.fd)

    def _kills(self) -> int:
        return _table(os.pread(self.fd, 4096, 0).decode()).get("oom_kill", 0)


def _populated(events: int) -> bool:
    try:
        return bool(_table(os.pread(events, 4096, 0).decode()).get("populated"))
    except OSError:  # the group is gone
        return False


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _table(text: str) -> dict[str, int]:
    """`name number` lines."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _limit(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None
