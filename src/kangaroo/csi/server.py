"""The sockets: the CSI services for kubelet, and the registration that leads it there."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc.aio

from kangaroo.csi.boundary import Boundary, Observer, Unobserved
from kangaroo.csi.config import Config
from kangaroo.csi.controller import Controller
from kangaroo.csi.identity import Identity
from kangaroo.csi.node import Node
from kangaroo.csi.registration import Registration
from kangaroo.wire.gen import csi_pb2_grpc, registration_pb2_grpc

_log = logging.getLogger(__name__)

# A call waits until its turn comes or its caller gives up. gRPC's own limit is 30 s, after which it
# answers CANCELLED; on a busy node the last of a burst wait longer.
_OPTIONS = (("grpc.server_max_unrequested_time_in_server", 3600),)
# Calls under way at the end may still clean up behind themselves.
_STOP_GRACE_S = 5.0
_DIRECTORY_MODE = 0o750
_SOCKET_MODE = 0o600


@contextlib.asynccontextmanager
async def serving(config: Config) -> AsyncIterator[None]:
    """The driver's services while the block runs. The sockets go with it, registration first.

    Raises FailedPrecondition when the metrics' address cannot be had.
    """

    def add_csi(server: grpc.aio.Server) -> None:
        csi_pb2_grpc.add_IdentityServicer_to_server(  # type: ignore[no-untyped-call]
            Identity(config.driver_name), server
        )
        csi_pb2_grpc.add_ControllerServicer_to_server(  # type: ignore[no-untyped-call]
            Controller(config), server
        )
        csi_pb2_grpc.add_NodeServicer_to_server(  # type: ignore[no-untyped-call]
            Node(config), server
        )

    async with contextlib.AsyncExitStack() as stack:
        observer: Observer = Unobserved()
        if config.metrics_address:
            from kangaroo.csi import metrics  # noqa: PLC0415 - four MiB, only where wanted

            observer = await stack.enter_async_context(metrics.serving(config))
        await stack.enter_async_context(_socket(config.socket_path, add_csi, observer))
        if config.register:
            await stack.enter_async_context(registering(config, observer))
        yield


@contextlib.asynccontextmanager
async def registering(config: Config, observer: Observer | None = None) -> AsyncIterator[None]:
    """The socket that leads kubelet to the driver's, while the block runs."""

    def add(server: grpc.aio.Server) -> None:
        registration_pb2_grpc.add_RegistrationServicer_to_server(  # type: ignore[no-untyped-call]
            Registration(config), server
        )

    async with _socket(config.registration_path, add, observer or Unobserved()):
        yield


@contextlib.asynccontextmanager
async def _socket(
    path: Path, add: Callable[[grpc.aio.Server], None], observer: Observer
) -> AsyncIterator[None]:
    path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of a driver that was killed
    server = grpc.aio.server(interceptors=(Boundary(observer),), options=_OPTIONS)
    add(server)
    umask = os.umask(0o777 & ~_SOCKET_MODE)
    try:
        server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(umask)
    await server.start()
    _log.info("listening socket=%s", path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        await server.stop(_STOP_GRACE_S)
