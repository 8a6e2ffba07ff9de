"""The lab's network: two namespaces, a bridge, a tap per node. No packet leaves the machine.

One namespace holds the bridge, the control plane and the nodes' taps; the other the NAS, joined by
a veth pair. Pods are routed, not masqueraded: the NAS sees a guest's own address, and can tell it
from a node's. Labs beside each other have the same addresses, and namespaces of other names.
"""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from kangaroo.errors import CommandFailed
from kangaroo.linux.process import run_sync

DEFAULT_NAME = "kangaroo-lab"
# The NAS's name in the nodes' /etc/hosts; no guest knows it.
NAS_HOST_NAME = "nas.lab"
BRIDGE = "lab0"
_TIMEOUT_S = 20
_FIRST_NODE = 10
_SECOND_NAS = 250


@dataclass(frozen=True, slots=True)
class Network:
    """Addresses of everything in the lab, all derived from two ranges; `name` is the lab's own
    namespace.
    """

    name: str = DEFAULT_NAME
    hosts: str = "10.88.0.0/24"
    pods: str = "10.244.0.0/16"
    services: str = "10.96.0.0/16"

    @property
    def nas_name(self) -> str:
        """The NAS's namespace."""
        return f"{self.name}-nas"

    @property
    def namespaces(self) -> tuple[str, str]:
        return self.name, self.nas_name

    @property
    def prefix(self) -> int:
        return ipaddress.ip_network(self.hosts).prefixlen

    @property
    def gateway(self) -> str:
        """The bridge, where the control plane listens."""
        return self._host(1)

    @property
    def nas(self) -> str:
        return self._host(2)

    @property
    def second_nas(self) -> str:
        return self._host(_SECOND_NAS)

    def node(self, index: int) -> str:
        """The address of node `index`, counted from 1."""
        return self._host(_FIRST_NODE + index)

    def node_pods(self, index: int) -> str:
        """The pod addresses of node `index`: one /24 of the pod range."""
        return str(list(ipaddress.ip_network(self.pods).subnets(new_prefix=24))[index])

    def tap(self, index: int) -> str:
        return f"node{index}"

    def mac(self, index: int) -> str:
        return f"52:54:00:88:00:{_FIRST_NODE + index:02x}"

    def _host(self, number: int) -> str:
        return str(ipaddress.ip_network(self.hosts)[number])


def inside(namespace: str, *argv: str) -> list[str]:
    """`argv`, run in the network namespace."""
    return ["nsenter", f"--net=/run/netns/{namespace}", "--", *argv]


def exists(namespace: str) -> bool:
    return Path("/run/netns", namespace).exists()


def create(network: Network) -> None:
    """Both namespaces, the bridge, and the veth pair between them. Raises CommandFailed."""
    lab, nas = network.namespaces
    for namespace in (lab, nas):
        _ip("netns", "add", namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", lab, "link", "add", BRIDGE, "type", "bridge")
    _ip("-n", lab, "address", "add", f"{network.gateway}/{network.prefix}", "dev", BRIDGE)
    _ip("-n", lab, "link", "set", BRIDGE, "up")
    # From one node's pods to another's the way leads through the bridge's own address.
    run_sync(inside(lab, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1"), timeout_s=_TIMEOUT_S)
    _ip("-n", lab, "link", "add", "nas", "type", "veth", "peer", "name", "eth0", "netns", nas)
    _ip("-n", lab, "link", "set", "nas", "master", BRIDGE, "up")
    _ip("-n", nas, "address", "add", f"{network.nas}/{network.prefix}", "dev", "eth0")
    _ip("-n", nas, "link", "set", "eth0", "up")


def add_node(network: Network, index: int) -> None:
    """A tap for the node, and the way to its pods from the control plane and the NAS."""
    lab, tap = network.name, network.tap(index)
    _ip("-n", lab, "tuntap", "add", "dev", tap, "mode", "tap")
    _ip("-n", lab, "link", "set", tap, "master", BRIDGE, "up")
    for namespace in network.namespaces:
        _ip("-n", namespace, "route", "add", network.node_pods(index), "via", network.node(index))


def remove_node(network: Network, index: int) -> None:
    """Undo `add_node`. A repeat does nothing."""
    with contextlib.suppress(CommandFailed):  # what is not there
        _ip("-n", network.name, "link", "delete", network.tap(index))
    for namespace in network.namespaces:
        with contextlib.suppress(CommandFailed):
            _ip("-n", namespace, "route", "delete", network.node_pods(index))


def remove(network: Network) -> None:
    """Delete both namespaces, and all in them with them. A repeat does nothing."""
    for namespace in network.namespaces:
        if exists(namespace):
            _ip("netns", "delete", namespace)


def _ip(*arguments: str) -> None:
    run_sync(["ip", *arguments], timeout_s=_TIMEOUT_S)
