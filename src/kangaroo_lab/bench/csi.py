"""The CSI driver against csi-driver-nfs: latency of publish and unpublish, and memory.

Both serve on the same node, the same client calls them, and their volumes are the same directories
of the same NAS. A call of the one is followed by the same call of the other, and who is first
changes with every turn. Without a program of the peer, Kangaroo's driver is measured alone.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kangaroo.errors import KangarooError
from kangaroo.linux import mountinfo
from kangaroo_lab import csi_calls, nfsplugin
from kangaroo_lab.csi_calls import SOCKET
from kangaroo_lab.demo import describe_node

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.node import Node

AT_ONCE = 64
ALONE = 8  # calls of a turn
OURS, PEER = "kangaroo-csi", nfsplugin.PROJECT
# Given to both as mount flags, so that neither's defaults count.
_OPTIONS = ("vers=3", "nolock", "proto=tcp", "mountproto=tcp", "hard", "noresvport")

_PEER_UNIT = "kangaroo-bench-peer"
_PEER_SOCKET = "/run/kangaroo-bench-peer.sock"


class Verb(StrEnum):
    PUBLISH = "publish"
    UNPUBLISH = "unpublish"


class Way(StrEnum):
    """How a call is made: nothing else under way, many at once, or alone on a full node."""

    ALONE = "alone"
    AT_ONCE = f"{AT_ONCE} at a time"
    FULL = "alone, on a full node"
    FILLING = "filling the node"


@dataclass(frozen=True, slots=True)
class Round:
    """Calls that are made at once: `verb` of one driver for the volumes of these numbers."""

    driver: str
    verb: Verb
    way: Way
    volumes: range


@dataclass(frozen=True, slots=True)
class Timed:
    """A round that was made: each call's seconds, and those until all were answered, by the
    client's clock.
    """

    driver: str
    verb: Verb
    way: Way
    turn: int
    seconds: tuple[float, ...]
    until_last_s: float


@dataclass(frozen=True, slots=True)
class DriverMemory:
    """A driver's process, with so many volumes published by it."""

    driver: str
    volumes: int
    pss_kib: int
    rss_kib: int


@dataclass(frozen=True, slots=True)
class CsiResults:
    """Everything that one run measured."""

    where: str
    emulated: bool
    drivers: tuple[str, ...]
    volumes: int
    timed: tuple[Timed, ...]
    memory: tuple[DriverMemory, ...]


def run(
    lab: Lab, peer: Path | None, *, turns: int, volumes: int, say: Callable[[str], None]
) -> CsiResults:
    """Measure on a lab that is up. Raises KangarooError when a call of either driver fails."""
    node = lab.nodes["node1"]
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(_directories(lab, max(AT_ONCE, volumes + ALONE)))
        targets = stack.enter_context(_targets(node, say))
        client = stack.enter_context(csi_calls.client(node))
        node.exec(["systemctl", "restart", OURS])
        units = {OURS: (OURS, SOCKET)}
        if peer is not None:
            stack.enter_context(nfsplugin.serving(node, peer, _PEER_UNIT, _PEER_SOCKET))
            units[PEER] = (_PEER_UNIT, _PEER_SOCKET)
        bench = _Bench(lab, node, client, base, targets, units)
        say("warming up")
        for turn in range(2):
            bench.make(turn, alone(bench.order(turn), Way.ALONE, range(1)))
        timed: list[Timed] = []
        memory = bench.memory(0)
        for turn in range(turns):
            say(f"turn {turn + 1} of {turns}")
            timed += bench.make(turn, alone(bench.order(turn), Way.ALONE, range(ALONE)))
            timed += bench.make(turn, at_once(bench.order(turn)))
        for driver in units if volumes else ():
            say(f"{volumes} volumes of {driver}")
            timed += bench.make(0, filling(driver, Verb.PUBLISH, volumes))
            memory += bench.memory(volumes, driver)
            beside = range(volumes, volumes + ALONE)
            timed += bench.make(0, alone([driver], Way.FULL, beside))
            timed += bench.make(0, filling(driver, Verb.UNPUBLISH, volumes))
        return CsiResults(
            describe_node(lab), lab.emulated, tuple(units), volumes, tuple(timed), tuple(memory)
        )


def alone(drivers: Sequence[str], way: Way, volumes: range) -> list[Round]:
    """One call after the other, the drivers taking turns with each."""
    return [
        Round(driver, verb, way, range(number, number + 1))
        for verb in Verb
        for number in volumes
        for driver in drivers
    ]


def at_once(drivers: Sequence[str]) -> list[Round]:
    """All of a driver's calls at once; the next driver when its volumes are gone."""
    return [Round(driver, verb, Way.AT_ONCE, range(AT_ONCE)) for driver in drivers for verb in Verb]


def filling(driver: str, verb: Verb, volumes: int) -> list[Round]:
    """Very many volumes, as fast as a busy kubelet would."""
    return [
        Round(driver, verb, Way.FILLING, range(start, min(start + AT_ONCE, volumes)))
        for start in range(0, volumes, AT_ONCE)
    ]


def parse_rollup(text: str) -> tuple[int, int]:
    """PSS and RSS in KiB from smaps_rollup (proc_pid_smaps(5)). Raises KangarooError."""
    sizes = dict(re.findall(r"^(Pss|Rss):\s+(\d+) kB$", text, re.MULTILINE))
    if len(sizes) != 2:
        raise KangarooError(f"not a smaps_rollup: {text[:80]!r}")
    return int(sizes["Pss"]), int(sizes["Rss"])


@dataclass(frozen=True, slots=True)
class _Bench:
    lab: Lab
    node: Node
    client: csi_calls.Client
    base: Path
    targets: str
    units: Mapping[str, tuple[str, str]]  # unit and socket, by driver

    def order(self, turn: int) -> list[str]:
        names = list(self.units)
        return names[turn % len(names) :] + names[: turn % len(names)]

    def make(self, turn: int, rounds: Sequence[Round]) -> list[Timed]:
        calls = [[self._call(one, number) for number in one.volumes] for one in rounds]
        timed = []
        for one, answers in zip(rounds, self.client.run(calls), strict=True):
            for answer in answers:
                if answer.code != "OK":
                    raise KangarooError(f"{one}: {answer.code}: {answer.message}")
            seconds = tuple(answer.seconds for answer in answers)
            last = max(answer.begun_s + answer.seconds for answer in answers)
            timed.append(Timed(one.driver, one.verb, one.way, turn, seconds, last))
        return timed

    def memory(self, volumes: int, *drivers: str) -> list[DriverMemory]:
        return [
            DriverMemory(driver, volumes, *parse_rollup(self._rollup(self.units[driver][0])))
            for driver in drivers or self.units
        ]

    def _rollup(self, unit: str) -> str:
        pid = f"$(systemctl show --value --property=MainPID {unit})"
        return self.node.exec(["sh", "-c", f"cat /proc/{pid}/smaps_rollup"]).stdout

    def _call(self, one: Round, number: int) -> dict[str, Any]:
        request: dict[str, Any] = {
            "volume_id": f"bench-{number}",
            "target_path": f"{self.targets}/{one.driver}-{number}",
        }
        if one.verb is Verb.PUBLISH:
            path = "path" if one.driver == OURS else "share"
            directory = f"/csi/{self.base.name}/{number}"
            request["volume_context"] = {"server": self.lab.nas.address, path: directory}
            request["volume_capability"] = {
                "mount": {"mount_flags": list(_OPTIONS)},
                "access_mode": {"mode": "MULTI_NODE_MULTI_WRITER"},
            }
        return {
            "socket": self.units[one.driver][1],
            "method": f"Node{one.verb.capitalize()}Volume",
            "request": request,
            "timeout_s": csi_calls.KUBELET_S,
        }


@contextlib.contextmanager
def _directories(lab: Lab, count: int) -> Iterator[Path]:
    """A directory of the NAS that holds one for each volume."""
    base = lab.nas.root / "csi" / f"bench-{secrets.token_hex(4)}"
    for number in range(count):
        (base / str(number)).mkdir(parents=True)
    try:
        yield base
    finally:
        shutil.rmtree(base)


@contextlib.contextmanager
def _targets(node: Node, say: Callable[[str], None]) -> Iterator[str]:
    """A directory of the node for the volumes. Raises CommandFailed when a driver has left
    something in it; what is left, also by a run that failed, is taken away.
    """
    base = f"/run/kangaroo-bench-csi-{secrets.token_hex(4)}"
    node.exec(["mkdir", base])
    try:
        yield base
        node.exec(["rmdir", base])
    except BaseException:
        _clear(node, base, say)
        raise


def _clear(node: Node, base: str, say: Callable[[str], None]) -> None:
    """Unmount what is mounted in `base`, whoever uses it, and remove it."""
    table = mountinfo.parse(node.exec(["cat", "/proc/1/mountinfo"]).stdout)
    left = [entry.mount_point for entry in table if entry.mount_point.startswith(f"{base}/")]
    if left:
        say(f"unmounting what is left: {' '.join(left)}")
        node.exec(["xargs", "umount", "--lazy"], input="\n".join(left))
    node.exec(["rm", "--recursive", "--force", "--one-file-system", base])
