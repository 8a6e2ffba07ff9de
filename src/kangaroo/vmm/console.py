"""The guest's serial console, kept in a file of bounded size.

A guest may print without end, and the log lies in memory (/run). So QEMU writes to a pipe, and what
comes out fills a file that is started anew when it is full; the one before stays as `<name>.1`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

LIMIT_BYTES = 1 << 20
_PIPE_BYTES = 1 << 16  # pipe(7)


class Console:
    """One console; reads while the event loop runs. `write_fd` is what QEMU inherits."""

    def __init__(self, path: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.path = path
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read_fd, False)
        self._file = path.open("wb", buffering=0)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read_fd, self._on_readable)

    def release_write_end(self) -> None:
        """Close our copy of `write_fd`, once QEMU has its own. Idempotent."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def tail(self, size_bytes: int = 1024) -> str:
        """The end of what the guest has printed so far, or `empty`."""
        self._on_readable()
        return self.path.read_bytes()[-size_bytes:].decode(errors="replace").strip() or "empty"

    def close(self) -> None:
        """Read what is left and close everything. Idempotent."""
        self.release_write_end()
        self._on_readable()
        self._stop()

    def _on_readable(self) -> None:
        # What a pipe holds and no more: a guest may print faster than this reads, and others wait
        # for the loop.
        if self._read_fd < 0:
            return
        try:
            chunk = os.read(self._read_fd, _PIPE_BYTES)
        except BlockingIOError:
            return
        if chunk:
            self._append(chunk)
        else:
            self._stop()

    def _append(self, chunk: bytes) -> None:
        # A full /run costs the log, never the sandbox.
        with contextlib.suppress(OSError):
            if self._size_bytes + len(chunk) > self._limit_bytes:
                self._start_anew()
            self._file.write(chunk)
        self._size_bytes += len(chunk)

    def _start_anew(self) -> None:
        with contextlib.suppress(OSError):
            self.path.with_name(f"{self.path.name}.1").write_bytes(self.path.read_bytes())
        self._file.truncate(0)
        self._file.seek(0)
        self._size_bytes = 0

    def _stop(self) -> None:
        if self._read_fd >= 0:
            self._loop.remove_reader(self._read_fd)
            os.close(self._read_fd)
            self._read_fd = -1
            self._file.close()
