"""Boot slots: bounded, handed on, given back by who is cancelled."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kangaroo.errors import KangarooError
from kangaroo.runtime.boot_slot import boot_slot


class Boots:
    """Counts who is inside; `leave` lets one go."""

    def __init__(self, directory: Path, slots: int) -> None:
        self.directory = directory
        self.slots = slots
        self.inside = 0
        self.most = 0
        self.entered = asyncio.Event()
        self.leave = asyncio.Event()

    async def boot(self) -> None:
        async with boot_slot(self.directory, self.slots):
            self.inside += 1
            self.most = max(self.most, self.inside)
            if self.inside == self.slots:
                self.entered.set()
            await self.leave.wait()
            self.inside -= 1


def test_no_more_than_the_slots_boot_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        boots = Boots(tmp_path, 2)
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            for _ in range(6):
                tasks.create_task(boots.boot())
            await boots.entered.wait()
            boots.leave.set()
        assert boots.most == 2

    asyncio.run(main())


def test_a_cancelled_waiter_gives_its_slot_on(tmp_path: Path) -> None:
    async def main() -> None:
        boots = Boots(tmp_path, 1)
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            tasks.create_task(boots.boot())
            await boots.entered.wait()
            waiter = tasks.create_task(boots.boot())
            await asyncio.sleep(0)
            waiter.cancel()
            boots.leave.set()
            tasks.create_task(boots.boot())
        assert boots.most == 1

    asyncio.run(main())


def test_a_failed_boot_gives_its_slot_back(tmp_path: Path) -> None:
    async def main() -> None:
        for _ in range(3):
            with pytest.raises(KangarooError, match="did not boot"):
                async with asyncio.timeout(5), boot_slot(tmp_path, 1):
                    raise KangarooError("the guest did not boot")

    asyncio.run(main())
