"""Registration with kubelet's plugin watcher, so that no registrar sidecar is needed.

Kubelet finds the socket in its registry directory, asks GetInfo, registers the driver and tells how
it went. A registration that failed counts as made all the same, and kubelet tries again only when
the socket appears anew (pkg/kubelet/pluginmanager: operationexecutor, reconciler). It does fail on
a node that joins: the driver may be there before the Node object is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from kangaroo.csi.config import Config
from kangaroo.csi.context import Context
from kangaroo.wire.gen import registration_pb2 as registration
from kangaroo.wire.gen import registration_pb2_grpc

_log = logging.getLogger(__name__)

_TYPE = "CSIPlugin"
_SUPPORTED_VERSIONS = ("1.0.0",)
_RETRY_S = 2.0
_LONGEST_RETRY_S = 60.0


class Registration(registration_pb2_grpc.RegistrationServicer):
    def __init__(self, config: Config) -> None:
        self._info = registration.PluginInfo(
            type=_TYPE,
            name=config.driver_name,
            endpoint=str(config.socket_path),
            supported_versions=_SUPPORTED_VERSIONS,
        )
        self._socket = config.registration_path
        self._retry_s = _RETRY_S

    async def GetInfo(
        self, request: registration.InfoRequest, context: Context
    ) -> registration.PluginInfo:
        return self._info

    async def NotifyRegistrationStatus(
        self, request: registration.RegistrationStatus, context: Context
    ) -> registration.RegistrationStatusResponse:
        if request.plugin_registered:
            _log.info("registered driver=%s", self._info.name)
            self._retry_s = _RETRY_S
        else:
            _log.error("not registered driver=%s error=%s", self._info.name, request.error)
            asyncio.get_running_loop().call_later(self._retry_s, self.offer_again)
            self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)
        return registration.RegistrationStatusResponse()

    def offer_again(self) -> None:
        """Let the socket appear anew; it keeps listening all the while."""
        hidden = self._socket.with_name(f".{self._socket.name}")  # kubelet skips such names
        with contextlib.suppress(FileNotFoundError):  # the driver is stopping
            self._socket.rename(hidden)
            hidden.rename(self._socket)
