"""The main job: the example manifest rolls out, scales, goes, and leaves nothing behind."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from kangaroo_lab import evidence, manifests, rollout
from kangaroo_lab.demo import EXAMPLE, EXAMPLE_APP
from kangaroo_lab.lab import Lab
from kangaroo_lab.node import Node

pytestmark = pytest.mark.timeout(3600)

MANIFEST = Path(__file__).parents[2] / "examples" / "nas.yaml"
ROUNDS = 3
# In brackets, so that a pattern does not find the shell that runs it.
PROCESSES = "[c]ontainerd-shim-kangaroo|[q]emu-system|[v]irtiofsd"
GONE_S = 120
# What a sandbox may leave: each command lists those that exist, one a line.
TRACES = {
    "process": f"pgrep -af '{PROCESSES}' || true",
    "mount": "grep -E 'kangaroo|nas-pv-csi| nfs4? ' /proc/1/mountinfo || true",
    "tap": "ip -o link show type tun || true",
    "network namespace": "ip netns list | cut -d' ' -f1",
    "state": "ls -A /run/kangaroo/sandboxes 2>/dev/null || true",
}


def traces(node: Node) -> dict[str, set[str]]:
    """What of a sandbox exists on the node, by kind."""
    return {
        kind: set(node.exec(["sh", "-c", command]).stdout.splitlines())
        for kind, command in TRACES.items()
    }


def await_end_of_processes(node: Node) -> None:
    """The shims end a moment after their pods are gone. pidwait(1) says 1 when there are none."""
    node.exec(
        ["timeout", str(GONE_S), "pidwait", "-f", PROCESSES], timeout_s=GONE_S + 30, check=False
    )


@pytest.fixture
def manifest(lab: Lab) -> Iterator[str]:
    text = manifests.fill(MANIFEST.read_text(), lab.nas.address)
    yield text
    delete(lab, text)


def delete(lab: Lab, manifest: str) -> None:
    lab.kubectl(
        "delete",
        "-f",
        "-",
        "--ignore-not-found",
        "--cascade=foreground",
        "--timeout=280s",
        input=manifest,
        timeout_s=300,
    )
    rollout.await_gone(lab, EXAMPLE_APP)


def test_the_example_is_what_was_agreed_on() -> None:
    text = MANIFEST.read_text()
    assert text.count(manifests.SERVER_PLACEHOLDER) == 1
    for agreed in ("nasplugin.csi.alibabacloud.com", "runtimeClassName: runv", "noresvport,nolock"):
        assert agreed in text


def test_rolls_out_scales_and_goes_three_times(lab: Lab, manifest: str) -> None:
    node = lab.nodes["node1"]
    before = traces(node)
    written: dict[str, str] = {}
    for number in range(ROUNDS):
        lab.apply(manifest)
        pods = rollout.wait(lab, EXAMPLE, app=EXAMPLE_APP, replicas=2)
        assert len(pods) == 2
        for pod in pods:
            judged = evidence.passthrough_checks(evidence.observe(lab, pod))
            assert [check for check in judged if not check.holds] == []
        name, content = f"mission-{number}.txt", f"round {number} {secrets.token_hex(4)}"
        shared = evidence.share_file(lab, pods[0], pods[1], name=name, content=content)
        assert [check for check in shared if not check.holds] == []
        written[name] = content

        more = rollout.scale(lab, EXAMPLE, app=EXAMPLE_APP, replicas=4)
        assert len(more) == 4
        for pod in more:
            assert evidence.in_pod(lab, pod, f"cat /data/{name}").strip() == content
            assert evidence.node_nfs_mounts(node, pod.uid) == ()
        assert rollout.scale(lab, EXAMPLE, app=EXAMPLE_APP, replicas=0) == ()
        delete(lab, manifest)

        await_end_of_processes(node)
        now = traces(node)
        left = {kind: now[kind] - known for kind, known in before.items()}
        assert left == {kind: set() for kind in before}
        assert {name: evidence.on_the_nas(lab, name) for name in written} == written
