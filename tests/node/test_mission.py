"""The main job: the example manifest rolls out, scales, goes, and leaves nothing behind."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.node import invariants
from tests.node.csi_driver import SOAK

from kangaroo_lab import evidence, manifests, rollout
from kangaroo_lab.demo import EXAMPLE, EXAMPLE_APP
from kangaroo_lab.lab import Lab

pytestmark = pytest.mark.timeout(3600)

MANIFEST = Path(__file__).parents[2] / "examples" / "nas.yaml"
ROUNDS, REPLICAS = (3, 4) if SOAK else (1, 3)


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
        f"--timeout={rollout.REMOVAL_TIMEOUT_S:.0f}s",
        input=manifest,
        timeout_s=rollout.REMOVAL_TIMEOUT_S + 30,
    )
    rollout.await_gone(lab, EXAMPLE_APP)


def test_the_example_is_what_was_agreed_on() -> None:
    text = MANIFEST.read_text()
    assert text.count(manifests.SERVER_PLACEHOLDER) == 1
    for agreed in ("nasplugin.csi.alibabacloud.com", "runtimeClassName: runv", "noresvport,nolock"):
        assert agreed in text


def test_rolls_out_scales_and_goes(lab: Lab, manifest: str) -> None:
    node = lab.nodes["node1"]
    before = invariants.look(lab, node)
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

        more = rollout.scale(lab, EXAMPLE, app=EXAMPLE_APP, replicas=REPLICAS)
        assert len(more) == REPLICAS
        for pod in more:
            assert evidence.in_pod(lab, pod, f"cat /data/{name}").strip() == content
            assert evidence.node_nfs_mounts(node, pod.uid) == ()
        assert rollout.scale(lab, EXAMPLE, app=EXAMPLE_APP, replicas=0) == ()
        delete(lab, manifest)

        assert invariants.await_none(lab, node, besides=before) == []
        assert {name: evidence.on_the_nas(lab, name) for name in written} == written
