"""Copies under way: each goes on when the call that began it has ended, and is not begun twice."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

from kangaroo.errors import FailedPrecondition, KangarooError

_log = logging.getLogger(__name__)

# On one share: more would only divide its bandwidth. The others wait.
_AT_ONCE = 4
# Of one source: it may take days, and copies of others have to get their turn.
_AT_ONCE_OF_SOURCE = 2


@dataclass(frozen=True, slots=True)
class _Copy:
    source: str
    task: asyncio.Task[None]


class Copies:
    """By the id of what is made. Every copy ends with the event loop that it was begun on."""

    def __init__(self) -> None:
        self._copies: dict[str, _Copy] = {}
        # As long as a copy has or awaits one.
        self._slots: WeakValueDictionary[tuple[str, int], asyncio.Semaphore] = WeakValueDictionary()

    async def join(
        self,
        made: str,
        run: Callable[[], Awaitable[None]],
        *,
        share: str,
        source: str,
        patience_s: float,
    ) -> bool:
        """Have the copy `made` of `source`, and wait; whether it is done by then.

        One that is under way is waited for, and no other begun. A failure is raised to who waits,
        or else to the next who asks, once: the one after that begins again.
        """
        if made not in self._copies:
            task = asyncio.create_task(self._run(made, share, source, run), name=f"copy {made}")
            self._copies[made] = _Copy(source, task)
            task.add_done_callback(partial(self._ended, made))
        copy = self._copies[made]
        await asyncio.wait({copy.task}, timeout=patience_s)
        if not copy.task.done():
            return False
        self._forget(made, copy.task)
        if copy.task.cancelled():
            raise FailedPrecondition(f"{made} was deleted while it was made")
        copy.task.result()
        return True

    async def stop(self, made: str) -> None:
        """End a copy, if it is under way. What it leaves is for who asked to clear up."""
        copy = self._copies.pop(made, None)
        if copy is not None:
            copy.task.cancel()
            await asyncio.wait({copy.task})

    def require_unused(self, source: str) -> None:
        """Raises FailedPrecondition while something is copied from `source`."""
        for made, copy in self._copies.items():
            if copy.source == source and not copy.task.done():
                raise FailedPrecondition(
                    f"{made} is being copied from it", hint="delete that first, or wait for it"
                )

    def _ended(self, made: str, task: asyncio.Task[None]) -> None:
        """Only a failure is kept, for who asks next."""
        if task.cancelled() or task.exception() is None:
            self._forget(made, task)

    def _forget(self, made: str, task: asyncio.Task[None]) -> None:
        copy = self._copies.get(made)
        if copy is not None and copy.task is task:
            del self._copies[made]

    def _slot(self, of: str, at_once: int) -> asyncio.Semaphore:
        return self._slots.setdefault((of, at_once), asyncio.Semaphore(at_once))

    async def _run(
        self, made: str, share: str, source: str, run: Callable[[], Awaitable[None]]
    ) -> None:
        async with self._slot(source, _AT_ONCE_OF_SOURCE), self._slot(share, _AT_ONCE):
            _log.info("copy begins made=%s", made)
            try:
                await run()
            except asyncio.CancelledError:
                _log.info("copy was stopped made=%s", made)
                raise
            except (KangarooError, OSError) as error:
                _log.warning("copy failed made=%s error=%r", made, str(error))
                raise
            _log.info("copy is whole made=%s", made)
