"""A schedule of `tests.node.race_plan` carried out in the lab, and everything looked at."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.node import invariants, pods, probe, waiting
from tests.node.race_plan import (
    AwaitBegun,
    AwaitGone,
    AwaitReady,
    Check,
    Create,
    Delete,
    Kill,
    Kind,
    Stage,
    Step,
)
from tests.node.records import SCRIPT, Promises, broken

GONE_S = waiting.START_S
READY_S = 2 * waiting.START_S
_GRACE_S = 60  # the end is written by an emulated guest
_TELL = "cat /tmp/life && grep ' /data ' /proc/mounts"
_PAUSE_S = 1.0  # a pod has no event for "can be asked"


@dataclass
class Racer:
    """One pod: what was done to it, and what it therefore promises."""

    uid: str
    kind: Kind
    promises: Promises = field(default_factory=Promises)
    killed: set[str] = field(default_factory=set)
    life: str | None = None
    """The life that runs, while nothing was done to it since it was asked."""


class Race:
    """The pods of one round. `directory` is the NAS's directory of the volumes."""

    def __init__(self, space: pods.Space, directory: Path, steps: Sequence[Step]) -> None:
        self._space = space
        self._directory = directory
        self._steps = steps
        self._racers: dict[str, Racer] = {}
        self._living: list[str] = []
        self._started = time.monotonic()
        self.before: list[str] = []
        self.hits: dict[str, int] = {}
        """How often each part was killed, and how often it was not there to be."""

    def run(self) -> list[str]:
        """Do it all. What was wrong, each with the step that it was seen at."""
        self.before = invariants.look(self._space.lab, self._space.node)
        wrong = []
        for number, step in enumerate(self._steps):
            self._say(f"step {number}: {step}")
            for what in self._do(number, step):
                self._say(f"WRONG: {what}")
                wrong.append(f"step {number} {type(step).__name__}: {what}")
        return [*wrong, *self._on_the_nas()]

    def _do(self, number: int, step: Step) -> Iterator[str]:
        match step:
            case Create():
                self._create(step)
            case AwaitBegun(pod, delay_s):
                self._waiting("begun", pod, delay_s=delay_s, wait_s=READY_S)
            case AwaitReady(pod):
                yield from self._await_ready(pod)
            case Kill():
                self._kill(step)
            case Delete():
                self._delete(step, disturbed=self._is_killed_after(number, step.pod))
            case AwaitGone(pod):
                self._await_gone(pod)
            case Check():
                yield from self._check()

    def _create(self, step: Create) -> None:
        passthrough = step.kind is Kind.PASSTHROUGH
        writer = pods.container(
            "writer",
            SCRIPT,
            mounts={"/data": step.volume},
            limits={"memory": "64Mi"},
            env=[{"name": "POD", "value": step.pod}],
        )
        document = pods.pod(
            step.pod,
            writer,
            runtime="runv" if passthrough else None,
            annotations=pods.PASSTHROUGH,
            volumes=[pods.claim(step.volume)],
            terminationGracePeriodSeconds=_GRACE_S,
            nodeSelector={"kubernetes.io/hostname": self._space.node.name},
        )
        self._space.apply(document)
        self._racers[step.pod] = Racer(self._space.uid(step.pod), step.kind)
        self._living.append(step.pod)

    def _await_ready(self, pod: str) -> Iterator[str]:
        """Until the pod answers from a sandbox in which nothing was killed."""
        racer = self._racers[pod]
        deadline = time.monotonic() + READY_S
        while True:
            waiting.ready(self._space, pod, timeout_s=READY_S)
            if racer.kind is Kind.PLAIN or self._is_whole(racer):
                said = self._space.run(pod, _TELL, check=False)
                if said.status == 0:
                    break
            if time.monotonic() > deadline:
                raise AssertionError(f"{pod} does not answer:\n{self._space.describe(pod)}")
            time.sleep(_PAUSE_S)
        racer.life, *lines = said.stdout.splitlines()
        nfs = [line for line in lines if line.split()[2] in pods.NFS]
        if len(nfs) != 1 or len(lines) != 1:
            yield f"pod {pod} has on /data: {lines}"

    def _await_gone(self, pod: str) -> None:
        wait = ["wait", "--for=delete", f"pod/{pod}", f"--timeout={GONE_S}s"]
        self._space.kubectl(*wait, timeout_s=GONE_S + 30, check=False)
        left = self._space.kubectl("get", "pod", pod, "--ignore-not-found", "-o", "name").stdout
        assert left == "", f"{pod} is not gone:\n{self._space.describe(pod)}"

    def _is_whole(self, racer: Racer) -> bool:
        alive = probe.on(self._space.node, "whole", uid=racer.uid)
        return any(sandbox not in racer.killed for sandbox in alive)

    def _kill(self, step: Kill) -> None:
        racer = self._racers[step.pod]
        part = step.part.value
        done = self._waiting(
            "kill",
            step.pod,
            part=part,
            unit="" if step.part.of_sandbox else part,
            delay_s=step.delay_s,
            wait_s=READY_S if step.stage is Stage.STARTING else 0,
        )
        racer.promises.hear(done["reported"])
        if step.part.of_sandbox:
            racer.killed.add(done["sandbox"])
            racer.life = None
        name = part if done["killed"] else f"{part} (not there)"
        self.hits[name] = self.hits.get(name, 0) + 1
        self._say(f"killed {name} {done['killed']} sandbox={done['sandbox'][:12]}")

    def _waiting(
        self, verb: str, pod: str, *, delay_s: float, wait_s: float, **request: Any
    ) -> Any:
        """A verb of the probe that waits on the node for something of the pod."""
        uid, timeout_s = self._racers[pod].uid, delay_s + wait_s + 60
        waits = {"delay_s": delay_s, "wait_s": wait_s}
        return probe.on(self._space.node, verb, timeout_s=timeout_s, uid=uid, **waits, **request)

    def _delete(self, step: Delete, *, disturbed: bool) -> None:
        racer = self._racers[step.pod]
        racer.promises.hear(probe.on(self._space.node, "reported", uid=racer.uid))
        if racer.life is not None and not step.forced and not disturbed:
            racer.promises.whole.add(racer.life)
        how = ["--grace-period=0", "--force"] if step.forced else []
        self._space.kubectl("delete", "pod", step.pod, "--wait=false", *how)
        self._living.remove(step.pod)

    def _is_killed_after(self, number: int, pod: str) -> bool:
        later = self._steps[number:]
        return any(isinstance(s, Kill) and s.pod == pod and s.part.of_sandbox for s in later)

    def _check(self) -> Iterator[str]:
        for pod in self._living:
            yield from self._await_ready(pod)
        started = time.monotonic()
        lab, node = self._space.lab, self._space.node
        wrong = invariants.await_none(lab, node, besides=self.before)
        if wrong and all(each.startswith("bundle ") for each in wrong):
            # Of a `delete` that a busy node did not get done in containerd's five seconds.
            self._say(f"containerd is started anew, for it has left {wrong}")
            node.exec(["systemctl", "restart", "containerd"])
            wrong = invariants.await_none(lab, node, besides=self.before)
        yield from wrong
        self._say(f"the node was at rest after {time.monotonic() - started:.0f} s")

    def _on_the_nas(self) -> Iterator[str]:
        """What the NAS has, read on the machine that it is."""
        strangers = {path.name for path in self._directory.iterdir()} - set(self._racers)
        yield from (f"a stranger on the NAS: {name}" for name in sorted(strangers))
        for name, racer in self._racers.items():
            where = self._directory / name
            paths = where.iterdir() if where.is_dir() else ()
            files = {path.name: path.read_bytes() for path in paths}
            yield from (f"{name}: {what}" for what in broken(files, racer.promises))
            sizes = {life[:8]: len(content) for life, content in files.items()}
            whole = {life[:8] for life in racer.promises.whole}
            heard = {life[:8]: n for life, n in racer.promises.reported.items()}
            self._say(f"{name}: bytes {sizes}, reported {heard}, whole {whole or 'none'}")

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started:5.0f} s] {text}", flush=True)
