"""Plan how a pod's interface becomes the guest's. Pure: data in, operations and the guest's
configuration out.

CNI left one interface with addresses in the pod's namespace. A tap is put beside it and every frame
that arrives at one is redirected to the other with tc (man 8 tc-mirred), so the guest can take over
the interface's MAC and addresses and the rest of the node sees no difference. The interface keeps
its addresses: they do no harm there, because no frame reaches its protocol stack, and CNI's own
checks still find them.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field

from kangaroo.errors import FailedPrecondition, Unsupported
from kangaroo.net.model import Address, Link, NamespaceState, Neighbour, Route

TAP_NAME = "kangaroo0"
GUEST_INTERFACE = "eth0"

_SCOPE_NAMES = {0: None, 200: "site", 253: "link", 254: "host"}
_ANY = {socket.AF_INET: "0.0.0.0/0", socket.AF_INET6: "::/0"}


@dataclass(frozen=True)
class SetMtu:
    """Give `interface` the MTU and bring it up."""

    interface: str
    mtu: int


@dataclass(frozen=True)
class RedirectIngress:
    """Every frame that arrives at `source` leaves through `target` instead."""

    source: str
    target: str


Operation = SetMtu | RedirectIngress


@dataclass(frozen=True)
class GuestInterface:
    """What the guest's one interface is configured with."""

    name: str
    mac: str
    mtu: int
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class GuestRoute:
    """`destination` is a prefix; `scope` is iproute2's name or None for global."""

    destination: str
    gateway: str | None
    device: str
    scope: str | None
    onlink: bool


@dataclass(frozen=True)
class GuestNeighbour:
    """A permanent neighbour entry in the guest."""

    address: str
    mac: str
    device: str


@dataclass(frozen=True)
class GuestNetwork:
    """The guest's whole network configuration."""

    interfaces: tuple[GuestInterface, ...] = ()
    routes: tuple[GuestRoute, ...] = ()
    neighbours: tuple[GuestNeighbour, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Without their prefix lengths: how servers see the guest."""
        return tuple(
            address.partition("/")[0]
            for interface in self.interfaces
            for address in interface.addresses
        )


@dataclass(frozen=True)
class NetworkPlan:
    """`operations` run in the pod's namespace, in order, once a tap `tap` is there."""

    tap: str
    operations: tuple[Operation, ...]
    guest: GuestNetwork = field(default_factory=GuestNetwork)


def plan(state: NamespaceState) -> NetworkPlan | None:
    """The plan for a pod's namespace, or None when it has no interface but loopback.

    Raises Unsupported when there is more than one interface with addresses, FailedPrecondition when
    the one there is has none or is down.
    """
    candidates = [link for link in state.links if not link.loopback and link.name != TAP_NAME]
    addressed = [link for link in candidates if _addresses(link, state)]
    if not candidates:
        return None
    if len(addressed) > 1:
        names = ", ".join(link.name for link in addressed)
        raise Unsupported(f"the pod has several network interfaces ({names}); a sandbox takes one")
    if not addressed or not addressed[0].up:
        raise FailedPrecondition(
            f"the pod's interface {(addressed or candidates)[0].name} has no address or is down",
            hint="look at the CNI configuration of the node",
        )
    link = addressed[0]
    return NetworkPlan(tap=TAP_NAME, operations=_operations(link), guest=_guest(link, state))


def _operations(link: Link) -> tuple[Operation, ...]:
    return (
        SetMtu(TAP_NAME, link.mtu),
        RedirectIngress(link.name, TAP_NAME),
        RedirectIngress(TAP_NAME, link.name),
    )


def _guest(link: Link, state: NamespaceState) -> GuestNetwork:
    addresses = tuple(f"{a.address}/{a.prefix_length}" for a in _addresses(link, state))
    interface = GuestInterface(GUEST_INTERFACE, link.mac, link.mtu, addresses)
    subnets = tuple(ipaddress.ip_interface(address).network for address in addresses)
    routes = [
        _route(route, subnets)
        for route in state.routes
        if route.link_index == link.index and not route.kernel and not _is_link_local(route)
    ]
    # A route through a gateway needs the route to that gateway first.
    routes.sort(key=lambda route: route.gateway is not None)
    neighbours = tuple(
        GuestNeighbour(entry.address, entry.mac, GUEST_INTERFACE)
        for entry in state.neighbours
        if entry.link_index == link.index
    )
    return GuestNetwork((interface,), tuple(routes), neighbours)


def _addresses(link: Link, state: NamespaceState) -> list[Address]:
    """The link's addresses; the IPv6 link-local one is left out, for the guest's kernel makes its
    own.
    """
    return [
        address
        for address in state.addresses
        if address.link_index == link.index
        and not ipaddress.ip_address(address.address).is_link_local
    ]


def _route(
    route: Route, subnets: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
) -> GuestRoute:
    reachable = route.gateway is None or any(
        ipaddress.ip_address(route.gateway) in subnet for subnet in subnets
    )
    return GuestRoute(
        destination=route.destination or _ANY[socket.AddressFamily(route.family)],
        gateway=route.gateway,
        device=GUEST_INTERFACE,
        scope=_SCOPE_NAMES.get(route.scope),
        onlink=route.onlink or not reachable,
    )


def _is_link_local(route: Route) -> bool:
    if route.destination is None:
        return False
    network = ipaddress.ip_network(route.destination, strict=False)
    return network.version == 6 and (network.is_link_local or network.is_multicast)


__all__ = [
    "GUEST_INTERFACE",
    "TAP_NAME",
    "GuestInterface",
    "GuestNeighbour",
    "GuestNetwork",
    "GuestRoute",
    "NamespaceState",
    "Neighbour",
    "NetworkPlan",
    "Operation",
    "RedirectIngress",
    "SetMtu",
    "plan",
]
