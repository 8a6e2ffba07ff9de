"""The same file work in three pods: on the node's mount (runc), over virtio-fs, and with
passthrough.

The pods work one after the other, never at once, and the order turns with every round, so that a
machine that warms up or slows down does not favour one of them. Rates are medians over the rounds.
Only ratios within one run mean anything.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from kangaroo.errors import KangarooError
from kangaroo_lab.evidence import MOUNT_POINT, in_pod
from kangaroo_lab.manifests import Variant
from kangaroo_lab.rollout import Pod
from kangaroo_lab.workload_image import IMAGE

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

# A piece stops after this long and counts what it did: a slow way costs bounded time.
LIMIT_S = 6.0
EXEC_TIMEOUT_S = 300.0
MIB = 1 << 20


class Way(Enum):
    """How a pod reaches the NAS."""

    RUNC = "runc"
    VIRTIOFS = "virtiofs"
    PASSTHROUGH = "passthrough"

    @property
    def title(self) -> str:
        """For people."""
        return {
            Way.RUNC: "runc, node's mount",
            Way.VIRTIOFS: "sandbox, virtio-fs",
            Way.PASSTHROUGH: "sandbox, passthrough",
        }[self]


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work. `per_byte`: its rate is bytes per second, not operations per second."""

    name: str
    title: str
    arguments: tuple[str, ...]
    per_byte: bool = False


WORKS = (
    Work("small-writes", "small buffered writes, 512 B", ("-block", "512", "-count", "10000")),
    Work("seq-write", "sequential write, 1 MiB", ("-size", str(16 * MIB)), per_byte=True),
    Work("seq-read", "sequential read, 1 MiB", (), per_byte=True),
    Work(
        "random-write",
        "random buffered writes, 4 KiB",
        ("-block", "4096", "-size", str(32 * MIB), "-count", "2000"),
    ),
    Work("metadata", "create, stat, unlink", ("-count", "300")),
)
READ_BYTES = 16 * MIB


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run of one piece in one pod did."""

    work: str
    way: Way
    round: int
    ops: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All measurements of one run, and where they were made."""

    measurements: tuple[Measurement, ...]
    where: str
    emulated: bool

    @property
    def rounds(self) -> int:
        """How often each piece of work was done in each pod."""
        return len({seen.round for seen in self.measurements})

    def rate(self, work: Work, way: Way) -> float:
        """Median operations per second, or bytes per second when the test counts bytes."""
        rates = [
            (seen.bytes if work.per_byte else seen.ops) / seen.seconds
            for seen in self.measurements
            if seen.work == work.name and seen.way is way
        ]
        if not rates:
            raise KangarooError(f"{work.name} was not measured with {way.value}")
        return statistics.median(rates)

    def ratio(self, work: Work, way: Way, against: Way = Way.VIRTIOFS) -> float:
        """How many times as fast `way` is as `against`: above 1 is faster."""
        return self.rate(work, way) / self.rate(work, against)

    def to_json(self) -> dict[str, Any]:
        """Series, medians and ratios, for the evidence file."""
        return {
            "where": self.where,
            "emulated": self.emulated,
            "series": [
                {
                    "test": seen.work,
                    "way": seen.way.value,
                    "round": seen.round,
                    "ops": seen.ops,
                    "bytes": seen.bytes,
                    "seconds": seen.seconds,
                }
                for seen in self.measurements
            ],
            "tests": [self._summary(work) for work in WORKS],
        }

    def _summary(self, work: Work) -> dict[str, Any]:
        return {
            "test": work.name,
            "unit": "bytes/s" if work.per_byte else "ops/s",
            "median_rate": {way.value: self.rate(work, way) for way in Way},
            "passthrough_to_virtiofs": self.ratio(work, Way.PASSTHROUGH),
            "passthrough_to_runc": self.ratio(work, Way.PASSTHROUGH, Way.RUNC),
        }


def variants() -> dict[Way, Variant]:
    """The three Deployments to compare, in terms of the example's."""
    return {
        Way.RUNC: Variant("compare-runc", None, False, IMAGE),
        Way.VIRTIOFS: Variant("compare-virtiofs", "runv", False, IMAGE),
        Way.PASSTHROUGH: Variant("compare-passthrough", "runv", True, IMAGE),
    }


def run(
    lab: Lab,
    pods: Mapping[Way, Pod],
    *,
    rounds: int,
    where: str,
    emulated: bool,
    say: Callable[[str], None],
) -> Comparison:
    """Do every piece `rounds` times in each of the pods. Raises CommandFailed when one fails."""
    seen: list[Measurement] = []
    for number in range(rounds):
        for work in WORKS:
            for way in _turn(number):
                say(f"round {number + 1} of {rounds}: {work.title}, {way.title}")
                if work.name == "seq-read":
                    _write_elsewhere(lab, pods, way)
                seen.append(_measure(lab, pods[way], work, way, number))
    _clean(lab, pods)
    return Comparison(tuple(seen), where, emulated)


def parse_result(text: str, *, work: str, way: Way, number: int) -> Measurement:
    """What the workload printed. Raises KangarooError when that is not a result of this work."""
    try:
        value = json.loads(text)
        if value["test"] != work or value["seconds"] <= 0:
            raise ValueError("another piece, or no time passed")
        return Measurement(
            work, way, number, int(value["ops"]), int(value["bytes"]), float(value["seconds"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise KangarooError(f"not a result of {work}: {text.strip()!r}: {error}") from error


def _turn(number: int) -> tuple[Way, ...]:
    ways = tuple(Way)
    shift = number % len(ways)
    return ways[shift:] + ways[:shift]


def _measure(lab: Lab, pod: Pod, work: Work, way: Way, number: int) -> Measurement:
    arguments = (*work.arguments, "-seed", str(number + 1), "-limit", f"{LIMIT_S:g}")
    text = _workload(lab, pod, work.name, "-file", _file(way, work.name), *arguments)
    return parse_result(text, work=work.name, way=way, number=number)


def _write_elsewhere(lab: Lab, pods: Mapping[Way, Pod], way: Way) -> None:
    """Have another kernel write the file that `way` will read, so that no cache on its path holds
    it.

    runc and virtio-fs both end in the node's NFS client: for them the guest with passthrough
    writes.
    """
    writer = pods[Way.RUNC if way is Way.PASSTHROUGH else Way.PASSTHROUGH]
    _workload(lab, writer, "seq-write", "-file", _file(way, "seq-read"), "-size", str(READ_BYTES))


def _file(way: Way, work: str) -> str:
    return f"compare-{way.value}-{work}.dat"


def _workload(lab: Lab, pod: Pod, *arguments: str) -> str:
    command = " ".join(("workload", arguments[0], "-dir", MOUNT_POINT, *arguments[1:]))
    return in_pod(lab, pod, command, timeout_s=EXEC_TIMEOUT_S)


def _clean(lab: Lab, pods: Mapping[Way, Pod]) -> None:
    in_pod(lab, pods[Way.RUNC], f"rm -f {MOUNT_POINT}/compare-*.dat", timeout_s=EXEC_TIMEOUT_S)
