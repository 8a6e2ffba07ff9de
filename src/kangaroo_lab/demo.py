"""The main job on a real node, shown: the example rolled out, the evidence, and a comparison.

Every claim is a `Check`. One that does not hold is printed as such, the run goes on to the end of
what can still be shown, and the exit status says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from kangaroo_lab import comparison, evidence, manifests, picture, report, rollout
from kangaroo_lab.bench import results
from kangaroo_lab.comparison import Comparison, Way
from kangaroo_lab.evidence import Check, PodFacts
from kangaroo_lab.manifests import Manifest, Variant
from kangaroo_lab.rollout import Pod

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

FORMAT = 1
COMMAND = "make demo"
EXAMPLE = "deploy-nas-csi"
EXAMPLE_APP = "busybox"
EXAMPLE_REPLICAS = 2
VIRTIOFS = Variant("deploy-nas-csi-virtiofs", "runv", passthrough=False)
RUNC = Variant("deploy-nas-csi-runc", None, passthrough=False)


@dataclass(frozen=True, slots=True)
class Options:
    """What to show, and where the results go."""

    manifest: Path
    output: Path  # directory of the table, the picture and the JSON
    json: Path | None = None  # None: evidence.json in `output`
    keep: bool = False
    rounds: int = 1


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the evidence."""

    title: str
    checks: tuple[Check, ...]
    facts: tuple[PodFacts, ...] = ()


@dataclass(slots=True)
class Evidence:
    """All that one run showed."""

    where: str
    emulated: bool
    started_at: float = field(default_factory=time.time)
    sections: list[Section] = field(default_factory=list)
    comparison: Comparison | None = None
    complete: bool = False  # every step was run

    @property
    def failed(self) -> list[Check]:
        """The checks that do not hold."""
        return [check for part in self.sections for check in part.checks if not check.holds]

    def to_json(self) -> dict[str, Any]:
        """The whole, for `--json`. `format` counts up when a key changes its meaning."""
        return {
            "format": FORMAT,
            "started_at": self.started_at,
            "seconds": round(time.time() - self.started_at, 1),
            "where": self.where,
            "emulated": self.emulated,
            "ok": self.complete and not self.failed,
            "sections": [asdict(part) for part in self.sections],
            "comparison": self.comparison.to_json() if self.comparison else None,
        }


class Demo:
    """One run on a lab that is up. Every step prints what it found."""

    def __init__(self, lab: Lab, options: Options, console: Console) -> None:
        self.lab = lab
        self.options = options
        self.console = console
        self.evidence = Evidence(describe_node(lab), lab.emulated)

    def run(self) -> Evidence:
        """All steps in order. Raises RolloutFailed when pods do not come up."""
        text = manifests.fill(self.options.manifest.read_text(), self.lab.nas.address)
        self.example(text)
        deployment = self._parsed_deployment(text)
        self.variants(deployment)
        self.compare(deployment)
        self.finish(text)
        self.evidence.complete = True
        return self.evidence

    def example(self, text: str) -> None:
        """The manifest as it stands, its two pods, and the file that both and the NAS see."""
        self._say(f"applying {self.options.manifest.name}, waiting for the rollout")
        self.lab.apply(text)
        pods = rollout.wait(self.lab, EXAMPLE, app=EXAMPLE_APP, replicas=EXAMPLE_REPLICAS)
        facts = self._observe(pods)
        self._show("With the annotation: passthrough", facts, evidence.passthrough_checks)
        content = f"written by {pods[0].name} at {int(time.time())}"
        shared = evidence.share_file(
            self.lab, pods[0], pods[-1], name="kangaroo-demo.txt", content=content
        )
        self._add(Section("One file, two pods and the NAS", shared))

    def variants(self, deployment: Manifest) -> None:
        """The same Deployment without the annotation, and with the default RuntimeClass."""
        self._say("the same Deployment without the annotation, and with the default RuntimeClass")
        rollout.apply(
            self.lab, *(manifests.variant(deployment, wanted) for wanted in (VIRTIOFS, RUNC))
        )
        for wanted, title, judge in (
            (VIRTIOFS, "Without the annotation: virtio-fs", evidence.virtiofs_checks),
            (RUNC, "Default RuntimeClass: runc", evidence.runc_checks),
        ):
            pods = rollout.wait(self.lab, wanted.name, app=wanted.name)
            self._show(title, self._observe(pods), judge)
        rollout.delete(self.lab, VIRTIOFS.name, RUNC.name)

    def compare(self, deployment: Manifest) -> None:
        """The same work in three pods, alone on the node."""
        self._say("comparison: making room and starting the three pods")
        rollout.scale(self.lab, EXAMPLE, app=EXAMPLE_APP, replicas=0)
        with_pods = start_comparison(self.lab, deployment)
        result = comparison.run(
            self.lab,
            with_pods,
            rounds=self.options.rounds,
            where=self.evidence.where,
            emulated=self.evidence.emulated,
            say=self._say,
        )
        self.evidence.comparison = result
        self.console.print(report.table(result))
        for path in picture.draw(result, self.options.output):
            self._say(f"picture: {path}")
        self._say(f"table: {write_table(result, self.options.output)}")
        rollout.delete(self.lab, *(wanted.name for wanted in comparison.variants().values()))

    def finish(self, text: str) -> None:
        """Leave the example running with `keep`, nothing of it otherwise."""
        if self.options.keep:
            rollout.scale(self.lab, EXAMPLE, app=EXAMPLE_APP, replicas=EXAMPLE_REPLICAS)
            return
        self._say("removing the example")
        self.lab.kubectl("delete", "-f", "-", "--timeout=240s", input=text, timeout_s=300)

    def _parsed_deployment(self, text: str) -> Manifest:
        shown = self.lab.kubectl("create", "--dry-run=client", "-o", "json", "-f", "-", input=text)
        return manifests.of_kind(manifests.objects(shown.stdout), "Deployment")

    def _observe(self, pods: Iterable[Pod]) -> tuple[PodFacts, ...]:
        return tuple(evidence.observe(self.lab, pod) for pod in pods)

    def _show(
        self,
        title: str,
        facts: tuple[PodFacts, ...],
        judge: Callable[[PodFacts], tuple[Check, ...]],
    ) -> None:
        checks = tuple(check for seen in facts for check in judge(seen))
        self._add(Section(title, checks, facts))

    def _add(self, section: Section) -> None:
        self.evidence.sections.append(section)
        print_section(self.console, section)

    def _say(self, text: str) -> None:
        elapsed = time.time() - self.evidence.started_at
        self.console.print(f"[dim]{elapsed:6.0f} s[/dim]  {escape(text)}", highlight=False)


def start_comparison(lab: Lab, deployment: Manifest) -> dict[Way, Pod]:
    """Start the three pods that `comparison.run` works in; each when it is ready."""
    wanted = comparison.variants()
    rollout.apply(lab, *(manifests.variant(deployment, one) for one in wanted.values()))
    return {way: rollout.wait(lab, one.name, app=one.name)[0] for way, one in wanted.items()}


def describe_node(lab: Lab) -> str:
    """What the first node is, in words."""
    shown = lab.nodes["node1"].exec(["sh", "-c", "uname -r && nproc && cat /proc/meminfo"]).stdout
    kernel, cpus, memory, *_ = shown.splitlines()
    memory_gib = int(memory.split()[1]) / (1 << 20)
    machine = "an emulated node (QEMU TCG)" if lab.emulated else "a node in a KVM machine"
    return f"{machine}, {cpus} vCPU, {memory_gib:.1f} GiB, Linux {kernel}"


def print_section(console: Console, section: Section) -> None:
    """A section: the lines that the pods printed, then each check with its fact."""

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    console.rule(f"[bold]{escape(section.title)}", align="left")
    for seen in section.facts:
        line(f"$ kubectl exec {seen.pod.name} -- sh -c 'mount | grep /data | grep nfs'")
        line(seen.nfs_line or "(prints nothing)", "cyan")
    for check in section.checks:
        mark, style = ("holds", "green") if check.holds else ("DOES NOT HOLD", "bold red")
        line(f"{mark}  {check.claim}", style)
        line(f"       {check.fact}", "dim")


def write_table(compared: Comparison, directory: Path) -> Path:
    """Write the comparison as report.md, in Markdown, beside its picture; its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "report.md"
    path.write_text(
        results.markdown("What the demo compared", COMMAND, (results.compared(compared),))
    )
    return path


def write(evidence_seen: Evidence, options: Options) -> Path:
    """Write the evidence as JSON; its path."""
    path = options.json or options.output / "evidence.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(evidence_seen.to_json(), indent=2) + "\n")
    return path
