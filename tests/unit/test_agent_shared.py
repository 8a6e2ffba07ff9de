"""Which volumes that the node shares are mounted for whom, in the guest's own mount namespace."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from kangaroo.agent import shared
from kangaroo.agent.loop import Future, Loop
from kangaroo.agent.shared import SharedVolumes
from kangaroo.errors import DeadlineExceeded
from kangaroo.linux.mount import UmountFlag

ONE, TWO = "/shared/1", "/shared/2"


class Guest:
    """Runs in this process what would be forked, once it may; keeps what was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[tuple[str, str]] = []
        self.held_up: Future | None = None
        self.volumes = SharedVolumes(self)  # type: ignore[arg-type]
        monkeypatch.setattr(os, "open", lambda path, flags: self.done.append(("look", path)))
        monkeypatch.setattr(os, "close", lambda _: None)
        monkeypatch.setattr(
            shared, "umount", lambda path, flags: self.done.append(("unmount", path))
        )

    async def call(self, function: Callable[[], Any], *, what: str, timeout_s: float) -> None:
        if self.held_up is not None:
            await self.held_up
        function()

    def begin(self, step: Coroutine[Any, Any, None]) -> Future:
        return Loop().spawn(step)

    def do(self, step: Coroutine[Any, Any, None]) -> None:
        self.begin(step).result()


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Guest:
    return Guest(monkeypatch)


def test_a_volume_is_looked_into_before_each_container_and_unmounted_after_the_last(
    guest: Guest,
) -> None:
    guest.do(guest.volumes.hold([ONE, TWO], 1))
    guest.do(guest.volumes.hold([ONE, ONE], 1))
    guest.do(guest.volumes.release([ONE, TWO], 1))
    assert guest.done[2:] == [("look", ONE), ("look", ONE), ("unmount", TWO)]
    guest.do(guest.volumes.release([ONE, ONE], 1))
    assert guest.done[5:] == [("unmount", ONE)]


def test_a_volume_that_is_being_unmounted_is_mounted_anew(guest: Guest) -> None:
    """Else the next container would look into what goes away under it, and have one of its own."""
    guest.do(guest.volumes.hold([ONE], 1))
    going = guest.held_up = Future()
    released = guest.begin(guest.volumes.release([ONE], 1))
    held = guest.begin(guest.volumes.hold([ONE], 1))
    guest.held_up = None
    assert guest.done == [("look", ONE)]
    going.set()
    assert released.done
    assert held.done
    assert guest.done[1:] == [("unmount", ONE), ("look", ONE)]


def test_what_does_not_go_in_time_keeps_nobody(guest: Guest) -> None:
    guest.do(guest.volumes.hold([ONE], 1))
    going = guest.held_up = Future()
    released = guest.begin(guest.volumes.release([ONE], 1))
    held = guest.begin(guest.volumes.hold([ONE], 1))
    guest.held_up = None
    going.fail(DeadlineExceeded("shared volumes: not done within 1 s"))
    for step in (released, held):
        step.result()
    assert guest.done == [("look", ONE)] * 2


def test_what_was_never_mounted_is_no_failure(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is none, and a container that was not made has looked into nothing."""
    gone: list[str] = []

    def umount(path: str, flags: UmountFlag) -> None:
        if path == ONE:
            raise OSError(errno.EINVAL, "Invalid argument")
        gone.append(path)

    monkeypatch.setattr(shared, "umount", umount)
    guest.do(guest.volumes.hold([ONE, TWO], 1))
    guest.do(guest.volumes.release([ONE, TWO], 1))
    assert gone == [TWO]
