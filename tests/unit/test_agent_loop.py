"""Futures of the agent's loop."""

from __future__ import annotations

from typing import NoReturn

from kangaroo.agent.loop import Future


def test_a_callback_that_fails_keeps_no_other_from_being_called() -> None:
    def fail() -> NoReturn:
        raise ValueError

    called: list[int] = []
    future = Future()
    future.then(fail)
    future.then(lambda: called.append(future.result()))
    future.set(7)
    assert called == [7]
