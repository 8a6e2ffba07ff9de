"""What both ends of the agent protocol know (docs/agent-protocol.md). Standard library only."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

from kangaroo.errors import InvalidRequest
from kangaroo.wire.envelope import StatusDetail

SERVICE = "kangaroo.agent.v1.Agent"
PROTOCOL_VERSION = 1
ERROR_DETAIL_TYPE = "kangaroo.agent.v1.Error"

TOKEN_HEX_DIGITS = 32

VIRTIOFS_TAG = "kangaroo"
SHARED_DIRECTORY = "/run/kangaroo/shared"
VOLUMES_NAME = "volumes"  # within it
SHARED_VOLUMES = f"{SHARED_DIRECTORY}/{VOLUMES_NAME}"
NAS_DIRECTORY = "/run/kangaroo/nas"
PORT_KEY = "kangaroo.port"
DEBUG_KEY = "kangaroo.debug"


class Method(StrEnum):
    """Every method of version 1."""

    HELLO = "Hello"
    CONFIGURE_NETWORK = "ConfigureNetwork"
    SET_SYSCTLS = "SetSysctls"
    READ_CLOCK = "ReadClock"
    ADJUST_CLOCK = "AdjustClock"
    MOUNT_NAS = "MountNas"
    CREATE_CONTAINER = "CreateContainer"
    START_CONTAINER = "StartContainer"
    EXEC_PROCESS = "ExecProcess"
    SIGNAL_PROCESS = "SignalProcess"
    WAIT_PROCESS = "WaitProcess"
    DELETE_PROCESS = "DeleteProcess"
    RESIZE_PTY = "ResizePty"
    UPDATE_CONTAINER = "UpdateContainer"
    LIST_PIDS = "ListPids"
    CONTAINER_STATS = "ContainerStats"
    VOLUME_STATS = "VolumeStats"
    FORWARD_PORT = "ForwardPort"
    NEXT_EVENT = "NextEvent"
    SHUTDOWN = "Shutdown"
    POWER_OFF = "PowerOff"


def encode(message: dict[str, Any]) -> bytes:
    """One JSON object as a payload."""
    return json.dumps(message, separators=(",", ":")).encode()


def decode(payload: bytes) -> dict[str, Any]:
    """Read a payload. Raises `InvalidRequest` when it is not one JSON object in UTF-8."""
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("payload", f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise InvalidRequest("payload", "not a JSON object")
    return message


def error_detail(kind: str, errno: int | None = None, **facts: Any) -> StatusDetail:
    """The detail that goes with a failed call."""
    return StatusDetail(ERROR_DETAIL_TYPE, encode({"kind": kind, "errno": errno, **facts}))


def read_error_detail(details: tuple[StatusDetail, ...]) -> dict[str, Any] | None:
    """Return the facts of the first agent error among `details`, None when there is none or it is
    out of shape.
    """
    for detail in details:
        if detail.type_url == ERROR_DETAIL_TYPE:
            try:
                return decode(detail.value)
            except InvalidRequest:
                return None
    return None
