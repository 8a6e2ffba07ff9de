"""Calls of CSI drivers on a node of the lab, as kubelet and the sidecars make them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kangaroo_lab import data
from kangaroo_lab.conversation import Conversation, conversation
from kangaroo_lab.node import Node

SOCKET = "/var/lib/kubelet/plugins/nasplugin.csi.alibabacloud.com/csi.sock"
# Kubelet's deadline of a call.
KUBELET_S = 120

_SCRIPT = "/run/kangaroo-csi-calls.py"
_START_S = 60


@dataclass(frozen=True)
class Answer:
    """What a call came to. `code` is gRPC's name of it, `seconds` the client's time from `begun_s`
    after its round began.
    """

    code: str
    message: str
    begun_s: float
    seconds: float
    response: Mapping[str, Any]


class Client:
    """A client that stays on a node: Python and gRPC take seconds to start on an emulated one."""

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk

    def run(self, rounds: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Answer]]:
        """Make the calls of a round at once, each from its own thread, and round after round; what
        a call consists of stands in `data/csi/calls.py`. A call without a socket is for Kangaroo's.
        Raises CommandFailed when the client ends, DeadlineExceeded when it takes too long.
        """
        calls = [[{"socket": SOCKET, **one} for one in each] for each in rounds]
        answered = self._talk.ask(calls, timeout_s=len(rounds) * KUBELET_S + _START_S)
        return [[Answer(**answer) for answer in answers] for answers in answered]


@contextmanager
def client(node: Node) -> Iterator[Client]:
    """Put a client on the node and start it; it ends with the block."""
    node.copy_to(data.path("csi/calls.py"), _SCRIPT)
    with conversation(node.ssh("env", "PYTHONPATH=/opt/kangaroo/lib", "python3", _SCRIPT)) as talk:
        yield Client(talk)
