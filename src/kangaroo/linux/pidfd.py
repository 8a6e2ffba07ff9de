"""The end of a process, awaited on its pidfd (pidfd_open(2)). Cheap to import: `delete` does."""

from __future__ import annotations

import select


def ended(descriptor: int, timeout_s: float = 0.0) -> bool:
    """Whether the process has ended or ends within `timeout_s`. A zombie has."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(timeout_s, 0.0) * 1000))
