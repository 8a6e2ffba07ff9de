"""The shim's own service (kangaroo.wire.node_protocol), for the CSI driver."""

from __future__ import annotations

from typing import Any

from kangaroo.errors import InvalidRequest, KangarooError
from kangaroo.runtime.errors_map import to_rpc
from kangaroo.runtime.pod import Pod
from kangaroo.wire.agent_protocol import decode, encode
from kangaroo.wire.aio import Handler
from kangaroo.wire.node_protocol import SERVICE, VOLUME_STATS


class VolumeService:
    """Answers for the volumes of one pod's guest."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod

    def handlers(self) -> dict[str, dict[str, Handler]]:
        """For `kangaroo.wire.aio.Server`."""
        return {SERVICE: {VOLUME_STATS: self._volume_stats}}

    async def _volume_stats(self, payload: bytes) -> bytes:
        try:
            path, timeout_s = _checked(decode(payload))
            return encode(await self._pod.volume_stats(path, timeout_s))
        except (KangarooError, OSError) as error:
            raise to_rpc(error) from error


def _checked(request: dict[str, Any]) -> tuple[str, float]:
    path, timeout_s = request.get("path"), request.get("timeout_s")
    if not isinstance(path, str):
        raise InvalidRequest("path", f"{path!r} is not a path")
    if not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise InvalidRequest("timeout_s", f"{timeout_s!r} is not a positive number")
    return path, timeout_s
