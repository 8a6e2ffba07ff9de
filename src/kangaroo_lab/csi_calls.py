"""Calls of CSI drivers on a node of the lab, as kubelet and the sidecars make them."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from kangaroo.errors import CommandFailed
from kangaroo_lab import data
from kangaroo_lab.node import Node

SOCKET = "/var/lib/kubelet/plugins/nasplugin.csi.alibabacloud.com/csi.sock"
# Kubelet's deadline of a call.
KUBELET_S = 120

_SCRIPT = "/run/kangaroo-csi-calls.py"
_START_S = 60


@dataclass(frozen=True)
class Answer:
    """What a call came to. `code` is gRPC's name of it, `seconds` the client's time."""

    code: str
    message: str
    seconds: float
    response: Mapping[str, Any]


class Client:
    """A client that stays on a node: Python and gRPC take seconds to start on an emulated one."""

    def __init__(
        self, command: Sequence[str], process: subprocess.Popen[str], errors: IO[str]
    ) -> None:
        self._command = command
        self._process = process
        self._errors = errors
        self._lock = threading.Lock()

    def run(self, rounds: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Answer]]:
        """Make the calls of a round at once, each from its own thread, and round after round; what
        a call consists of stands in `data/csi/calls.py`. A call without a socket is for Kangaroo's.
        Raises CommandFailed when the client ends, or is ended for it took too long.
        """
        calls = [[{"socket": SOCKET, **one} for one in each] for each in rounds]
        deadline = threading.Timer(len(rounds) * KUBELET_S + _START_S, self._process.kill)
        with self._lock:
            deadline.start()
            try:
                answered = self._ask(json.dumps(calls))
            finally:
                deadline.cancel()
        return [[Answer(**answer) for answer in answers] for answers in json.loads(answered)]

    def _ask(self, line: str) -> str:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, which the answer says
        answered = process.stdout.readline()
        if not answered:
            self._errors.seek(0)
            raise CommandFailed(tuple(self._command), process.wait(), self._errors.read())
        return answered


@contextmanager
def client(node: Node) -> Iterator[Client]:
    """Put a client on the node and start it; it ends with the block."""
    node.copy_to(data.path("csi/calls.py"), _SCRIPT)
    command = node.ssh("env", "PYTHONPATH=/opt/kangaroo/lib", "python3", _SCRIPT)
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,
    ):
        try:
            yield Client(command, process, errors)
        finally:
            process.kill()
