"""Run something inside another network namespace, without moving the caller (man 2 setns)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from kangaroo.linux import libc

_CLONE_NEWNET = 0x40000000

Result = TypeVar("Result")


def enter(path: str) -> None:
    """Move the calling *thread* into the network namespace at `path`. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.call("setns", fd, _CLONE_NEWNET, named=path)
    finally:
        os.close(fd)


def run_in(path: str, function: Callable[[], Result]) -> Result:
    """Call `function` in a fresh thread inside the namespace at `path`; return or raise what it
    does.

    Namespaces belong to threads: the thread ends afterwards and is never reused, so no other code
    runs there. Sockets and tun descriptors that `function` opens stay in that namespace.
    """
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            enter(path)
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
