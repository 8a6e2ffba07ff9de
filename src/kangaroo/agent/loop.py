"""The loop: descriptors, timers and coroutines on one epoll instance.

asyncio would do, but importing it takes longer than all the rest of the agent's start. Coroutines
here await `Future`s and nothing else.
"""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from kangaroo.agent import log

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
PRIORITY = select.EPOLLPRI
HANG_UP = select.EPOLLRDHUP


class Future:
    """A value or an error to come. Set once; later settings are ignored. A callback that fails is
    logged, and keeps none of the others from being called.
    """

    __slots__ = ("_callbacks", "_error", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], None]] = []

    def set(self, value: Any = None) -> None:
        self._settle(value, None)

    def fail(self, error: BaseException) -> None:
        self._settle(None, error)

    def result(self) -> Any:
        """The value; raises the error. Only when done."""
        if self._error is not None:
            raise self._error
        return self._value

    def then(self, callback: Callable[[], None]) -> None:
        """Call `callback` when done, at once if it already is."""
        if self.done:
            callback()
        else:
            self._callbacks.append(callback)

    def __await__(self) -> Generator[Future, None, Any]:
        if not self.done:
            yield self
        return self.result()

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if self.done:
            return
        self.done, self._value, self._error = True, value, error
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            _guarded(callback)


class Timer:
    """A call that is due; `cancel` takes it back."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Loop:
    """Runs callbacks of descriptors and timers until stopped."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watchers: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = 0
        self._running = False

    def watch(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever one of `events`, an error or a hang-up is there. Replaces an
        earlier watch.
        """
        if fd in self._watchers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watchers[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Stop watching. Before the descriptor is closed. Idempotent."""
        if self._watchers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        self._sequence += 1
        heapq.heappush(self._timers, (time.monotonic() + delay_s, self._sequence, timer))
        return timer

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> Future:
        """Run a coroutine; the future is its outcome."""
        outcome = Future()
        _step(coroutine, outcome)
        return outcome

    async def within(self, future: Future, timeout_s: float) -> bool:
        """Wait until `future` is done, at most `timeout_s`; whether it is."""
        if future.done:
            return True
        either = Future()
        future.then(either.set)
        timer = self.call_later(timeout_s, either.set)
        await either
        timer.cancel()
        return future.done

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        """Until `stop`. An error that escapes a callback is logged: PID 1 does not die of one."""
        self._running = True
        while self._running:
            for fd, _ in self._epoll.poll(self._wait_s()):
                callback = self._watchers.get(fd)
                if callback is not None:
                    _guarded(callback)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                _guarded(heapq.heappop(self._timers)[2].fire)

    def _wait_s(self) -> float:
        if not self._timers:
            return -1
        return max(0.0, self._timers[0][0] - time.monotonic())


def _guarded(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception as error:
        log.exception("a callback failed", error)


def _step(coroutine: Coroutine[Any, Any, Any], outcome: Future) -> None:
    """Run the coroutine up to the next future that is not done."""
    try:
        awaited = coroutine.send(None)
    except StopIteration as end:
        outcome.set(end.value)
    except Exception as error:
        outcome.fail(error)
    else:
        awaited.then(lambda: _step(coroutine, outcome))
