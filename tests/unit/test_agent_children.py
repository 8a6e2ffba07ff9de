"""Container processes are taken over with their own exits, whoever had their ids before."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from kangaroo.agent.children import Children
from kangaroo.agent.loop import Loop


@pytest.fixture
def children() -> Iterator[Children]:
    handler = signal.getsignal(signal.SIGCHLD)
    yield Children(Loop())
    os.close(signal.set_wakeup_fd(-1))
    signal.signal(signal.SIGCHLD, handler)


def ended() -> int:
    """The id of a process that nobody waits for; it is dead, and not reaped."""
    pid = os.posix_spawn("/bin/sh", ("sh", "-c", "exit 42"), {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def test_a_process_may_end_before_it_is_taken_over(children: Children) -> None:
    launch = children.launch_begins()
    pid = ended()
    children.reap()
    child = children.adopt(pid, launch)
    assert child.exited.done
    assert child.exited.result().code == 42


def test_an_exit_from_before_a_launch_is_not_its_processes(children: Children) -> None:
    """Ids come again, and one launch may take long enough for that."""
    slow = children.launch_begins()
    pid = ended()
    children.reap()
    launch = children.launch_begins()
    assert not children.adopt(pid, launch).exited.done
    children.launch_ends(launch)
    children.launch_ends(slow)
