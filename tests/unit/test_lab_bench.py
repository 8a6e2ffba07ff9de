"""The bench: milestones read from logs, sizes, import costs, and the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kangaroo.errors import KangarooError, NotFound
from kangaroo_lab.bench import imports, memory, start
from kangaroo_lab.bench.imports import ImportCost
from kangaroo_lab.bench.memory import Memory
from kangaroo_lab.bench.results import Results, write
from kangaroo_lab.comparison import WORKS, Comparison, Measurement, Way

METADATA = "&PodSandboxMetadata{Name:pod-1,Uid:u,Namespace:default,Attempt:0,}"
OTHER = "&PodSandboxMetadata{Name:pod-10,Uid:v,Namespace:default,Attempt:0,}"


def line(second: float, message: str) -> str:
    quoted = message.replace('"', '\\"')
    return f'time="2026-03-01T10:00:{second:012.9f}Z" level=info msg="{quoted}"'


CONTAINERD_LOG = "\n".join(
    (
        line(0.5, f"RunPodSandbox for {OTHER}"),
        line(1, f"RunPodSandbox for {METADATA}"),
        'time="2026-03-01T10:00:02Z" level=info msg="loading plugin" type=x',
        line(9, f'RunPodSandbox for {OTHER} returns sandbox id "0ff"'),
        line(11, f'RunPodSandbox for {METADATA} returns sandbox id "abc"'),
        line(12, 'CreateContainer within sandbox "abc" for container &ContainerMetadata{Name:b,}'),
        line(14, 'CreateContainer within sandbox "abc" for &C{Name:b,} returns container id "c1"'),
        line(14.25, 'StartContainer for "c1"'),
        line(15, 'StartContainer for "c1" returns successfully'),
    )
)
SHIM_LOG = """\
2026-03-01 10:00:02,500 INFO kangaroo.runtime.daemon sandbox=abc serving sandbox=abc namespace=k8s
2026-03-01 10:00:04,000 INFO kangaroo.vmm.machine sandbox=abc machine started name=abc pid=7
    a line of a traceback
2026-03-01 10:00:10,000 INFO kangaroo.runtime.sandbox sandbox=abc guest is up version=0.1.0 \
kernel=6.12 boot_ns=5500000000
"""


def seen() -> start.Start:
    return start.read(CONTAINERD_LOG, SHIM_LOG, pod="pod-1")


def test_a_start_is_split_at_its_milestones() -> None:
    split = [seen().seconds(step) for step in start.STEPS]
    assert split == pytest.approx([1.5, 1.5, 6, 1, 1, 2, 1])
    assert seen().seconds(start.TOTAL) == pytest.approx(sum(split))
    assert seen().guest_boot_s == 5.5


def test_a_name_that_only_begins_alike_is_another_pod() -> None:
    assert start.sandbox_id(CONTAINERD_LOG, "pod-1") == "abc"
    assert start.sandbox_id(CONTAINERD_LOG, "pod-10") == "0ff"
    with pytest.raises(NotFound, match="pod-2"):
        start.sandbox_id(CONTAINERD_LOG, "pod-2")


def test_a_milestone_that_was_not_logged_is_named() -> None:
    without_shim = start.read(CONTAINERD_LOG, "", pod="pod-1")
    assert without_shim.guest_boot_s is None
    with pytest.raises(NotFound, match="'agent ready'"):
        without_shim.seconds(start.STEPS[2])


def test_meminfo_is_read_and_something_else_refused() -> None:
    text = "MemTotal:  1000 kB\nMemFree: 200 kB\nMemAvailable:   400 kB\n"
    assert memory.parse_meminfo(text) == (1000, 400)
    with pytest.raises(KangarooError, match="not a meminfo"):
        memory.parse_meminfo("MemTotal: 1000 kB\n")


def test_importtime_is_read() -> None:
    heading = "import time: self [us] | cumulative | imported package\n"
    text = heading + "import time:  1500 |  2000 |   os\n"
    assert imports.parse_importtime(text) == [("os", 1.5)]


def test_the_cost_of_an_import_counts_what_the_interpreter_alone_does_not() -> None:
    nothing = imports.measure("nothing", (), runs=1)
    some = imports.measure("asyncio", ("asyncio",), runs=1)
    assert some.modules > nothing.modules + 20
    assert 0 < some.best_ms <= some.median_ms


def test_the_report_shows_every_part(tmp_path: Path) -> None:
    measured = tuple(
        Measurement(work.name, way, 0, 100, 1 << 20, 2.0) for work in WORKS for way in Way
    )
    results = Results(
        where="a node",
        emulated=True,
        machine="a machine",
        starts=(seen(),),
        memory=(Memory("pod-1", {"qemu": 204800, "shim": 10240}, 1048576, 102400),),
        comparison=Comparison(measured, "a node", emulated=True),
        imports=(ImportCost("agent", 30.0, 25.0, 20.0, 60, (("os", 1.5),)),),
    )
    series, markdown, page, *_ = write(results, tmp_path)
    text = markdown.read_text()
    assert "| guest boot and agent | 6.00 s | machine started | agent ready |" in text
    assert "| together on the node | 210.0 MiB |" in text
    assert "| agent | 30.0 ms | 25.0 ms | 20.0 ms | 60 | os 1.5 ms |" in text
    assert "emulated" in text
    assert "Sandbox start" in page.read_text()
    assert json.loads(series.read_text())["memory"][0]["pss_kib"]["qemu"] == 204800
