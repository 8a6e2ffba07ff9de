"""A file system whose server takes requests and does not answer them, by FUSE (fuse(4))."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
from collections.abc import Iterator

from tests.host.agent_in_namespace import Agent

_BUFFER_BYTES = 1 << 17
_IN_HEADER = struct.Struct("=IIQ")  # length, opcode, unique, and what is of no interest here
_OUT_HEADER = struct.Struct("=IiQ")  # length, error, unique
_INIT_OUT = struct.Struct("=IIIIHHI40x")  # version, read-ahead, flags, background, write

_MOUNT = """
import os, sys
from kangaroo.linux import libc
from kangaroo.linux.mount import mount
pid, device, place = sys.argv[1:]
libc.call("setns", os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), 0x00020000)  # CLONE_NEWNS
mount("stuck", place, "fuse", data=f"fd={device},rootmode=40000,user_id=0,group_id=0")
"""


class StuckServer:
    """Whoever looks at the file system waits until `close`."""

    def __init__(self, device: int) -> None:
        self._device = device

    def take_request(self) -> None:
        """Wait for the first request. From now on not even SIGKILL ends who made it."""
        _, _, unique = _IN_HEADER.unpack_from(os.read(self._device, _BUFFER_BYTES))
        answer = _INIT_OUT.pack(7, 31, 0, 0, 1, 1, 4096)
        os.write(self._device, _OUT_HEADER.pack(16 + len(answer), 0, unique) + answer)
        os.read(self._device, _BUFFER_BYTES)

    def close(self) -> None:
        """All requests fail. Idempotent."""
        device, self._device = self._device, -1
        if device >= 0:
            os.close(device)


@contextlib.contextmanager
def stuck_mount(agent: Agent, place: str) -> Iterator[StuckServer]:
    """Mount it on the new directory `place` of the agent's."""
    (agent.root / place.removeprefix("/")).mkdir(parents=True)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    server = StuckServer(device)
    try:
        argv = [sys.executable, "-c", _MOUNT, str(agent.pid), str(device), place]
        subprocess.run(argv, pass_fds=[device], check=True)
        yield server
    finally:
        server.close()
