"""What the driver exports to Prometheus: its calls, and the NFS client's counters of the volumes.

docs/metrics.md has the names and the labels. Imported only where metrics are on: the library costs
four MiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter as Tally
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kangaroo import __version__
from kangaroo.csi import metrics_http, targets
from kangaroo.csi.config import Config
from kangaroo.csi.pod_volumes import GUEST
from kangaroo.csi.volume_counters import Reading, VolumeCounters
from kangaroo.nas.mountstats import Operation, Statistics

# A mount on a healthy server takes tens of milliseconds; kubelet gives up after two minutes.
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

# NFS has some seventy kinds of requests. These tell something to whoever runs a NAS; all others
# together are one more kind.
OPERATIONS = frozenset(
    {"READ", "WRITE", "COMMIT", "OPEN", "CLOSE", "LOCK", "GETATTR", "SETATTR", "LOOKUP", "ACCESS"}
    | {"READDIR", "READDIRPLUS", "CREATE", "REMOVE", "RENAME"}
)
OTHER = "OTHER"

_CONDITIONS_LIMIT = 4096
# The codes of a volume whose condition nobody could tell.
_NO_ANSWER = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})

_VOLUME = ("volume", "pod_uid", "where", "server", "export", "superblock")
_INFO = (*_VOLUME, "driver", "volume_handle", "version")
_MOUNTS = ("server", "where", "driver")

_OfMount = Callable[[Statistics], float]
_OF_MOUNT: Mapping[str, tuple[str, _OfMount]] = {
    "kangaroo_nfs_read_bytes": ("Bytes read from the server.", lambda of: of.read_bytes),
    "kangaroo_nfs_written_bytes": ("Bytes written to the server.", lambda of: of.written_bytes),
    "kangaroo_nfs_requests_sent": (
        "Requests put on the wire to the server, by all mounts of the same kernel.",
        lambda of: of.requests,
    ),
    "kangaroo_nfs_replies_received": (
        "Replies of the server, to all mounts of the same kernel.",
        lambda of: of.replies,
    ),
    "kangaroo_nfs_connections": (
        "Connections made to the server, for all mounts of the same kernel.",
        lambda of: of.connections,
    ),
}
_OfOperation = Callable[[Operation], float]
_OF_OPERATION: Mapping[str, tuple[str, _OfOperation]] = {
    "kangaroo_nfs_operations": ("NFS requests that were done.", lambda of: of.operations),
    "kangaroo_nfs_retransmissions": ("NFS requests sent again.", lambda of: of.retransmissions),
    "kangaroo_nfs_major_timeouts": (
        "NFS requests that had all their retransmissions and no answer.",
        lambda of: of.major_timeouts,
    ),
    "kangaroo_nfs_operation_errors": (
        "NFS requests that ended with an error, a file that is not there included.",
        lambda of: of.errors,
    ),
    "kangaroo_nfs_operation_rtt_seconds": (
        "Time from requests sent to their replies.",
        lambda of: of.rtt_ms / 1000,
    ),
    "kangaroo_nfs_operation_execute_seconds": (
        "Time from requests made to their end, their wait to be sent included.",
        lambda of: of.execute_ms / 1000,
    ),
}


@contextlib.asynccontextmanager
async def serving(config: Config) -> AsyncIterator[Metrics]:
    """The metrics at the address and path of the configuration while the block runs.

    Raises FailedPrecondition when the address cannot be had.
    """
    metrics = Metrics(config)
    async with metrics_http.serving(config.metrics_listen, config.metrics_path, metrics.text):
        try:
            yield metrics
        finally:
            await metrics.aclose()


class Metrics:
    """The driver's registry, and the observer of its calls (kangaroo.csi.boundary)."""

    def __init__(self, config: Config, *, proc: Path = Path("/proc/self")) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        build = Info("kangaroo_csi_build", "The driver that runs.", registry=registry)
        build.info(
            {
                "version": __version__,
                "driver": config.driver_name,
                "node": config.effective_node_id,
            }
        )
        self._calls = Counter(
            "kangaroo_csi_calls", "gRPC calls ended.", ("method", "code"), registry=registry
        )
        self._seconds = Histogram(
            "kangaroo_csi_call_duration_seconds",
            "How long gRPC calls took.",
            ("method",),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._in_flight = Gauge(
            "kangaroo_csi_calls_in_flight", "gRPC calls under way.", ("method",), registry=registry
        )
        self._scrape_errors = Counter(
            "kangaroo_csi_scrape_errors",
            "Counters of volumes that could not be read, by where they are kept.",
            ("source",),
            registry=registry,
        )
        for source in ("node", "guest", "state"):
            self._scrape_errors.labels(source)
        self._scrape_seconds = Gauge(
            "kangaroo_csi_scrape_duration_seconds",
            "How long reading the volumes' counters took last.",
            registry=registry,
        )
        self._volumes = _Volumes()
        registry.register(self._volumes)
        self._counters = VolumeCounters(
            pods=Path(config.kubelet_pods_dir),
            sandboxes=Path(config.sandboxes_dir),
            guest_s=config.probe_timeout_s,
            failed=lambda source: self._scrape_errors.labels(source).inc(),
            proc=proc,
        )

    def started(self, method: str) -> None:
        """A call begins."""
        self._in_flight.labels(method).inc()

    def ended(self, method: str, code: str, seconds: float, request: Any, response: Any) -> None:
        """It ended. What it says of a volume's condition is kept."""
        self._in_flight.labels(method).dec()
        self._calls.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)
        if method == "NodeGetVolumeStats" and (code == "OK" or code in _NO_ANSWER):
            abnormal = response is None or response.volume_condition.abnormal
            with contextlib.suppress(OSError, RuntimeError, ValueError):  # a path that is none
                self._volumes.told(targets.canonical(request.volume_path), abnormal=abnormal)

    async def text(self) -> bytes:
        """All of it in Prometheus' text format, in bounded time."""
        started = time.monotonic()
        self._volumes.update(await self._counters.read())
        self._scrape_seconds.set(time.monotonic() - started)
        return await asyncio.to_thread(generate_latest, self._registry)

    async def aclose(self) -> None:
        """End what is under way."""
        await self._counters.aclose()


class _Volumes(Collector):
    """The families of the volumes, made of what was read last, and of the conditions that kubelet
    was told last, by the volumes' paths.
    """

    def __init__(self) -> None:
        self._readings: tuple[Reading, ...] = ()
        self._conditions: dict[str, bool] = {}

    def update(self, readings: tuple[Reading, ...]) -> None:
        """What is there now; conditions of other volumes are forgotten."""
        self._readings = tuple({_values(reading): reading for reading in readings}.values())
        paths = {reading.volume.path for reading in readings}
        self._conditions = {path: said for path, said in self._conditions.items() if path in paths}

    def told(self, path: str, *, abnormal: bool) -> None:
        """Kubelet was told a volume's condition."""
        if len(self._conditions) >= _CONDITIONS_LIMIT:  # nobody has asked for metrics for long
            self._conditions.clear()
        self._conditions[path] = abnormal

    def collect(self) -> Iterator[Metric]:
        readings = self._readings
        yield _mounts(readings)
        yield from _about_volumes(readings)
        yield self._abnormal(readings)
        told = [
            (_values(reading), reading.counters)
            for reading in readings
            if reading.counters is not None
        ]
        for name, (text, of_mount) in _OF_MOUNT.items():
            family = CounterMetricFamily(name, text, labels=_VOLUME)
            for values, counters in told:
                family.add_metric(values, of_mount(counters))
            yield family
        yield from _of_operations(told)

    def _abnormal(self, readings: Iterable[Reading]) -> Metric:
        family = GaugeMetricFamily(
            "kangaroo_nfs_volume_abnormal",
            "Whether kubelet was told last that the volume cannot be used.",
            labels=_VOLUME,
        )
        for reading in readings:
            abnormal = self._conditions.get(reading.volume.path)
            if abnormal is not None:
                family.add_metric(_values(reading), abnormal)
        return family


def _mounts(readings: Iterable[Reading]) -> Metric:
    tally = Tally(_values(reading, _MOUNTS) for reading in readings)
    family = GaugeMetricFamily(
        "kangaroo_nfs_mounts", "NAS volumes of this node's pods.", labels=_MOUNTS
    )
    for values, number in sorted(tally.items()):
        family.add_metric(values, number)
    return family


def _about_volumes(readings: Iterable[Reading]) -> Iterator[Metric]:
    info = GaugeMetricFamily("kangaroo_nfs_volume_info", "What a volume is; 1.", labels=_INFO)
    answers = GaugeMetricFamily(
        "kangaroo_nfs_volume_answers",
        "Whether a guest told its volume's counters in time; it asks the server, too.",
        labels=_VOLUME,
    )
    for reading in readings:
        info.add_metric(_values(reading, _INFO), 1)
        if reading.volume.where == GUEST:
            answers.add_metric(_values(reading), reading.counters is not None)
    yield info
    yield answers


def _of_operations(told: Iterable[tuple[tuple[str, ...], Statistics]]) -> Iterator[Metric]:
    families = {
        name: CounterMetricFamily(name, text, labels=(*_VOLUME, "operation"))
        for name, (text, _) in _OF_OPERATION.items()
    }
    for values, counters in told:
        for kind, operations in _by_kind(counters.operations).items():
            for name, (_, of_operation) in _OF_OPERATION.items():
                families[name].add_metric((*values, kind), sum(map(of_operation, operations)))
    yield from families.values()


def _by_kind(operations: Mapping[str, Operation]) -> dict[str, list[Operation]]:
    """Those that were used, by the label's value."""
    found: dict[str, list[Operation]] = {}
    for name, operation in operations.items():
        if operation.transmissions or operation.operations:
            found.setdefault(name if name in OPERATIONS else OTHER, []).append(operation)
    return found


def _values(reading: Reading, labels: Iterable[str] = _VOLUME) -> tuple[str, ...]:
    """The labels' values. A name on a NAS may be of bytes that are no text."""
    found = (getattr(reading.volume, label) for label in labels)
    return tuple(value.encode("utf-8", "replace").decode() for value in found)
