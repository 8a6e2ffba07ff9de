"""Kubernetes events on the sandbox's pod: what the runtime did with its NAS volumes.

Best effort: what cannot be posted is in the log, and nothing waits for it but the end of the
sandbox, with a bound. A child process posts (event_post), so the shim holds neither TLS nor
credentials.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from kangaroo.errors import KangarooError
from kangaroo.linux import python_child
from kangaroo.linux.process import run, run_sync

_LOG = logging.getLogger(__name__)

# The child's start and its connection; on a busy node a start alone takes seconds.
POST_TIMEOUT_S = 30.0
# A failed mount names its options, the kernel's words and what to do; the API server takes more.
_MESSAGE_LIMIT = 2048
_QUEUE_LIMIT = 64
_PROGRAM = "kangaroo.runtime.event_post"
_KEYS = {
    "namespace": "io.kubernetes.cri.sandbox-namespace",
    "name": "io.kubernetes.cri.sandbox-name",
    "uid": "io.kubernetes.cri.sandbox-uid",
}


class Reason(Enum):
    """The reasons of our events, and whether something is wrong."""

    IN_GUEST = ("NASVolumeInGuest", "Normal")
    FALLBACK = ("NASPassthroughFallback", "Warning")
    NOT_FLUSHED = ("NASVolumeNotFlushed", "Warning")


@dataclass(frozen=True)
class PodName:
    """A pod as Kubernetes names it."""

    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, annotations: Mapping[str, str]) -> PodName | None:
        """The pod of a sandbox's specification; None without Kubernetes."""
        values = {field: annotations.get(key) for field, key in _KEYS.items()}
        found = {field: value for field, value in values.items() if value}
        return cls(**found) if len(found) == len(_KEYS) else None


class PodEvents:
    """Events of one pod. Without a pod or a kubeconfig nothing is posted."""

    def __init__(self, pod: PodName | None, kubeconfig: Path | None) -> None:
        self._pod = pod
        self._kubeconfig = kubeconfig
        self._queue: list[dict[str, str]] = []
        self._posting: asyncio.Task[None] | None = None

    def tell(self, reason: Reason, message: str) -> None:
        """Post an event, in the background."""
        if self._pod is None or self._kubeconfig is None:
            return
        if len(self._queue) < _QUEUE_LIMIT:
            self._queue.append(_event(reason, message))
        if self._posting is None or self._posting.done():
            posting = self._post(self._pod, self._kubeconfig)
            self._posting = asyncio.create_task(posting, name="pod-events")

    async def flush(self) -> None:
        """Wait until all has been posted or given up; each batch has POST_TIMEOUT_S."""
        if self._posting is not None:
            await asyncio.wait({self._posting})

    async def _post(self, pod: PodName, kubeconfig: Path) -> None:
        while self._queue:
            batch = _batch(pod, self._queue)
            self._queue.clear()
            try:
                argv, env = _program(kubeconfig), python_child.environment()
                await run(argv, timeout_s=POST_TIMEOUT_S, input=batch, env=env)
            except (KangarooError, OSError) as error:
                _LOG.warning("pod events not posted batch=%s error=%s", batch, error)


def post(pod: PodName, kubeconfig: Path, reason: Reason, messages: Sequence[str]) -> None:
    """Post events now, for code without an event loop. What cannot be posted is in the log."""
    batch = _batch(pod, [_event(reason, message) for message in messages])
    try:
        argv, env = _program(kubeconfig), python_child.environment()
        run_sync(argv, timeout_s=POST_TIMEOUT_S, input=batch, env=env)
    except (KangarooError, OSError) as error:
        _LOG.warning("pod events not posted batch=%s error=%s", batch, error)


def not_flushed(source: str, error: str) -> str:
    """The message of a NOT_FLUSHED event."""
    return f"{source}: what was written last may not be on the NAS: {error}"


def _event(reason: Reason, message: str) -> dict[str, str]:
    name, kind = reason.value
    return {"type": kind, "reason": name, "message": message[:_MESSAGE_LIMIT]}


def _batch(pod: PodName, events: Sequence[Mapping[str, str]]) -> str:
    return json.dumps({"pod": asdict(pod), "events": list(events)})


def _program(kubeconfig: Path) -> tuple[str, ...]:
    """The command that posts a batch."""
    return python_child.command(_PROGRAM, str(kubeconfig))
