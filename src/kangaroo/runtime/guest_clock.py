"""Keeps a guest's clock with the node's: nothing else in a guest would (docs/decisions/0021)."""

from __future__ import annotations

import asyncio
import logging
import time

from kangaroo.errors import DeadlineExceeded, KangarooError, Unavailable
from kangaroo.runtime.agent_client import AgentClient

_LOG = logging.getLogger(__name__)

INTERVAL_S = 64
# What the kernel's loop takes at most (MAXPHASE, include/linux/timex.h); more is a step.
SLEW_LIMIT_NS = 500_000_000
# Of several readings the one that took the least time says the most.
_READINGS = 3
_UNANSWERED = 3


async def keep(agent: AgentClient, *, silence_limit_s: float, interval_s: int = INTERVAL_S) -> bool:
    """Set the guest's clock by the node's at once, and hold it there until the guest is gone.

    True when it is not gone, and has not answered for `silence_limit_s` nor, whatever happened to
    the node meanwhile, several times in a row.
    """
    loop = asyncio.get_running_loop()
    begins, heard_at, unanswered = True, loop.time(), 0
    while True:
        try:
            await _adjust(agent, interval_s, begins=begins)
        except Unavailable:
            return False
        except DeadlineExceeded as error:
            _LOG.warning("guest's clock is not adjusted error=%s", error)
            unanswered += 1
            silent_s = loop.time() - heard_at
            if silent_s >= silence_limit_s and unanswered >= _UNANSWERED:
                return True
        except KangarooError as error:
            _LOG.warning("guest's clock is not adjusted error=%s", error)
            heard_at, unanswered = loop.time(), 0
        else:
            heard_at, unanswered = loop.time(), 0
        begins = False
        await asyncio.sleep(interval_s)


async def _adjust(agent: AgentClient, interval_s: int, *, begins: bool) -> None:
    offset_ns, wrong_by_ns = await _offset(agent)
    if not begins:
        offset_ns = _certain(offset_ns, wrong_by_ns)
    step = begins or abs(offset_ns) > SLEW_LIMIT_NS
    await agent.adjust_clock(offset_ns=offset_ns, interval_s=0 if step else interval_s)
    if step:
        _LOG.info("guest's clock is set offset_ns=%d", offset_ns)


def _certain(offset_ns: int, wrong_by_ns: int) -> int:
    """What is left of an offset where it is as small as it can be. A guest that is held up answers
    late, and a clock that is right is to stay so.
    """
    least = max(0, abs(offset_ns) - wrong_by_ns)
    return least if offset_ns > 0 else -least


async def _offset(agent: AgentClient) -> tuple[int, int]:
    """How far the guest's clock is behind the node's, and by how much that is wrong at most: half
    of the reading's time, as the guest reads its clock at some moment of it.
    """
    readings = []
    for _ in range(_READINGS):
        before = time.time_ns()
        guest = await agent.read_clock()
        after = time.time_ns()
        readings.append((after - before, (before + after) // 2 - guest))
    delay_ns, offset_ns = min(readings)
    return offset_ns, delay_ns // 2
