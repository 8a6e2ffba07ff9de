"""IPv6 beside IPv4, for as long as a test needs it: NAS, nodes and new pods get unique local
addresses.

A lab has IPv4 only otherwise. The nodes' CNI configuration is rewritten, which containerd watches,
so pods that start meanwhile have an address of either family.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kangaroo.linux.process import run_sync
from kangaroo_lab import network as net

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.network import Network
    from kangaroo_lab.node import Node

NAS = "fd88::2"
_GATEWAY = "fd88::1"
_PREFIX = 64
_FORWARD = "net.ipv6.conf.all.forwarding=1"
_CNI = "/etc/cni/net.d/10-kangaroo.conflist"
_TIMEOUT_S = 20


@contextlib.contextmanager
def dual_stack(lab: Lab) -> Iterator[str]:
    """IPv6 in the lab until the block ends; yields the NAS's address. Pods that have IPv6 must be
    gone by then. Raises CommandFailed.
    """
    network = lab.shape.network
    with contextlib.ExitStack() as undo:
        for namespace, device, address in _addresses(network):
            undo.enter_context(_address(namespace, device, address))
        run_sync(net.inside(network.name, "sysctl", "-q", "-w", _FORWARD), timeout_s=_TIMEOUT_S)
        for node in lab.nodes.values():
            for namespace in network.namespaces:
                undo.enter_context(_route(namespace, _pods(node), _address_of(node)))
            undo.enter_context(_node(node))
        yield NAS


def with_ipv6(configuration: str, *pods: str) -> str:
    """A CNI configuration list whose first plugin gives addresses of these ranges as its only ones
    of IPv6, or none. Pure.
    """
    document: dict[str, Any] = json.loads(configuration)
    ipam = document["plugins"][0]["ipam"]
    ranges = [each for each in ipam["ranges"] if ":" not in each[0]["subnet"]]
    routes = [each for each in ipam["routes"] if ":" not in each["dst"]]
    ipam["ranges"] = [*ranges, *([{"subnet": each}] for each in pods)]
    ipam["routes"] = [*routes, *([{"dst": "::/0"}] if pods else [])]
    return json.dumps(document, indent=2)


def _addresses(network: Network) -> tuple[tuple[str, str, str], ...]:
    return ((network.name, net.BRIDGE, _GATEWAY), (network.nas_name, "eth0", NAS))


def _address_of(node: Node) -> str:
    return f"fd88::1:{node.index}"


def _pods(node: Node) -> str:
    return f"fd44:0:0:{node.index}::/{_PREFIX}"


@contextlib.contextmanager
def _address(namespace: str, device: str, address: str) -> Iterator[None]:
    where = ["dev", device]
    _ip(namespace, "address", "replace", f"{address}/{_PREFIX}", *where, "nodad")
    try:
        yield
    finally:
        _ip(namespace, "address", "delete", f"{address}/{_PREFIX}", *where)


@contextlib.contextmanager
def _route(namespace: str, pods: str, via: str) -> Iterator[None]:
    _ip(namespace, "route", "replace", pods, "via", via)
    try:
        yield
    finally:
        _ip(namespace, "route", "delete", pods)


@contextlib.contextmanager
def _node(node: Node) -> Iterator[None]:
    address = [f"{_address_of(node)}/{_PREFIX}", "dev", "eth0"]
    configuration = node.exec(["cat", _CNI]).stdout
    node.exec(["ip", "-6", "address", "replace", *address, "nodad"])
    node.exec(["ip", "-6", "route", "replace", "default", "via", _GATEWAY])
    node.exec(["sysctl", "-q", "-w", _FORWARD])
    _write(node, with_ipv6(configuration, _pods(node)))
    try:
        yield
    finally:
        _write(node, with_ipv6(configuration))
        node.exec(["ip", "-6", "address", "flush", "dev", "cni0", "scope", "global"], check=False)
        node.exec(["ip", "-6", "route", "delete", "default", "via", _GATEWAY])
        node.exec(["ip", "-6", "address", "delete", *address])


def _write(node: Node, configuration: str) -> None:
    """By a rename: containerd sees the old or the new."""
    script = f"cat > {_CNI}.new && mv {_CNI}.new {_CNI}"
    node.exec(["sh", "-c", script], input=configuration)


def _ip(namespace: str, *arguments: str) -> None:
    run_sync(["ip", "-n", namespace, "-6", *arguments], timeout_s=_TIMEOUT_S)
