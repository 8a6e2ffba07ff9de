"""The Identity service: who this is, and what it does."""

from __future__ import annotations

from google.protobuf import wrappers_pb2

from kangaroo import __version__
from kangaroo.csi.context import Context
from kangaroo.wire.gen import csi_pb2 as csi
from kangaroo.wire.gen import csi_pb2_grpc


class Identity(csi_pb2_grpc.IdentityServicer):
    def __init__(self, driver_name: str) -> None:
        self._driver_name = driver_name

    async def GetPluginInfo(
        self, request: csi.GetPluginInfoRequest, context: Context
    ) -> csi.GetPluginInfoResponse:
        return csi.GetPluginInfoResponse(name=self._driver_name, vendor_version=__version__)

    async def GetPluginCapabilities(
        self, request: csi.GetPluginCapabilitiesRequest, context: Context
    ) -> csi.GetPluginCapabilitiesResponse:
        """Volumes are made, and grow while they are used; every node reaches them."""
        kind = csi.PluginCapability
        return csi.GetPluginCapabilitiesResponse(
            capabilities=[
                kind(service=kind.Service(type=kind.Service.CONTROLLER_SERVICE)),
                kind(volume_expansion=kind.VolumeExpansion(type=kind.VolumeExpansion.ONLINE)),
            ]
        )

    async def Probe(self, request: csi.ProbeRequest, context: Context) -> csi.ProbeResponse:
        return csi.ProbeResponse(ready=wrappers_pb2.BoolValue(value=True))
