"""A process that is killed at a chosen point of what it does to the file system."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

_CALLS = (
    *("open", "mkdir", "mknod", "symlink", "link", "unlink", "rename", "scandir"),
    *("fsync", "fchown", "fchmod", "chown", "utime", "ftruncate", "pwrite", "copy_file_range"),
)


def killed_at(number: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child that SIGKILL ends in the place of its system call `number`, counted
    from 0; False when it came to its end before.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _count(number)
            action()
            status = 0
        finally:
            os._exit(status)
    _, ended = os.waitpid(pid, 0)
    if os.WIFSIGNALED(ended):
        assert os.WTERMSIG(ended) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(ended) == 0, "the action failed"
    return False


def _count(number: int) -> None:
    done = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            nonlocal done
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            return call(*arguments, **named)

        return wrapped

    for name in _CALLS:
        setattr(os, name, counted(getattr(os, name)))
