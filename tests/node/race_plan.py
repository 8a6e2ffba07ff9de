"""Which pods are created, killed and deleted in which order. Pure: a seed gives a schedule.

Nothing is placed in time but by what happens: a kill comes some seconds after its victim is there,
after the pod is ready, or after it was told to go.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum


class Part(Enum):
    """What is killed: a part of a sandbox, or a service of the node."""

    SHIM = "shim"
    QEMU = "qemu"
    VIRTIOFSD = "virtiofsd"
    CSI = "kangaroo-csi"
    CONTAINERD = "containerd"
    KUBELET = "kubelet"

    @property
    def of_sandbox(self) -> bool:
        return self in (Part.SHIM, Part.QEMU, Part.VIRTIOFSD)


class Stage(Enum):
    """Where in its life the pod is when something is killed."""

    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"


# Up to so many seconds after its victim is there. A sandbox boots for half a minute in the lab.
_DELAY_S = {Stage.STARTING: 25.0, Stage.RUNNING: 2.0, Stage.ENDING: 6.0}


class Kind(Enum):
    """How a pod runs."""

    PASSTHROUGH = "passthrough"
    PLAIN = "plain"
    """runc: a bystander, whose volume the node has mounted."""


@dataclass(frozen=True)
class Create:
    pod: str
    kind: Kind
    volume: str


@dataclass(frozen=True)
class AwaitReady:
    pod: str


@dataclass(frozen=True)
class AwaitBegun:
    """Kubelet has begun with the pod, and then some seconds."""

    pod: str
    delay_s: float


@dataclass(frozen=True)
class Delete:
    """`forced`: without grace, the API server forgets the pod at once."""

    pod: str
    forced: bool


@dataclass(frozen=True)
class AwaitGone:
    """The pod is gone from the API server."""

    pod: str


@dataclass(frozen=True)
class Kill:
    """SIGKILL `part` of the pod, or of its node, `delay_s` after the stage's event."""

    part: Part
    pod: str
    stage: Stage
    delay_s: float


@dataclass(frozen=True)
class Check:
    """Let the node come to rest with the pods that live, and look at all of it."""


Step = Create | AwaitBegun | AwaitReady | Delete | AwaitGone | Kill | Check


@dataclass(frozen=True)
class Size:
    """`alive` bounds the pods that are there at once, those that still end included."""

    pods: int
    alive: int
    kills: int


VOLUMES = ("three", "four")
_PLAIN_EVERY = 4
_LONG = 10  # pods of a round that is looked at in its middle, too


def plan(seed: int, size: Size) -> list[Step]:
    """The schedule of one round: each pod is created and deleted once, and at the end none is left.

    Every part is killed in turn, from any on. A pod is deleted while it starts, while it runs, or
    after it came back from a kill. Everything is looked at in the middle of a long round, before
    the last pods go, and at the end.
    """
    chance = random.Random(seed)
    lives = _lives(chance, size)
    steps: list[Step] = []
    living: list[_Life] = []
    ending: list[_Life] = []
    for number, life in enumerate(lives):
        while len(living) + len(ending) >= size.alive:
            if not ending:
                _end(living.pop(chance.randrange(len(living))), steps, ending)
            steps.append(AwaitGone(ending.pop(0).create.pod))
        if number == len(lives) // 2 and size.pods >= _LONG:
            steps.append(Check())
        steps += life.begin()
        living.append(life)
        if life.hasty:
            _end(living.pop(), steps, ending)
        elif chance.random() < 1 / 3:
            _end(living.pop(chance.randrange(len(living))), steps, ending)
    steps.append(Check())
    chance.shuffle(living)
    for life in living:
        _end(life, steps, ending)
    steps += [AwaitGone(life.create.pod) for life in ending]
    return [*steps, Check()]


@dataclass
class _Life:
    create: Create
    forced: bool
    hasty: bool  # deleted without having been ready
    delay_s: float  # before that
    kills: list[Kill]

    def begin(self) -> Iterator[Step]:
        yield self.create
        yield from self._killed(Stage.STARTING)

    def end(self) -> Iterator[Step]:
        pod = self.create.pod
        yield AwaitBegun(pod, self.delay_s) if self.hasty else AwaitReady(pod)
        if running := list(self._killed(Stage.RUNNING)):
            yield from running
            yield AwaitReady(pod)
        yield Delete(pod, self.forced)
        yield from self._killed(Stage.ENDING)

    def _killed(self, stage: Stage) -> Iterator[Kill]:
        return (kill for kill in self.kills if kill.stage is stage)


def _end(life: _Life, steps: list[Step], ending: list[_Life]) -> None:
    steps += life.end()
    ending.append(life)


def _lives(chance: random.Random, size: Size) -> Sequence[_Life]:
    plain = chance.randrange(_PLAIN_EVERY)
    lives = [
        _Life(
            create=Create(
                pod=f"p{number:02}",
                kind=Kind.PLAIN if number % _PLAIN_EVERY == plain else Kind.PASSTHROUGH,
                volume=chance.choice(VOLUMES),
            ),
            forced=chance.random() < 1 / 4,
            hasty=chance.random() < 1 / 4,
            delay_s=_delay_s(chance, Stage.STARTING),
            kills=[],
        )
        for number in range(size.pods)
    ]
    sandboxed = [life for life in lives if life.create.kind is Kind.PASSTHROUGH]
    parts = list(Part)
    chance.shuffle(parts)
    for number in range(size.kills):
        part = parts[number % len(parts)]
        life = chance.choice(sandboxed if part.of_sandbox else lives)
        stages = [Stage.STARTING, Stage.ENDING] if life.hasty else list(Stage)
        stage = chance.choice(stages)
        life.kills.append(Kill(part, life.create.pod, stage, _delay_s(chance, stage)))
    return lives


def _delay_s(chance: random.Random, stage: Stage) -> float:
    return round(chance.uniform(0, _DELAY_S[stage]), 1)
