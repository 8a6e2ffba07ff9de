"""Volumes that are mounted in a guest, asked for at the shim of their sandbox."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kangaroo.csi.condition import Unusable
from kangaroo.errors import InvalidRequest, NotFound, Unavailable
from kangaroo.wire.agent_protocol import decode, encode
from kangaroo.wire.aio import Client, RpcError
from kangaroo.wire.node_protocol import SERVICE, SOCKET_NAME, STATE_NAME, VOLUME_STATS
from kangaroo.wire.status import Code

_log = logging.getLogger(__name__)

# Above the guest's own deadline, so that its answer says what the matter is.
_ANSWER_S = 2.0
# What CSI's numbers hold. Some servers say as much as NFS's hold, for "no limit": CephFS of free
# inodes.
MOST = 2**63 - 1
# What statfs in the guest came to: an error of its own (UNKNOWN carries any errno), or no end.
_UNUSABLE = (Code.UNKNOWN, Code.DEADLINE_EXCEEDED)
_FIGURES = ("total_bytes", "free_bytes", "available_bytes", "total_inodes", "free_inodes")


async def statistics(sandboxes: Path, target: str, timeout_s: float) -> dict[str, int]:
    """The volume's `figures`, as the guest sees them.

    Raises Unusable when the guest cannot get them from its server, NotFound when the guest does not
    have the volume, Unavailable when no sandbox has it or the guest cannot be asked.
    """
    socket = _socket_of(sandboxes, target)
    if socket is None:
        raise Unavailable(f"{target} stands for a volume in a guest, but no sandbox has it")
    try:
        said = await answer(socket, target, timeout_s)
    except RpcError as error:
        if error.code == Code.NOT_FOUND:
            raise NotFound(error.message) from error
        kind = Unusable if error.code in _UNUSABLE else Unavailable
        raise kind(f"the guest that has the volume of {target}: {error.message}") from error
    except (OSError, InvalidRequest) as error:
        raise Unavailable(f"the shim that has the volume of {target}: {error}") from error
    return figures(said)


def figures(answer: Mapping[str, Any]) -> dict[str, int]:
    """Total, free for root and available bytes, total and free inodes by name in a guest's answer,
    as far as CSI's numbers hold them. Raises Unavailable when one is absent, or no such number.
    """
    return {name: _figure(answer, name) for name in _FIGURES}


async def counters(socket: Path, target: str, timeout_s: float) -> str:
    """The guest's mountstats of the volume that stands on `target`, from the shim at `socket`.

    Raises RpcError, OSError, InvalidRequest, Unavailable.
    """
    text = (await answer(socket, target, timeout_s)).get("mountstats")
    if not isinstance(text, str):
        raise Unavailable("the guest's answer is malformed: it has no mountstats")
    return text


async def answer(socket: Path, target: str, timeout_s: float) -> dict[str, Any]:
    """All that the guest says of the volume, unchecked. Raises RpcError, of which the guest's own
    deadline is one, OSError (TimeoutError when there is no answer) and InvalidRequest.
    """
    request = encode({"path": target, "timeout_s": timeout_s})
    wait_s = timeout_s + _ANSWER_S
    try:
        async with asyncio.timeout(wait_s):
            client = await Client.connect_unix(socket)
            try:
                call = client.call(SERVICE, VOLUME_STATS, request, timeout_s=2 * wait_s)
                return decode(await call)
            finally:
                await client.aclose()
    except TimeoutError:
        raise TimeoutError(f"no answer within {wait_s:g} s") from None


def _socket_of(sandboxes: Path, target: str) -> Path | None:
    """The socket of the sandbox whose state says that `target` is its placeholder."""
    for state in sandboxes.glob(f"*/{STATE_NAME}"):
        try:
            placeholders = json.loads(state.read_bytes())["placeholders"]
            if any(placeholder["path"] == target for placeholder in placeholders):
                return state.with_name(SOCKET_NAME)
        except FileNotFoundError:  # the sandbox has just ended
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("state not readable path=%s error=%r", state, error)
    return None


def _figure(answer: Mapping[str, Any], name: str) -> int:
    value = answer.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Unavailable(f"the guest's answer is malformed: {name} is {str(value)[:100]!r}")
    return min(value, MOST)
