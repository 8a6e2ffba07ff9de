"""The shim's log: all of it in the sandbox's `shim.log`, and from INFO on also in containerd's own.

containerd reads a fifo `log` in the bundle and copies it to its standard error. The fifo is held
open for reading and writing, so containerd may go and come back, and a line that does not fit is
dropped: logging never blocks the shim.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys

_FIFO = "log"


class FifoHandler(logging.Handler):
    """Writes each record to a fifo without waiting."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.INFO)
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; what the fifo does not take is lost here, not in shim.log."""
        with contextlib.suppress(OSError):
            os.write(self._descriptor, f"{self.format(record)}\n".encode(errors="replace"))


def configure(sandbox_id: str, *, debug: bool, bundle: str) -> None:
    """Set the root logger up. A bundle without a fifo, as when a person runs the shim, has only
    `shim.log`.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    with contextlib.suppress(OSError):
        handlers.append(FifoHandler(f"{bundle}/{_FIFO}"))
    logging.basicConfig(
        handlers=handlers,
        level=logging.DEBUG if debug else logging.INFO,
        format=f"%(asctime)s %(levelname)s %(name)s pod={sandbox_id} %(message)s",
    )
    logging.getLogger("qemu.qmp").setLevel(logging.WARNING)  # it tells every end of a connection
