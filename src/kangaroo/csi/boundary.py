"""The boundary of every gRPC call: errors become status codes, each call leaves one line in the
log.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc
import grpc.aio

from kangaroo.csi.context import Context, MethodHandler
from kangaroo.csi.errors_map import code_of
from kangaroo.errors import KangarooError

_log = logging.getLogger(__name__)

# Asked again and again by probes and kubelet; a line each would bury the others.
_FREQUENT = frozenset({"Probe", "NodeGetCapabilities", "NodeGetVolumeStats", "GetInfo"})


class Observer(Protocol):
    """Is told of every call, once when it starts and once when it ends. The response is None
    unless the code is OK.
    """

    def started(self, method: str) -> None: ...
    def ended(
        self, method: str, code: str, seconds: float, request: Any, response: Any
    ) -> None: ...


class Unobserved:
    """Nobody wants to know."""

    def started(self, method: str) -> None: ...
    def ended(
        self, method: str, code: str, seconds: float, request: Any, response: Any
    ) -> None: ...


class Boundary(grpc.aio.ServerInterceptor):
    """Wraps the asynchronous handlers of a server."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MethodHandler | None]],
        details: grpc.HandlerCallDetails,
    ) -> MethodHandler | None:
        handler = await continuation(details)
        if handler is None or not inspect.iscoroutinefunction(handler.unary_unary):
            return handler  # unknown, or not implemented
        method = details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(
            _bounded(method, handler.unary_unary, self._observer),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _bounded(
    method: str, handle: Callable[[Any, Context], Awaitable[Any]], observer: Observer
) -> Callable[[Any, Context], Awaitable[Any]]:
    def record(
        request: Any, code: str, started: float, error: str = "", response: Any = None
    ) -> None:
        _record(method, request, code, started, error)
        observer.ended(method, code, time.monotonic() - started, request, response)

    async def call(request: Any, context: Context) -> Any:
        observer.started(method)
        started = time.monotonic()
        try:
            response = await handle(request, context)
        except asyncio.CancelledError:
            record(request, "CANCELLED", started)
            raise
        except KangarooError as error:
            code, text = code_of(error), str(error)
            record(request, code.name, started, text)
        except Exception as error:
            _log.exception("unexpected error method=%s", method)
            code, text = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
            record(request, code.name, started, text)
        else:
            record(request, "OK", started, response=response)
            return response
        volume = getattr(request, "volume_id", "")
        return await context.abort(code, f"volume {volume}: {text}" if volume else text)

    return call


def _record(method: str, request: Any, code: str, started: float, error: str = "") -> None:
    target = getattr(request, "target_path", "") or getattr(request, "volume_path", "")
    _log.log(
        logging.DEBUG if method in _FREQUENT and code == "OK" else logging.INFO,
        "call method=%s volume=%s target=%s code=%s seconds=%.3f error=%s",
        method,
        getattr(request, "volume_id", "") or "-",
        target or "-",
        code,
        time.monotonic() - started,
        repr(error) if error else "-",
    )
