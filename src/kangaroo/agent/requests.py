"""The shapes of the agent protocol's requests (docs/agent-protocol.md). Unknown and missing keys
are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kangaroo.agent.sysctls import path
from kangaroo.errors import InvalidRequest
from kangaroo.wire.agent_protocol import TOKEN_HEX_DIGITS, Method, decode

Check = Callable[[Any], bool]

_ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
_HEX_DIGITS = frozenset("0123456789abcdef")


def _text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _identifier(value: Any) -> bool:
    return (
        isinstance(value, str)
        and 0 < len(value) <= 128
        and value[0] not in "_.-"
        and _ID_CHARACTERS.issuperset(value)
    )


def _exec_id(value: Any) -> bool:
    return value == "" or _identifier(value)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _signed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _optional_integer(value: Any) -> bool:
    return value is None or _integer(value)


def _port(value: Any) -> bool:
    return _integer(value) and 0 < value < 65536


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 86400


def _boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _sysctls(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(map(_text, value.values()))
        and not any({"", ".", ".."} & set(path(name).split("/")) for name in value)
    )


def _optional_text(value: Any) -> bool:
    return value is None or _text(value)


def _token(value: Any) -> bool:
    return value is None or (
        isinstance(value, str) and len(value) == TOKEN_HEX_DIGITS and _HEX_DIGITS.issuperset(value)
    )


def _new_token(value: Any) -> bool:
    return value is not None and _token(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _object(**keys: Check) -> Check:
    def check(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and value.keys() == keys.keys()
            and all(keys[key](value[key]) for key in keys)
        )

    return check


_ADDRESS = _object(address=_text, peer=_optional_text, scope=_optional_text)
_INTERFACE = _object(name=_text, mac=_text, mtu=_integer, addresses=_list_of(_ADDRESS))
_ROUTE = _object(
    destination=_text,
    gateway=_optional_text,
    device=_text,
    scope=_optional_text,
    onlink=_boolean,
    protocol=_integer,
    mtu=_optional_integer,
    metric=_optional_integer,
    source=_optional_text,
)
_NEIGHBOUR = _object(address=_text, mac=_text, device=_text)
_STDIO = _object(terminal=_boolean, stdin=_token, stdout=_token, stderr=_token)
_VOLUME = _object(destination=_text, volume_id=_identifier, subpath=_text, create=_boolean)
_CONTAINER = {"container_id": _identifier}
_PROCESS = {"container_id": _identifier, "exec_id": _exec_id}

_SHAPES: Mapping[str, Mapping[str, Check]] = {
    Method.HELLO: {
        "protocol": _integer,
        "sandbox_id": _identifier,
        "hostname": _text,
        "time_ns": _integer,
    },
    Method.CONFIGURE_NETWORK: {
        "interfaces": _list_of(_INTERFACE),
        "routes": _list_of(_ROUTE),
        "neighbours": _list_of(_NEIGHBOUR),
    },
    Method.SET_SYSCTLS: {"sysctls": _sysctls},
    Method.READ_CLOCK: {},
    Method.ADJUST_CLOCK: {"offset_ns": _signed, "interval_s": _integer},
    Method.MOUNT_NAS: {
        "volume_id": _identifier,
        "source": _text,
        "fstype": lambda value: value in ("nfs", "nfs4"),
        "flags": _list_of(_text),
        "options": _text,
        "read_ahead_kib": _optional_integer,
        "timeout_s": _number,
    },
    Method.CREATE_CONTAINER: {
        **_CONTAINER,
        "spec": _mapping,
        "stdio": _STDIO,
        "volumes": _list_of(_VOLUME),
    },
    Method.START_CONTAINER: _CONTAINER,
    Method.EXEC_PROCESS: {
        "container_id": _identifier,
        "exec_id": _identifier,
        "process": _mapping,
        "stdio": _STDIO,
    },
    Method.SIGNAL_PROCESS: {**_PROCESS, "signal": _integer, "all": _boolean},
    Method.WAIT_PROCESS: _PROCESS,
    Method.DELETE_PROCESS: _PROCESS,
    Method.RESIZE_PTY: {**_PROCESS, "rows": _integer, "columns": _integer},
    Method.UPDATE_CONTAINER: {**_CONTAINER, "resources": _mapping},
    Method.LIST_PIDS: _CONTAINER,
    Method.CONTAINER_STATS: _CONTAINER,
    Method.VOLUME_STATS: {"volume_id": _identifier, "timeout_s": _number},
    Method.FORWARD_PORT: {"port": _port, "stdin": _new_token, "stdout": _new_token},
    Method.NEXT_EVENT: {},
    Method.SHUTDOWN: {"timeout_s": _number},
    Method.POWER_OFF: {},
}


# These run crun, for a share of the time that their caller waits. In the rest a failure is cleaned
# up, so that nothing comes to be of which nobody hears.
_RUN_CRUN = frozenset(
    {
        Method.CREATE_CONTAINER,
        Method.START_CONTAINER,
        Method.EXEC_PROCESS,
        Method.DELETE_PROCESS,
        Method.UPDATE_CONTAINER,
    }
)
_SHARE = 0.8
_CRUN_TIMEOUT_S = 120.0


def read(method: str, payload: bytes, timeout_ns: int = 0) -> dict[str, Any]:
    """The arguments of a call of a known `method`, whose caller waits `timeout_ns` for the answer
    (0: without end): the request's keys, and `timeout_s` for a method that runs crun. Raises
    InvalidRequest naming the key that is wrong.
    """
    shape = _SHAPES[method]
    message = decode(payload)
    for key in message.keys() - shape.keys():
        raise InvalidRequest(key, f"{method} has no such key")
    for key, check in shape.items():
        if key not in message:
            raise InvalidRequest(key, f"{method} needs it")
        if not check(message[key]):
            raise InvalidRequest(key, f"{str(message[key])[:200]!r} is not acceptable to {method}")
    if method in _RUN_CRUN:
        message["timeout_s"] = _SHARE * timeout_ns / 1e9 if timeout_ns > 0 else _CRUN_TIMEOUT_S
    return message
