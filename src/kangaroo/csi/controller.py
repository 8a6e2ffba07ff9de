"""The Controller service, which provisions nothing yet and says so."""

from __future__ import annotations

from kangaroo.csi.context import Context
from kangaroo.wire.gen import csi_pb2 as csi
from kangaroo.wire.gen import csi_pb2_grpc


class Controller(csi_pb2_grpc.ControllerServicer):
    async def ControllerGetCapabilities(
        self, request: csi.ControllerGetCapabilitiesRequest, context: Context
    ) -> csi.ControllerGetCapabilitiesResponse:
        return csi.ControllerGetCapabilitiesResponse()
