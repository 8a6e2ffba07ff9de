"""Calls of the C library that Python has no function of its own for."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: Any, named: str | os.PathLike[str] | None = None) -> int:
    """What a function of the C library returns, which is an int, -1 when it fails.

    Arguments are as ctypes takes them: bytes are `const char *`, None is NULL, and an int of Python
    is an `int` of C, so anything longer comes in its own type. A system call that has no function
    goes by "syscall" (syscall(2)), its number a c_long. Raises OSError, which names `named`, by
    default the function.
    """
    result: int = getattr(_libc, function)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        name = function if named is None else os.fsdecode(named)
        raise OSError(number, os.strerror(number), name)
    return result
