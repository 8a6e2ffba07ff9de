"""Calls of CSI drivers on a node of the lab, as kubelet and the sidecars make them.

The client is this process, which reaches the driver's socket through the node's ssh connection: on
the emulated node the start of a client alone would take seconds.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from kangaroo.errors import CommandFailed, DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    import grpc

    from kangaroo_lab.node import Node

SOCKET = "/var/lib/kubelet/plugins/nasplugin.csi.alibabacloud.com/csi.sock"
# Kubelet's deadline of a call.
KUBELET_S = 120

# A driver that is just restarting is tried again soon, not after a second and more.
_CHANNEL_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 200),)
_COMMAND_S = 60


@dataclass(frozen=True)
class Answer:
    """What a call came to. `code` is gRPC's name of it, `seconds` the client's time."""

    code: str
    message: str
    seconds: float
    response: Mapping[str, Any]


def run(node: Node, rounds: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Answer]]:
    """Make the calls of a round at once, each from its own thread, and round after round.

    A call is {"method", "request", "timeout_s"} and, when it is not for Kangaroo's driver,
    "socket". With "kill": {"pid", "after_s"} a process of the node is killed so long after the call
    was made, and is dead when this returns. Raises Unavailable when a driver does not listen,
    CommandFailed, DeadlineExceeded.
    """
    with contextlib.ExitStack() as stack:
        sockets = {one.get("socket", SOCKET) for calls in rounds for one in calls}
        channels = {socket: stack.enter_context(_connected(node, socket)) for socket in sockets}
        pool = stack.enter_context(ThreadPoolExecutor(max(map(len, rounds))))
        return [list(pool.map(partial(_call, node, channels), calls)) for calls in rounds]


@contextlib.contextmanager
def _connected(node: Node, socket: str) -> Iterator[grpc.Channel]:
    import grpc  # noqa: PLC0415 - the lab's other verbs do without

    with (
        node.keys.forwarded(node.address, socket) as local,
        grpc.insecure_channel(f"unix:{local}", options=_CHANNEL_OPTIONS) as channel,
    ):
        try:
            grpc.channel_ready_future(channel).result(timeout=KUBELET_S)
        except grpc.FutureTimeoutError as error:
            raise Unavailable(f"{node.name}: nobody answers on {socket}") from error
        yield channel


def _call(node: Node, channels: Mapping[str, grpc.Channel], one: Mapping[str, Any]) -> Answer:
    import grpc  # noqa: PLC0415 - see _connected
    from google.protobuf import json_format  # noqa: PLC0415

    from kangaroo.wire.gen import csi_pb2, csi_pb2_grpc  # noqa: PLC0415

    method: str = one["method"]
    service = csi_pb2_grpc.NodeStub if method.startswith("Node") else csi_pb2_grpc.ControllerStub
    verb = getattr(service(channels[one.get("socket", SOCKET)]), method)
    request = json_format.ParseDict(one["request"], getattr(csi_pb2, f"{method}Request")())
    with _killer(node, **one["kill"]) if "kill" in one else contextlib.nullcontext() as kill:
        started = time.monotonic()
        if kill is not None:
            kill()
        try:
            response = verb(request, timeout=one["timeout_s"], wait_for_ready=True)
        except grpc.RpcError as error:
            seconds = time.monotonic() - started
            return Answer(error.code().name, error.details() or "", seconds, {})
        seconds = time.monotonic() - started
        return Answer("OK", "", seconds, json_format.MessageToDict(response))


@contextlib.contextmanager
def _killer(node: Node, *, pid: int, after_s: float) -> Iterator[Callable[[], object]]:
    """What is called to have `pid` killed `after_s` later; it is dead at the end of the block.

    What kills waits on the node for a line, because to start it there takes longer than many calls.
    """
    script = f"echo ready && read -r line && sleep {after_s:.3f} && kill -KILL {pid}"
    argv = node.ssh("sh", "-c", script)
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe) as killer:
        assert killer.stdin is not None
        assert killer.stdout is not None
        try:
            killer.stdout.readline()
            yield partial(killer.stdin.write, b"now\n")
            _, said = killer.communicate(timeout=after_s + _COMMAND_S)
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded(f"{node.name}: {pid} is not killed") from error
        finally:
            killer.kill()
    if killer.returncode != 0:
        raise CommandFailed(tuple(argv), killer.returncode, said.decode(errors="replace"))
