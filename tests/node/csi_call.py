"""Calls of the CSI driver, made on the node itself over its socket. Reads JSON, writes JSON.

Runs on the node with the driver's own Python packages, not in the test's process. Standard input
is a list of rounds, a round a list of {"method", "request", "timeout_s"}. The calls of a round are
made at once, each in its own thread; rounds follow each other. Standard output is the answers in
the same shape: {"code", "message", "seconds", "response"}.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
from google.protobuf import json_format

from kangaroo.wire.gen import csi_pb2, csi_pb2_grpc

SOCKET = "unix:/var/lib/kubelet/plugins/nasplugin.csi.alibabacloud.com/csi.sock"


def call(channel: grpc.Channel, one: dict[str, Any]) -> dict[str, Any]:
    method: str = one["method"]
    node = method.startswith("Node")
    service = csi_pb2_grpc.NodeStub if node else csi_pb2_grpc.ControllerStub
    stub = service(channel)
    request = getattr(csi_pb2, f"{method}Request")()
    json_format.ParseDict(one["request"], request)
    started = time.monotonic()
    answer: dict[str, Any]
    try:
        response = getattr(stub, method)(request, timeout=one["timeout_s"], wait_for_ready=True)
        answer = {"code": "OK", "message": "", "response": json_format.MessageToDict(response)}
    except grpc.RpcError as error:
        answer = {"code": error.code().name, "message": error.details(), "response": {}}
    return answer | {"seconds": time.monotonic() - started}


def main() -> None:
    rounds = json.load(sys.stdin)
    most = max(map(len, rounds))
    with grpc.insecure_channel(SOCKET) as channel, ThreadPoolExecutor(most) as pool:
        answers = [list(pool.map(partial(call, channel), calls)) for calls in rounds]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
