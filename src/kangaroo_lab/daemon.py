"""Long-lived processes that outlive the command which started them.

`kangaroo lab up` returns while the lab runs, and the machine may have no service manager, so each
process is the leader of its own session, and what is written down about it (id and start time)
names it beyond doubt later. Ends are awaited on pidfds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kangaroo.linux.process import ended

_log = logging.getLogger(__name__)

TERM_TIMEOUT_S = 20.0
_KILL_TIMEOUT_S = 10.0
_TAIL_LINES = 15
# Fields of /proc/<pid>/stat after the command's closing parenthesis (proc_pid_stat(5)).
_STAT_STATE, _STAT_SESSION, _STAT_STARTTIME = 0, 3, 19


@dataclass(frozen=True, slots=True)
class Daemon:
    """A process that was started; `start_ticks` is its start time since boot (proc_pid_stat(5))."""

    name: str
    pid: int
    start_ticks: int
    log: str

    def alive(self) -> bool:
        stat = _stat(self.pid)
        return (
            stat is not None
            and int(stat[_STAT_STARTTIME]) == self.start_ticks
            and stat[_STAT_STATE] != "Z"
        )

    def session(self) -> list[int]:
        """The processes of its session that live, itself included; it may itself be gone."""
        leader = _stat(self.pid)
        # An id is not given out anew while it still names a session: a stranger means all are gone.
        if leader is not None and int(leader[_STAT_STARTTIME]) != self.start_ticks:
            return []
        return [pid for pid in _processes() if _in_session(pid, self.pid)]

    def tail(self) -> str:
        """The end of its log."""
        return tail(Path(self.log))


def start(
    name: str, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
) -> Daemon:
    """Start `argv` in a session of its own, output appended to `log`; `env` is added to ours.

    Raises OSError.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    _log.debug("start name=%s argv=%s", name, shlex.join(argv))
    with log.open("ab") as output:
        output.write(f"--- {time.strftime('%FT%TZ', time.gmtime())} {shlex.join(argv)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env={**os.environ, **(env or {})},
        )
    stat = _stat(process.pid)
    assert stat is not None, "an unreaped child has a stat"
    # It is not this command's child for long; the interpreter need not complain about it.
    process.returncode = 0
    return Daemon(name, process.pid, int(stat[_STAT_STARTTIME]), str(log))


def stop(daemon: Daemon, *, timeout_s: float = TERM_TIMEOUT_S) -> None:
    """End the whole session: SIGTERM, and SIGKILL past the deadline. Without time, SIGKILL at once.

    A repeat does nothing.
    """
    members = daemon.session()
    if timeout_s > 0:
        _signal(members, signal.SIGTERM)
        if not _await_end(members, timeout_s):
            _log.info("killed past its deadline name=%s pid=%d", daemon.name, daemon.pid)
        members = daemon.session()
    end(members)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(daemon.pid, os.WNOHANG)


def tail(log: Path) -> str:
    """The end of a log; nothing of one that is not there."""
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
    return ""


def end(pids: Sequence[int]) -> None:
    """Kill processes that nothing is known about, and wait until they are gone."""
    _signal(pids, signal.SIGKILL)
    _await_end(pids, _KILL_TIMEOUT_S)


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _await_end(pids: Sequence[int], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    return all(ended(pid, deadline - time.monotonic()) for pid in pids)


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _in_session(pid: int, session: int) -> bool:
    stat = _stat(pid)
    return stat is not None and int(stat[_STAT_SESSION]) == session and stat[_STAT_STATE] != "Z"


def _stat(pid: int) -> list[str] | None:
    """The fields after the command name, or None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()
