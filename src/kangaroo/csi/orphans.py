"""Children that a crashed driver left running, ended before its successor serves.

A mount that comes after its volume was taken away would be nobody's. The service manager is not
asked to see to it (KillMode=): it would wait for an umount that a dead server holds in the kernel,
and the driver of a whole node would wait with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from pathlib import Path

from kangaroo.linux import process

_log = logging.getLogger(__name__)

_CGROUPS = Path("/sys/fs/cgroup")
# For a child that can be killed. One that cannot is in an umount that has let go of its target.
_TIMEOUT_S = 2.0


def end(group: Path) -> None:
    """Kill all processes of the control group but this one. What does not die in time is logged and
    left.
    """
    deadline = time.monotonic() + _TIMEOUT_S
    # Again and again: a process may have had a child while it was killed.
    while orphans := _others(group):
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _log.warning("killed what an earlier driver left running pids=%s", orphans)
        stuck = [pid for pid in orphans if not process.ended(pid, deadline - time.monotonic())]
        if stuck:
            _log.error("left behind, uninterruptible pids=%s", stuck)
            return


def service_group() -> Path | None:
    """The control group of the service whose main process this is (systemd.exec(5)). None for any
    other process: its group is not its own.
    """
    if os.environ.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        return None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        hierarchy, _, path = line.split(":", 2)
        group = _CGROUPS / path.removeprefix("/")
        if hierarchy == "0" and (group / "cgroup.procs").exists():
            return group
    return None


def _others(group: Path) -> list[int]:
    own = os.getpid()
    pids = (int(word) for word in (group / "cgroup.procs").read_text().split())
    return [pid for pid in pids if pid != own]
