"""prctl(2), PR_SET_PDEATHSIG: a child that does not outlive its parent."""

from __future__ import annotations

import ctypes
import os
import signal

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG = 1


def die_with() -> None:
    """Have the kernel kill this process when the thread that started it ends.

    A parent that ended before is not noticed: who writes to a pipe of it is told by the pipe.
    Raises OSError.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
