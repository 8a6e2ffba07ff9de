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
        """None: no controller service, volumes can be reached from every node."""
        return csi.GetPluginCapabilitiesResponse()

    async def Probe(self, request: csi.ProbeRequest, context: Context) -> csi.ProbeResponse:
        return csi.ProbeResponse(ready=wrappers_pb2.BoolValue(value=True))
