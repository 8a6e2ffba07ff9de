"""Calls of CSI drivers, made on the node itself over their sockets. Reads JSON, writes JSON.

Runs on the node with the driver's own Python packages, not in the caller's process, until standard
input ends. Each of its lines is a list of rounds, a round a list of {"socket", "method", "request",
"timeout_s"}; with "kill": {"pid", "after_s"} a process is killed so long after the call was made.
The calls of a round are made at once, each in its own thread; rounds follow each other. Each line
of standard output is the answers in the same shape: {"code", "message", "begun_s", "seconds",
"response"}, with the times since the round began and since the call was made.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import grpc
from google.protobuf import json_format

from kangaroo.wire.gen import csi_pb2, csi_pb2_grpc


def call(
    channels: Mapping[str, grpc.Channel], round_started: float, one: dict[str, Any]
) -> dict[str, Any]:
    method: str = one["method"]
    node = method.startswith("Node")
    service = csi_pb2_grpc.NodeStub if node else csi_pb2_grpc.ControllerStub
    stub = service(channels[one["socket"]])
    request = getattr(csi_pb2, f"{method}Request")()
    json_format.ParseDict(one["request"], request)
    started = time.monotonic()
    killing = None
    if kill := one.get("kill"):
        killing = threading.Timer(kill["after_s"], os.kill, (kill["pid"], signal.SIGKILL))
        killing.start()
    answer: dict[str, Any]
    try:
        response = getattr(stub, method)(request, timeout=one["timeout_s"], wait_for_ready=True)
        answer = {"code": "OK", "message": "", "response": json_format.MessageToDict(response)}
    except grpc.RpcError as error:
        answer = {"code": error.code().name, "message": error.details(), "response": {}}
    answer |= {"begun_s": started - round_started, "seconds": time.monotonic() - started}
    if killing:
        killing.join()  # it is over when the answers are there
    return answer


def run(rounds: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    most = max(map(len, rounds))
    sockets = {one["socket"] for calls in rounds for one in calls}
    # Channels of their own each time: one that saw its driver die waits longer with each attempt.
    with ExitStack() as opened, ThreadPoolExecutor(most) as pool:
        channels = {
            path: opened.enter_context(grpc.insecure_channel(f"unix:{path}")) for path in sockets
        }
        return [
            list(pool.map(partial(call, channels, time.monotonic()), calls)) for calls in rounds
        ]


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
