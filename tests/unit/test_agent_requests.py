"""The shapes of requests, and that every method has a shape and a handler."""

from __future__ import annotations

from typing import Any

import pytest

from kangaroo.agent import requests, sysctls
from kangaroo.agent.control import handlers_of
from kangaroo.agent.service import Service
from kangaroo.errors import InvalidRequest
from kangaroo.wire.agent_protocol import Method, encode

STDIO = {"terminal": False, "stdin": None, "stdout": "0" * 32, "stderr": None}


def exec_request(**changes: Any) -> dict[str, Any]:
    return {"container_id": "c", "exec_id": "e", "process": {}, "stdio": STDIO, **changes}


def test_every_method_has_a_handler() -> None:
    assert set(handlers_of(Service)) == {method.value for method in Method}


def test_good_request_is_read() -> None:
    message = {"container_id": "c", "exec_id": "", "signal": 9, "all": False}
    assert requests.read(Method.SIGNAL_PROCESS, encode(message), 60_000_000_000) == message


@pytest.mark.parametrize(("timeout_ns", "timeout_s"), [(60_000_000_000, 48), (0, 120)])
def test_crun_runs_for_less_than_its_caller_waits(timeout_ns: int, timeout_s: float) -> None:
    message = exec_request()
    read = requests.read(Method.EXEC_PROCESS, encode(message), timeout_ns)
    assert read == {**message, "timeout_s": pytest.approx(timeout_s)}


@pytest.mark.parametrize(
    "changes",
    [
        {"container_id": ""},
        {"container_id": "../c"},
        {"container_id": ".c"},
        {"container_id": "c" * 129},
        {"container_id": 7},
        {"exec_id": ""},
        {"process": []},
        {"stdio": {**STDIO, "stdout": "0" * 31}},
        {"stdio": {**STDIO, "stdout": "G" * 32}},
        {"stdio": {"terminal": False}},
        {"colour": "red"},
    ],
)
def test_request_out_of_shape_is_refused_and_names_the_key(changes: dict[str, Any]) -> None:
    (key,) = changes
    with pytest.raises(InvalidRequest, match=key):
        requests.read(Method.EXEC_PROCESS, encode(exec_request(**changes)))


def test_missing_key_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="timeout_s"):
        requests.read(Method.SHUTDOWN, b"{}")


@pytest.mark.parametrize("payload", [b"", b"[]", b"\xff", b"{" * 10])
def test_payload_that_is_not_an_object_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidRequest):
        requests.read(Method.POWER_OFF, payload)


@pytest.mark.parametrize("name", ["net/../../../etc/passwd", "/etc/passwd", "", "net..x", "net/"])
def test_a_sysctl_is_one(name: str) -> None:
    with pytest.raises(InvalidRequest, match="sysctls"):
        requests.read(Method.SET_SYSCTLS, encode({"sysctls": {name: "1"}}))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.conf.eth0/100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("net/ipv4/conf/eth0.100/rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
    ],
)
def test_where_a_sysctl_is(name: str, path: str) -> None:
    assert sysctls.path(name) == path
