"""The guest's clock follows the node's: the real loop and agent client, a guest in memory."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.protocol.fake_guest import FakeAgent

from kangaroo.runtime import guest_clock
from kangaroo.runtime.agent_client import AgentClient
from kangaroo.wire.agent_protocol import Method
from kangaroo.wire.envelope import Status
from kangaroo.wire.status import Code

HOUR_NS = 3600 * 10**9
# What a reading may be wrong by on a busy machine.
NEAR_NS = 100_000_000
INTERVAL_S = 1
DEADLINE_S = 30


@contextlib.asynccontextmanager
async def kept(behind_ns: int, *failures: tuple[Method, Code]) -> AsyncIterator[FakeAgent]:
    """A guest whose clock is kept."""
    near, far = socket.socketpair()
    guest = FakeAgent(far)
    guest.behind_ns = behind_ns
    guest.failures = {method: Status(code, "refused") for method, code in failures}
    serving = asyncio.create_task(guest.serve())
    agent = await AgentClient.connect(near, timeout_s=5)
    keeping = asyncio.create_task(_kept(agent))
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield guest
            guest.die()
            await keeping  # it ends with the guest
    finally:
        keeping.cancel()
        await agent.aclose()
        await asyncio.gather(serving, keeping, return_exceptions=True)
        far.close()


async def _kept(agent: AgentClient) -> None:
    assert not await guest_clock.keep(agent, silence_limit_s=DEADLINE_S, interval_s=INTERVAL_S)


async def until(
    guest: FakeAgent, count: int, method: Method = Method.ADJUST_CLOCK
) -> list[dict[str, Any]]:
    """The guest was asked so often to adjust its clock, or for `method`: how."""
    while True:
        found = [message for each, message in guest.calls if each == method]
        if len(found) >= count:
            return found
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("behind_ns", [-HOUR_NS, 40_000_000])
def test_clock_is_set_at_once(behind_ns: int) -> None:
    async def scenario() -> None:
        async with kept(behind_ns) as guest:
            first = (await until(guest, 1))[0]
            assert abs(first["offset_ns"] - behind_ns) < NEAR_NS
            assert first["interval_s"] == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(("drift_ns", "interval_s"), [(-40_000_000, INTERVAL_S), (HOUR_NS, 0)])
def test_clock_that_drifts_is_slewed_and_one_that_is_far_off_set(
    drift_ns: int, interval_s: int
) -> None:
    async def scenario() -> None:
        async with kept(0) as guest:
            await until(guest, 1)
            guest.behind_ns = drift_ns
            second = (await until(guest, 2))[1]
            assert abs(second["offset_ns"] - drift_ns) < NEAR_NS
            assert second["interval_s"] == interval_s

    asyncio.run(scenario())


def test_a_clock_that_is_told_late_stays_as_it_is() -> None:
    """A pod at its processor limit is stopped for most of each period, while it answers, too."""

    async def scenario() -> None:
        async with kept(0) as guest:
            await until(guest, 1)
            guest.clock_held_up_s = 1.2
            guest.calls.clear()
            (told,) = await until(guest, 1)
            assert told == {"offset_ns": 0, "interval_s": INTERVAL_S}

    asyncio.run(scenario())


def test_a_guest_that_refuses_is_asked_again() -> None:
    async def scenario() -> None:
        async with kept(HOUR_NS, (Method.ADJUST_CLOCK, Code.INTERNAL)) as guest:
            await until(guest, 1)
            guest.failures.clear()
            await until(guest, 2)
            assert abs(guest.behind_ns) < NEAR_NS

    asyncio.run(scenario())


@pytest.mark.parametrize(("held_up_s", "silent"), [(DEADLINE_S, True), (0, False)])
def test_a_guest_that_answers_no_more_is_found(held_up_s: float, silent: bool) -> None:
    """And one that was away for a while is not taken for it."""

    async def scenario() -> None:
        near, far = socket.socketpair()
        guest = FakeAgent(far)
        serving = asyncio.create_task(guest.serve())
        agent = await AgentClient.connect(near, timeout_s=0.3)
        guest.clock_held_up_s = DEADLINE_S
        keeping = asyncio.create_task(guest_clock.keep(agent, silence_limit_s=0.5, interval_s=0))
        try:
            await asyncio.sleep(0.4)  # it has not answered once
            guest.clock_held_up_s = held_up_s
            if silent:
                assert await asyncio.wait_for(keeping, DEADLINE_S)
            else:
                await until(guest, 20, Method.READ_CLOCK)
                guest.die()
                assert not await asyncio.wait_for(keeping, DEADLINE_S)
        finally:
            await agent.aclose()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            far.close()

    asyncio.run(scenario())
