"""Calls whose caller gave up: they end all the same, and what they came to is told in one line."""

from __future__ import annotations

import asyncio
import logging

import pytest

from kangaroo.runtime.background import Background
from kangaroo.wire.aio import RpcError
from kangaroo.wire.status import Code


async def abandon(failure: Exception | None) -> None:
    """Give up a call that then ends with `failure`, or well."""
    background, go = Background(), asyncio.Event()

    async def call() -> None:
        await go.wait()
        if failure is not None:
            raise failure

    caller = asyncio.create_task(background.complete(call(), name="Stats"))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go.set()
    for _ in range(3):  # the call, and then the callbacks of its end
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("failure", "level", "trace"),
    [
        (RpcError(Code.NOT_FOUND, "no container c"), logging.WARNING, False),
        (RpcError(Code.UNAVAILABLE, "the guest is gone"), logging.WARNING, False),
        (ValueError("a defect"), logging.ERROR, True),
    ],
)
def test_what_an_abandoned_call_came_to_is_told(
    caplog: pytest.LogCaptureFixture, failure: Exception, level: int, trace: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    asyncio.run(abandon(failure))
    (told,) = [each for each in caplog.records if each.name == "kangaroo.runtime.background"]
    assert told.levelno == level
    assert "Stats" in told.getMessage()
    assert bool(told.exc_info) == trace


def test_one_that_ended_well_is_not_worth_a_word(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    asyncio.run(abandon(None))
    assert [each for each in caplog.records if each.name == "kangaroo.runtime.background"] == []
