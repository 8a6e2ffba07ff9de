"""Schedules of races: the same for the same seed, and always complete and within their bounds."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.node import race_plan
from tests.node.race_plan import (
    AwaitBegun,
    AwaitGone,
    AwaitReady,
    Check,
    Create,
    Delete,
    Kill,
    Part,
    Size,
    Stage,
)

SIZES = (Size(3, 2, 2), Size(30, 6, 24), Size(2, 1, 6))
SEEDS = range(50)


def test_the_same_seed_gives_the_same_schedule() -> None:
    size = SIZES[0]
    assert race_plan.plan(7, size) == race_plan.plan(7, size)
    assert len({str(race_plan.plan(seed, size)) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_pod_lives_once_and_within_bounds(seed: int, size: Size) -> None:
    created: set[str] = set()
    deleted: set[str] = set()
    there: set[str] = set()
    for step in race_plan.plan(seed, size):
        match step:
            case Create(pod):
                assert pod not in created
                created.add(pod)
                there.add(pod)
                assert len(there) <= size.alive
            case AwaitReady(pod) | AwaitBegun(pod):
                assert pod in created - deleted
            case Delete(pod):
                assert pod in created - deleted
                deleted.add(pod)
            case AwaitGone(pod):
                assert pod in deleted & there
                there.remove(pod)
            case Kill():
                assert step.pod in (deleted if step.stage is Stage.ENDING else created - deleted)
    assert len(created) == size.pods
    assert deleted == created
    assert there == set()
    assert step == Check()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_part_is_killed_equally_often(seed: int) -> None:
    kills = Counter(s.part for s in race_plan.plan(seed, SIZES[1]) if isinstance(s, Kill))
    assert kills == dict.fromkeys(Part, 4)


def test_every_part_is_killed_in_every_stage_and_every_end_is_met() -> None:
    steps = [step for seed in SEEDS for step in race_plan.plan(seed, SIZES[1])]
    kills = {(step.part, step.stage) for step in steps if isinstance(step, Kill)}
    assert kills == {(part, stage) for part in Part for stage in Stage}
    assert {step.forced for step in steps if isinstance(step, Delete)} == {True, False}
    assert any(isinstance(step, AwaitBegun) for step in steps)
