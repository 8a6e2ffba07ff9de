"""What the runtime is told of OOM kills."""

from __future__ import annotations

from kangaroo.agent.loop import Loop
from kangaroo.agent.service import OutOfMemoryEvents


def test_one_container_keeps_no_other_back() -> None:
    events, loop = OutOfMemoryEvents(), Loop()
    for _ in range(2000):
        events.add("a")
    events.add("b")
    told = []
    for _ in range(2):
        told.append(loop.spawn(events.next()).result())
        events.add("a")
    assert told == ["a", "b"]
    assert loop.spawn(events.next()).result() == "a"
    assert not loop.spawn(events.next()).done


def test_who_waits_is_told_at_once() -> None:
    events, loop = OutOfMemoryEvents(), Loop()
    first, second = loop.spawn(events.next()), loop.spawn(events.next())
    events.add("a")
    assert first.result() == "a"
    assert not second.done
    events.add("a")
    assert second.result() == "a"
