"""A part of a sandbox is killed: the pod recovers as Kubernetes promises; nothing stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from tests.node import pods, waiting
from tests.node.pods import PASSTHROUGH, container, pod

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.node import Node

VICTIMS = {
    "shim": " daemon",  # the last word of the long-lived one, whatever runs it
    "qemu": "qemu-system",
    "virtiofsd": "virtiofsd",
}

# Every place where a sandbox leaves a mark on the node, by the sandbox's id or its pod's uid. The
# shell that looks names
# both too, so it leaves itself out.
TRACES = r"""
sandbox=$1 uid=$2
cgroup_uid=$(echo "$uid" | tr - _)
for process in /proc/[0-9]*; do
    [ "$process" = "/proc/$$" ] && continue
    if tr '\0' ' ' 2>/dev/null < "$process/cmdline" | grep -q "$sandbox"; then
        echo "process ${process#/proc/}: $(tr '\0' ' ' < "$process/cmdline")"
    fi
done
grep -e "$sandbox" -e "$uid" /proc/self/mountinfo | sed 's/^/mount /'
find /sys/fs/cgroup -type d \( -name "*$sandbox*" -o -name "*$uid*" -o -name "*$cgroup_uid*" \)
find /run/kangaroo /run/containerd/io.containerd.runtime.v2.task -name "$sandbox" 2>/dev/null
true
"""


def victim(name: str) -> pods.Document:
    mounts = {"/data": "nas"}
    return pod(
        name,
        container("one", mounts=mounts),
        annotations=PASSTHROUGH,
        volumes=[pods.claim("nas")],
    )


@pytest.fixture(scope="module")
def space(lab: Lab) -> Iterator[pods.Space]:
    with pods.opened(lab, "crash") as space:
        space.apply(*space.nas("nas"), *map(victim, VICTIMS))
        waiting.ready(space, *VICTIMS, timeout_s=2 * waiting.START_S)
        yield space


def processes(node: Node, sandbox: str, program: str) -> list[str]:
    """The ids of the processes of `program` that name the sandbox."""
    listed = node.exec(["ps", "-e", "-ww", "-o", "pid=,args="]).stdout.splitlines()
    return [line.split()[0] for line in listed if sandbox in line and program in line]


def traces(node: Node, sandbox: str, uid: str) -> str:
    return node.exec(["sh", "-c", TRACES, "traces", sandbox, uid]).stdout


def network_namespaces(node: Node) -> set[str]:
    return set(node.exec(["ls", "/run/netns"]).stdout.split())


@pytest.mark.parametrize("part", VICTIMS)
def test_killed_part(space: pods.Space, part: str) -> None:
    node = space.node
    uid = space.uid(part)
    sandbox = space.sandbox(uid)
    assert "process" in traces(node, sandbox, uid), "the search for traces finds nothing alive"
    found = processes(node, sandbox, VICTIMS[part])
    assert found, f"no {part} for sandbox {sandbox}"
    namespaces = network_namespaces(node)

    node.exec(["kill", "-KILL", *found])

    waiting.restarted(space, part, "one")
    assert space.say(part, "mount | grep /data | grep -c nfs") == "1"
    successor = space.sandbox(uid)
    assert successor != sandbox
    assert len(network_namespaces(node)) == len(namespaces)
    space.delete(part)
    assert traces(node, sandbox, uid) == ""
    assert traces(node, successor, uid) == ""
    assert len(network_namespaces(node)) == len(namespaces) - 1


def test_deletion_leaves_nothing(space: pods.Space) -> None:
    before = network_namespaces(space.node)
    space.apply(victim("whole"))
    waiting.ready(space, "whole")
    uid = space.uid("whole")
    sandbox = space.sandbox(uid)
    shown = traces(space.node, sandbox, uid)
    for mark in ("process", "mount", "/sys/fs/cgroup", "/run/kangaroo"):
        assert mark in shown
    assert network_namespaces(space.node) - before
    space.delete("whole")
    assert traces(space.node, sandbox, uid) == ""
    assert network_namespaces(space.node) == before
