"""Where the time of a sandbox's start goes, read from what containerd and the shim logged.

Both log by the node's clock, so their times can be compared; nodes of the lab keep UTC. The lines
looked for are those of containerd 1.7's CRI service and of `kangaroo.runtime`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from kangaroo.errors import NotFound

_CONTAINERD_LINE = re.compile(r'time="([^"]+)" level=\w+ msg="((?:[^"\\]|\\.)*)"')
_SHIM_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) \w+ \S+ (.*)")
_BOOT_NS = re.compile(r"guest is up .*boot_ns=(\d+)")


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the start: from one milestone to the next."""

    name: str
    begin: str
    end: str


STEPS = (
    Step("containerd, CNI, shim start", "RunPodSandbox", "shim serves"),
    Step("virtiofsd, tap, QEMU", "shim serves", "machine started"),
    Step("guest boot and agent", "machine started", "agent ready"),
    Step("guest network, events", "agent ready", "sandbox ready"),
    Step("kubelet", "sandbox ready", "CreateContainer"),
    Step("create container, NAS mount", "CreateContainer", "container created"),
    Step("start container", "container created", "container runs"),
)
TOTAL = Step("in all", "RunPodSandbox", "container runs")

_SHIM_MILESTONES = {
    "shim serves": re.compile(r"serving sandbox="),
    "machine started": re.compile(r"machine started "),
    "agent ready": re.compile(r"guest is up "),
}


@dataclass(frozen=True, slots=True)
class Start:
    """One start of one pod: when each milestone was reached (seconds of the node's clock)."""

    pod: str
    milestones: Mapping[str, float]
    guest_boot_s: float | None  # by the guest's own clock, from its kernel's start to its agent

    def seconds(self, step: Step) -> float:
        """How long a step took. Raises NotFound naming a milestone that was not logged."""
        return self._at(step.end) - self._at(step.begin)

    def _at(self, milestone: str) -> float:
        try:
            return self.milestones[milestone]
        except KeyError:
            raise NotFound(f"{self.pod}: the logs do not show {milestone!r}") from None


def read(containerd_log: str, shim_log: str, *, pod: str) -> Start:
    """The start of a pod, from containerd's log and its shim's. Missing milestones stay out."""
    milestones = dict(_containerd_milestones(containerd_log, pod))
    shim = list(_shim_lines(shim_log))
    for name, pattern in _SHIM_MILESTONES.items():
        found = next((when for when, text in shim if pattern.search(text)), None)
        if found is not None:
            milestones[name] = found
    boot = _BOOT_NS.search(shim_log)
    return Start(pod, milestones, int(boot[1]) / 1e9 if boot else None)


def sandbox_id(containerd_log: str, pod: str) -> str:
    """The id of the pod's sandbox. Raises NotFound when containerd has not logged one."""
    for _, text in _containerd_lines(containerd_log):
        found = re.search(r'returns sandbox id "([0-9a-f]+)"', text)
        if found and f"Name:{pod}," in text:
            return found[1]
    raise NotFound(f"{pod}: containerd's log names no sandbox")


def _containerd_milestones(log: str, pod: str) -> Iterable[tuple[str, float]]:
    sandbox = sandbox_id(log, pod)
    container = None
    for when, text in _containerd_lines(log):
        if text.startswith("RunPodSandbox for ") and f"Name:{pod}," in text:
            yield ("sandbox ready" if "returns sandbox id" in text else "RunPodSandbox"), when
        elif text.startswith("CreateContainer within sandbox ") and sandbox in text:
            made = re.search(r'returns container id "([0-9a-f]+)"', text)
            container = made[1] if made else container
            yield ("container created" if made else "CreateContainer"), when
        elif container and text.startswith(f'StartContainer for "{container}" returns'):
            yield "container runs", when


def _containerd_lines(log: str) -> Iterable[tuple[float, str]]:
    for line in log.splitlines():
        found = _CONTAINERD_LINE.search(line)
        if found:
            yield _rfc3339(found[1]), found[2].replace('\\"', '"')


def _shim_lines(log: str) -> Iterable[tuple[float, str]]:
    for line in log.splitlines():
        found = _SHIM_LINE.match(line)
        if found:
            when = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC)
            yield when.timestamp(), found[2]


def _rfc3339(text: str) -> float:
    """Python reads six digits of a second, Go writes nine."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).timestamp()
