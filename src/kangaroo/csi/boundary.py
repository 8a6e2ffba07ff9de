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
from urllib.parse import quote

import grpc
import grpc.aio

from kangaroo.csi.context import Context, MethodHandler
from kangaroo.csi.errors_map import code_of
from kangaroo.csi.volume_id import LIMIT_BYTES
from kangaroo.errors import KangarooError, Unsupported

_log = logging.getLogger(__name__)

# Asked again and again by probes and kubelet; a line each would bury the others.
_FREQUENT = frozenset({"Probe", "NodeGetCapabilities", "NodeGetVolumeStats", "GetInfo"})
_TEXT_LIMIT = 4096
_PATH_LIMIT = 1024


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
        if handler is None or handler.unary_unary is None:
            return handler  # unknown
        method = details.method.rpartition("/")[2]
        handle: Any = handler.unary_unary
        # What a service does not have is a plain function of the generated class, which raises.
        if not inspect.iscoroutinefunction(handle):
            handle = _unimplemented
        return grpc.unary_unary_rpc_method_handler(
            _bounded(method, handle, self._observer),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


async def _unimplemented(_request: Any, _context: Context) -> Any:
    raise Unsupported("this driver does not have the method")


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
        volume = _word(getattr(request, "volume_id", ""), LIMIT_BYTES)
        return await context.abort(
            code, _bounded_text(f"volume {volume}: {text}" if volume else text)
        )

    return call


def _bounded_text(text: str) -> str:
    """What a status can carry: gRPC quotes it in a trailer, and drops a call whose trailers are
    longer than 8 KiB.
    """
    kept = text[:_TEXT_LIMIT]
    while len(quote(kept)) > _TEXT_LIMIT:
        kept = kept[: len(kept) * 3 // 4]
    return kept if kept == text else f"{kept}…"


def _word(value: str, limit: int) -> str:
    """A value of a request for a line, which it must neither end nor fill."""
    plain = value.isprintable() and " " not in value and len(value) <= limit
    return value if plain or not value else repr(value[:limit])


def _record(method: str, request: Any, code: str, started: float, error: str = "") -> None:
    target = getattr(request, "target_path", "") or getattr(request, "volume_path", "")
    _log.log(
        logging.DEBUG if method in _FREQUENT and code == "OK" else logging.INFO,
        "call method=%s volume=%s target=%s code=%s seconds=%.3f error=%s",
        method,
        _word(getattr(request, "volume_id", ""), LIMIT_BYTES) or "-",
        _word(target, _PATH_LIMIT) or "-",
        code,
        time.monotonic() - started,
        repr(error[:_TEXT_LIMIT]) if error else "-",
    )
