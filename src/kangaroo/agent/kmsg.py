"""What the kernel said since a moment (Documentation/ABI/testing/dev-kmsg)."""

from __future__ import annotations

import os
from typing import Self

_RECORD_BYTES = 8192


class KernelLog:
    """The kernel's messages from now on."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def lines(self, *prefixes: str) -> list[str]:
        """Messages since that begin with one of `prefixes`."""
        found = []
        while self._fd >= 0:
            try:
                record = os.read(self._fd, _RECORD_BYTES).decode(errors="replace")
            except BrokenPipeError:  # records were overwritten before they were read
                continue
            except OSError:
                break
            text = record.partition(";")[2].partition("\n")[0]
            if text.startswith(prefixes):
                found.append(text)
        return found
