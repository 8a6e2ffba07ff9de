"""Registration with kubelet's plugin watcher, so that no registrar sidecar is needed.

Kubelet finds the socket in its registry directory, asks GetInfo, registers the driver and tells how
it went. When it failed, kubelet itself tries again.
"""

from __future__ import annotations

import logging

from kangaroo.csi.config import Config
from kangaroo.csi.context import Context
from kangaroo.wire.gen import registration_pb2 as registration
from kangaroo.wire.gen import registration_pb2_grpc

_log = logging.getLogger(__name__)

_TYPE = "CSIPlugin"
_SUPPORTED_VERSIONS = ("1.0.0",)


class Registration(registration_pb2_grpc.RegistrationServicer):
    def __init__(self, config: Config) -> None:
        self._info = registration.PluginInfo(
            type=_TYPE,
            name=config.driver_name,
            endpoint=str(config.socket_path),
            supported_versions=_SUPPORTED_VERSIONS,
        )

    async def GetInfo(
        self, request: registration.InfoRequest, context: Context
    ) -> registration.PluginInfo:
        return self._info

    async def NotifyRegistrationStatus(
        self, request: registration.RegistrationStatus, context: Context
    ) -> registration.RegistrationStatusResponse:
        if request.plugin_registered:
            _log.info("registered driver=%s", self._info.name)
        else:
            _log.error("not registered driver=%s error=%s", self._info.name, request.error)
        return registration.RegistrationStatusResponse()
