"""The dashboard and the alert rules ask for metrics and labels that the driver exports, and for no
others.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from kangaroo.csi.config import Config
from kangaroo.csi.metrics import OPERATIONS, OTHER, Metrics
from kangaroo.wire.gen import csi_pb2 as csi

CHECKOUT = Path(__file__).parents[2]
MONITORING = CHECKOUT / "deploy/monitoring"
# Prometheus' own, of every job.
OF_PROMETHEUS = {"up"}
LABELS_OF_PROMETHEUS = {"instance", "job", "le"}

_STRING = re.compile(r'"[^"]*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_SELECTOR = re.compile(r"\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_NAME = re.compile(r"\b[a-z_:][a-z0-9_:]*\b(?!\s*\()")
_WORDS = {"and", "or", "unless", "bool", "offset"}


def names(expression: str) -> tuple[set[str], set[str]]:
    """The metrics and the labels that an expression of PromQL names."""
    bare = _RANGE.sub("", _STRING.sub("", expression))
    labels = {
        word
        for listed in (*_SELECTOR.findall(bare), *_GROUPING.findall(bare))
        for word in _NAME.findall(listed)
    }
    rest = _GROUPING.sub("", _SELECTOR.sub("", bare))
    return set(_NAME.findall(rest)) - _WORDS, labels


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return document


def expressions() -> Iterator[str]:
    for rule in rules():
        yield rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            name, label = re.findall(r"\((.*), (.*)\)", variable["definition"])[0]
            yield f"max by ({label}) ({name})"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """The metrics and the labels of a driver that has had a call and has a volume."""
    directory = tmp_path_factory.mktemp("node")
    path = f"{directory}/pods/uid/volumes/kubernetes.io~nfs/data"
    (directory / "mountinfo").write_text(f"2 1 0:9 / {path} rw - nfs4 nas:/x rw,vers=4.1\n")
    (directory / "mountstats").write_text(
        f"device nas:/x mounted on {path} with fstype nfs4 statvers=1.1\n"
        "\tper-op statistics\n\tREAD: 1 1 0 0 0 0 0 0 0\n"
    )
    sandboxes = directory / "sandboxes"
    (sandboxes / "s1").mkdir(parents=True)
    volume: dict[str, Any] = {"volume_id": "nas-1", "source": "nas:/x"}
    volume |= {"node_options": [], "node_super_options": []}
    placeholder = {"path": "/elsewhere", "volume_id": "nas-1"}
    state = {"pod_uid": "uid", "volumes": [volume], "placeholders": [placeholder]}
    (sandboxes / "s1/state.json").write_text(json.dumps(state))
    config = Config(kubelet_pods_dir=f"{directory}/pods", sandboxes_dir=str(sandboxes))
    metrics = Metrics(config, proc=directory)
    metrics.started("NodeGetVolumeStats")
    request = csi.NodeGetVolumeStatsRequest(volume_path=path)
    metrics.ended("NodeGetVolumeStats", "UNAVAILABLE", 1, request, None)
    families = list(text_string_to_metric_families(asyncio.run(metrics.text()).decode()))
    samples = [sample for family in families for sample in family.samples]
    return {one.name for one in samples}, {label for one in samples for label in one.labels}


def test_names_are_found_in_expressions() -> None:
    expression = (
        'sum by (instance, le) (rate(a_total{method=~"x|up", code!="OK"}[5m])) / on (server)'
        " group_left (node) max without (pod) (b_bucket) > 0.5e3 and histogram_quantile(0.9, c)"
    )
    assert names(expression) == (
        {"a_total", "b_bucket", "c"},
        {"instance", "le", "method", "code", "server", "node", "pod"},
    )


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_what_is_asked_for_is_exported(
    expression: str, exported: tuple[set[str], set[str]]
) -> None:
    metrics, labels = names(expression)
    assert metrics
    assert metrics <= exported[0] | OF_PROMETHEUS
    assert labels <= exported[1] | LABELS_OF_PROMETHEUS
    assert expression.count("(") == expression.count(")")


_COUNTER = re.compile(r"(?:rate|increase)\((kangaroo_nfs_\w+_total)\b")
_PER_VOLUME = "topk(10, sum by (volume, where) ("
_OF_CONNECTIONS = ("requests_sent", "replies_received", "connections")


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_what_volumes_share_is_counted_once(expression: str) -> None:
    """Volumes of a superblock show the same counters, all mounts of a server its connections'."""
    for match in _COUNTER.finditer(expression):
        before = expression[: match.start()]
        if before == _PER_VOLUME:
            continue
        grouping = before[before.rindex("max ") :]
        if not match[1].removeprefix("kangaroo_nfs_").startswith(_OF_CONNECTIONS):
            assert grouping == "max without (volume, pod_uid, export) ("
        elif 'where="node"' in expression[match.end() :].partition("}")[0]:
            assert grouping == "max without (volume, pod_uid, export, superblock) ("
        else:
            assert 'where="guest"' in expression[match.end() :].partition("}")[0]
            assert grouping == "max without (volume, export, superblock) ("


def test_a_method_that_always_fails_is_not_lost_among_others() -> None:
    """kubelet asks for the figures of every volume each minute, and for a mount every other."""
    (rule,) = (rule for rule in rules() if rule["alert"] == "KangarooCsiErrors")
    assert rule["expr"].count("sum by (instance, method)") == 2


def test_rules_are_whole() -> None:
    found = rules()
    assert len(found) >= 8
    assert len({rule["alert"] for rule in found}) == len(found)
    for rule in found:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        _, labels = names(rule["expr"])
        shown = re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"]))
        assert set(shown) <= labels | {"instance"}


def test_panels_do_not_overlap_and_have_titles() -> None:
    places: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        assert panel["title"]
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & places
        places |= cells


def test_everything_exported_is_documented(exported: tuple[set[str], set[str]]) -> None:
    text = (CHECKOUT / "docs/metrics.md").read_text()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported[0]}
    ours = {name for name in families if name.startswith("kangaroo_")}
    documented = set(re.findall(r"`(kangaroo_\w+)`", text))
    assert documented == ours
    for operation in {*OPERATIONS, OTHER}:
        assert operation in text
    for rule in rules():
        assert f"`{rule['alert']}`" in text
