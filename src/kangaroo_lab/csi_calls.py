"""Calls of CSI drivers on a node of the lab, as kubelet and the sidecars make them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


def install(node: Node) -> None:
    """Put the client on the node, as `run` needs it."""
    node.copy_to(data.path("csi/calls.py"), _SCRIPT)


def run(node: Node, rounds: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Answer]]:
    """Make the calls of a round at once, each from its own thread, and round after round; what a
    call consists of stands in `data/csi/calls.py`. A call without a socket is for Kangaroo's.
    """
    calls = [[{"socket": SOCKET, **one} for one in each] for each in rounds]
    command = ["env", "PYTHONPATH=/opt/kangaroo/lib", "python3", _SCRIPT]
    timeout_s = len(rounds) * KUBELET_S + _START_S
    done = node.exec(command, input=json.dumps(calls), timeout_s=timeout_s)
    return [[Answer(**answer) for answer in answers] for answers in json.loads(done.stdout)]
