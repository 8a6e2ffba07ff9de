"""prctl(2), PR_SET_PDEATHSIG: a child that does not outlive its parent."""

from __future__ import annotations

import ctypes
import signal

from kangaroo.linux import libc

_PR_SET_PDEATHSIG = 1


def die_with() -> None:
    """Have the kernel kill this process when the thread that started it ends.

    A parent that ended before is not noticed: who writes to a pipe of it is told by the pipe.
    Raises OSError.
    """
    libc.call("prctl", _PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
