"""Tasks that outlive the call that started them, owned by the shim."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from kangaroo.wire.aio import RpcError

_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class Background:
    """Keeps its tasks referenced, logs those that fail, and cancels what is left at the end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start a task whose failure is logged."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def complete(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> T:
        """Run to the end even when the caller is cancelled: a change to a sandbox is never cut in
        half.
        """
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)
            raise
        finally:
            if task.done():
                self._tasks.discard(task)
            else:
                task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Cancel what still runs and wait for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        _log_failure(task)


def _log_failure(task: asyncio.Task[Any]) -> None:
    if task.cancelled() or (error := task.exception()) is None:
        return
    if isinstance(error, RpcError):  # the answer to a call that nobody waits for any more
        _LOG.warning("call failed method=%s error=%s", task.get_name(), error)
    else:
        _LOG.error("background task failed task=%s", task.get_name(), exc_info=error)
