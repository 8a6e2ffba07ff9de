"""`kangaroo demo`, `bench` and `bench-csi`: bring the lab up, run, take it down again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kangaroo.errors import KangarooError
from kangaroo_lab.tree import CHECKOUT
from kangaroo_lab.verbs import existing, positive

if TYPE_CHECKING:
    from rich.console import Console

    from kangaroo_lab.lab import Lab

EXAMPLE = CHECKOUT / "examples/nas.yaml"
USAGE = """\
The lab is up. Look around:
  kangaroo lab status
  kangaroo lab kubectl get pods -o wide
  kangaroo lab kubectl exec deploy/deploy-nas-csi -- sh -c 'mount | grep /data'
  kangaroo lab exec node1 findmnt
  kangaroo lab down"""


def register(subparsers: Any) -> None:
    """Add the verbs to the command line."""
    demo = subparsers.add_parser(
        "demo",
        help="show the main job on a real node, with the evidence",
        description="Roll the example out in the lab, show the evidence, compare three ways.",
    )
    demo.add_argument(
        "--json", type=Path, metavar="FILE", help="the evidence (default: evidence.json in DIR)"
    )
    _shared(demo, output=Path("build/demo"), rounds=1)
    demo.set_defaults(run=run_demo)
    bench = subparsers.add_parser(
        "bench",
        help="measure sandbox start, memory, the comparison and imports",
        description="Measure in the lab; write results.json, report.md, report.html, pictures.",
    )
    bench.add_argument("--starts", type=positive, default=5, help="sandboxes to start (default: 5)")
    _shared(bench, output=Path("build/bench"), rounds=3)
    bench.set_defaults(run=run_bench)
    csi = subparsers.add_parser(
        "bench-csi",
        help="measure the CSI driver, against csi-driver-nfs",
        description="Measure publish, unpublish and memory; write results.json and report.md.",
    )
    csi.add_argument(
        "--peer",
        type=existing,
        metavar="FILE",
        help="csi-driver-nfs's static program for x86-64, /nfsplugin in its image",
    )
    csi.add_argument("--turns", type=positive, default=5, help="of the latencies (default: 5)")
    csi.add_argument("--volumes", type=positive, default=500, help="of a full node (default: 500)")
    _output(csi, output=Path("build/bench-csi"))
    csi.set_defaults(run=run_bench_csi)


def run_demo(arguments: argparse.Namespace) -> int:
    """Show the main job. 1 when a check does not hold. Raises KangarooError."""
    from kangaroo_lab import demo  # noqa: PLC0415 - matplotlib is slow to import

    console = _console()
    options = demo.Options(
        manifest=arguments.manifest,
        output=arguments.output,
        json=arguments.json,
        keep=arguments.keep,
        rounds=arguments.rounds,
    )
    with _lab(keep=options.keep, console=console) as lab:
        shown = demo.Demo(lab, options, console)
        try:
            shown.run()
        finally:
            console.print(f"evidence: {demo.write(shown.evidence, options)}", highlight=False)
    return _verdict(shown.evidence, console)


def run_bench(arguments: argparse.Namespace) -> int:
    """Measure, and write the results. Raises KangarooError."""
    from kangaroo_lab.bench import results, run  # noqa: PLC0415 - matplotlib is slow to import

    console = _console()
    with _lab(keep=arguments.keep, console=console) as lab:
        measured = run.run(
            lab,
            arguments.manifest,
            starts=arguments.starts,
            rounds=arguments.rounds,
            say=lambda text: console.print(text, markup=False, highlight=False),
        )
    for path in results.write(measured, arguments.output):
        console.print(str(path), highlight=False)
    return 0


def run_bench_csi(arguments: argparse.Namespace) -> int:
    """Measure the CSI driver, and write the results. Raises KangarooError."""
    from kangaroo_lab.bench import csi, csi_results  # noqa: PLC0415 - matplotlib is slow to import

    console = _console()
    with _lab(keep=arguments.keep, console=console) as lab:
        measured = csi.run(
            lab,
            arguments.peer,
            turns=arguments.turns,
            volumes=arguments.volumes,
            say=lambda text: console.print(text, markup=False, highlight=False),
        )
    for path in csi_results.write(measured, arguments.output):
        console.print(str(path), highlight=False)
    return 0


def _output(parser: argparse.ArgumentParser, *, output: Path) -> None:
    parser.add_argument("--keep", action="store_true", help="leave the lab running")
    parser.add_argument(
        "--output", type=Path, default=output, metavar="DIR", help=f"results (default: {output})"
    )


def _shared(parser: argparse.ArgumentParser, *, output: Path, rounds: int) -> None:
    _output(parser, output=output)
    parser.add_argument(
        "--rounds", type=positive, default=rounds, help=f"of the comparison (default: {rounds})"
    )
    parser.add_argument("--manifest", type=existing, default=EXAMPLE, help="the example to apply")


@contextmanager
def _lab(*, keep: bool, console: Console) -> Iterator[Lab]:
    """The lab, up, and nobody else's meanwhile. One that was there before stays as it is; one that
    this began goes down, unless `keep`. What fails in the block is raised, whatever comes after.
    """
    from kangaroo_lab.lab import Lab  # noqa: PLC0415

    lab = Lab.open()
    with lab.in_use():
        try:
            lab.up()
            yield lab
        except BaseException as error:
            _explain(error, lab)
            try:
                _leave(lab, keep=keep, console=console)
            except (KangarooError, OSError) as second:
                sys.stderr.write(f"and then: {second}\n")
            raise
        _leave(lab, keep=keep, console=console)


def _explain(error: BaseException, lab: Lab) -> None:
    from kangaroo_lab.rollout import RolloutFailed  # noqa: PLC0415

    if isinstance(error, RolloutFailed):
        sys.stderr.write(f"{error.diagnosis}\n")
    if isinstance(error, Exception):  # whoever interrupts it does not want to wait
        sys.stderr.write(f"journals and logs of sandboxes: {lab.save_journals('demo')}\n")
    sys.stderr.write(f"logs of all other parts: {lab.logs}\n")


def _leave(lab: Lab, *, keep: bool, console: Console) -> None:
    if lab.began and not keep:
        lab.down()
    elif lab.running():
        console.print(USAGE.replace("kangaroo", sys.argv[0]), highlight=False)


def _verdict(evidence: Any, console: Console) -> int:
    failed = evidence.failed
    for check in failed:
        console.print(f"DOES NOT HOLD: {check.claim}: {check.fact}", style="red", markup=False)
    if not failed:
        console.print("Everything that was claimed holds.", style="green")
    return 1 if failed else 0


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415

    return Console(width=None if sys.stdout.isatty() else 120)
