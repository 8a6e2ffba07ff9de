"""Waiting for Kubernetes: through `kubectl wait` and watches, always with a deadline, never by
sleeping.

Deadlines are for a node that is emulated by a slow machine, where a sandbox has taken a minute and
more to start; elsewhere nothing comes near them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from tests.node import child, pods

START_S = 600
STOP_S = 300
# For an event that is due, or already there.
EVENT_S = 180


def ready(space: pods.Space, *names: str, timeout_s: float = START_S) -> None:
    """Wait until all pods are Ready."""
    condition(space, "condition=Ready", *names, timeout_s=timeout_s)


def phase(space: pods.Space, name: str, value: str, *, timeout_s: float = START_S) -> None:
    """Wait until the pod's phase is `value`."""
    condition(space, f"jsonpath={{.status.phase}}={value}", name, timeout_s=timeout_s)


def restarted(space: pods.Space, name: str, container: str) -> None:
    """Wait until `container` runs again after its first end."""
    mine = f'.status.containerStatuses[?(@.name=="{container}")]'
    condition(space, f"jsonpath={{{mine}.restartCount}}=1", name, timeout_s=START_S)
    condition(space, f"jsonpath={{{mine}.ready}}=true", name, timeout_s=START_S)


def replaced(space: pods.Space, name: str, container: str, container_id: str) -> None:
    """Wait until another container than `container_id` runs as `container`. Restarts are no
    measure: kubelet counts attempts, and one that finds its sandbox gone is one.
    """
    status: pods.Document = {}
    for status in _statuses(space, name, container, timeout_s=START_S):
        if status.get("ready") and status["containerID"] != container_id:
            return
    raise AssertionError(f"{name}: {container} was not replaced in {START_S} s: {status}")


def ended(space: pods.Space, name: str, container: str, exit_code: int) -> None:
    """Wait until the pod shows that `container` ended with `exit_code`. Only changes show that
    surely: kubelet forgets it when its garbage collector meets the next one while that is being
    started.
    """
    status: pods.Document = {}
    for status in _statuses(space, name, container, timeout_s=2 * START_S):
        ends = (status[key].get("terminated", {}) for key in ("state", "lastState"))
        if any(end.get("exitCode") == exit_code for end in ends):
            return
    raise AssertionError(f"{name}: {container} was not seen to end with {exit_code}: {status}")


def _statuses(
    space: pods.Space, name: str, container: str, *, timeout_s: float
) -> Iterator[pods.Document]:
    """The container's status as it is, and as it becomes with each change, until the deadline."""
    for document in changes(space, name, timeout_s=timeout_s):
        for status in document["status"].get("containerStatuses", ()):
            if status["name"] == container:
                yield status


def condition(space: pods.Space, what: str, *names: str, timeout_s: float) -> None:
    """`kubectl wait --for=WHAT`; on failure the pods' description is in the error."""
    targets = [f"pod/{name}" for name in names]
    done = space.kubectl(
        "wait",
        f"--for={what}",
        f"--timeout={timeout_s:.0f}s",
        *targets,
        timeout_s=timeout_s + 30,
        check=False,
    )
    if done.status != 0:
        shown = "\n".join(space.describe(name) for name in names)
        raise AssertionError(f"{', '.join(names)}: no {what}: {done.stderr}\n{shown}")


def changes(space: pods.Space, name: str, *, timeout_s: float) -> Iterator[pods.Document]:
    """The pod as it is, and as it becomes with each change, until the deadline."""
    argv = space.argv("get", "pod", name, "--watch", "--output=json")
    with child.started(argv) as watch:
        yield from _documents(watch.pieces(timeout_s=timeout_s))


def event(
    space: pods.Space,
    name: str,
    pattern: str,
    *,
    timeout_s: float,
    reason: str = ".*",
    kind: str = "Pod",
) -> pods.Event:
    """Wait for an event of an object whose message matches `pattern`, past ones included."""
    seen = []
    for each in _events(space, kind, name, timeout_s=timeout_s):
        if re.fullmatch(reason, each.reason) and re.search(pattern, each.message):
            return each
        seen.append(f"{each.reason}: {each.message}")
    shown = "\n".join(seen) or "none"
    raise AssertionError(
        f"{name}: no event that matches {pattern!r} in {timeout_s} s; events:\n{shown}"
    )


def _events(space: pods.Space, kind: str, name: str, *, timeout_s: float) -> Iterator[pods.Event]:
    """The events of an object as they come. Ends at the deadline."""
    argv = space.argv(
        "get",
        "events",
        "--watch",
        "--output=json",
        f"--field-selector=involvedObject.kind={kind},involvedObject.name={name}",
    )
    with child.started(argv) as watch:
        for document in _documents(watch.pieces(timeout_s=timeout_s)):
            for item in document.get("items", [document]):
                yield pods.Event(item["reason"], item["message"])


def _documents(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON documents in what arrives."""
    decoder = json.JSONDecoder()
    text = ""
    for piece in pieces:
        text += piece.decode(errors="replace")
        while text := text.lstrip():
            try:
                document, end = decoder.raw_decode(text)
            except json.JSONDecodeError:
                break
            text = text[end:]
            yield document
