"""End every sandbox of a node, durably, as when the node goes down."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from kangaroo.errors import DeadlineExceeded
from kangaroo.runtime.delete import open_daemon


def end_all(root: Path, timeout_s: float) -> Iterator[tuple[str, float]]:
    """Ask all living shims below `root` at once to end; each has its guest write back what the pod
    left unwritten. Yields the id of each sandbox that has ended, and after how many seconds.

    Raises DeadlineExceeded, which names those that have not ended after `timeout_s`. A sandbox
    whose shim is gone is left to whoever cleans up after it.
    """
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        left: dict[int, str] = {}
        for directory in sorted(root.iterdir()) if root.is_dir() else ():
            daemon = open_daemon(str(directory))
            if daemon is not None:
                stack.callback(os.close, daemon)
                left[daemon] = directory.name
        poll = select.poll()
        for daemon in left:
            poll.register(daemon, select.POLLIN)
            with contextlib.suppress(ProcessLookupError):  # which poll then tells
                signal.pidfd_send_signal(daemon, signal.SIGTERM)
        while left:
            remaining_s = begun + timeout_s - time.monotonic()
            ended = poll.poll(max(0.0, remaining_s) * 1000)
            if not ended:
                raise DeadlineExceeded(
                    f"not ended within {timeout_s:g} s: {', '.join(sorted(left.values()))}",
                    hint="the NAS may not answer; see shim.log in the sandbox's directory",
                )
            for daemon, _ in ended:
                poll.unregister(daemon)
                yield left.pop(daemon), time.monotonic() - begun
