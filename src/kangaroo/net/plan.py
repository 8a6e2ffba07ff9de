"""Plan how a pod's interface becomes the guest's. Pure: data in, operations and the guest's
configuration out.

CNI left one interface with addresses in the pod's namespace. A tap is put beside it and every frame
that arrives at one is redirected to the other with tc (man 8 tc-mirred), so the guest can take over
the interface's MAC and addresses and the rest of the node sees no difference. The interface keeps
its addresses: they do no harm there, because no frame reaches its protocol stack, and CNI's own
checks still find them.

Addresses and routes are carried as they are. That takes in the routes that the kernel made for
addresses, and so those that a plugin took away again (CNI's ptp) are not in the guest either. Only
what is IPv6 link-local is left to the guest's kernel, which makes its own.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

from kangaroo.errors import FailedPrecondition, Unsupported
from kangaroo.net.model import Address, Link, NamespaceState, Route

TAP_NAME = "kangaroo0"
GUEST_INTERFACE = "eth0"

_SCOPE_LINK = 253
_SCOPE_NAMES = {0: "global", 200: "site", _SCOPE_LINK: "link", 254: "host"}
_PROTOCOL_KERNEL = 2
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
class GuestAddress:
    """An address without a prefix route. The prefix length is at `peer` where there is one.

    `scope` is iproute2's name or number; None for IPv6, where the kernel knows it.
    """

    address: str
    peer: str | None = None
    scope: str | None = None


@dataclass(frozen=True)
class GuestInterface:
    """What the guest's one interface is configured with; addresses in the order of adding."""

    name: str
    mac: str
    mtu: int
    addresses: tuple[GuestAddress, ...]


@dataclass(frozen=True)
class GuestRoute:
    """`destination` is a prefix; `scope` as in GuestAddress, the rest as in Route."""

    destination: str
    gateway: str | None
    device: str
    scope: str | None
    onlink: bool
    protocol: int
    mtu: int | None = None
    metric: int | None = None
    source: str | None = None


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
    sysctls: tuple[tuple[str, str], ...] = ()  # names and values

    @property
    def addresses(self) -> tuple[str, ...]:
        """Without their prefix lengths: how servers see the guest. Those of link scope come last,
        for it reaches servers from another as long as it has one.
        """
        every = [address for interface in self.interfaces for address in interface.addresses]
        every.sort(key=lambda address: address.scope == "link")
        return tuple(address.address.partition("/")[0] for address in every)


@dataclass(frozen=True)
class NetworkPlan:
    """`operations` run in the pod's namespace, in order, once a tap `tap` is there."""

    tap: str
    operations: tuple[Operation, ...]
    guest: GuestNetwork = field(default_factory=GuestNetwork)


def plan(state: NamespaceState) -> NetworkPlan | None:
    """The plan for a pod's namespace, or None when it has no interface but loopback.

    Raises Unsupported when there is more than one interface with addresses, or one that takes no
    Ethernet frames; FailedPrecondition when the one there is has none or is down.
    """
    candidates = [link for link in state.links if not link.loopback and link.name != TAP_NAME]
    addressed = [link for link in candidates if _addresses(link, state)]
    if not candidates:
        return None
    if len(addressed) > 1:
        names = ", ".join(link.name for link in addressed)
        raise Unsupported(f"the pod has several network interfaces ({names}); a sandbox takes one")
    if not addressed or not addressed[0].up:
        # What a tunnel module puts into every namespace (tunl0) is down, and not what was meant.
        named = min(addressed or candidates, key=lambda link: not link.up)
        raise FailedPrecondition(
            f"the pod's interface {named.name} has no address or is down",
            hint="look at the CNI configuration of the node",
        )
    link = addressed[0]
    if not link.arp or set(link.mac) <= set("0:"):
        raise Unsupported(
            f"the pod's interface {link.name} is of layer 3 only (netkit, ipvlan in mode l3)",
            hint="set the CNI plugin to give pods interfaces with addresses of Ethernet",
        )
    return NetworkPlan(tap=TAP_NAME, operations=_operations(link), guest=_guest(link, state))


def _operations(link: Link) -> tuple[Operation, ...]:
    return (
        SetMtu(TAP_NAME, link.mtu),
        RedirectIngress(link.name, TAP_NAME),
        RedirectIngress(TAP_NAME, link.name),
    )


def _guest(link: Link, state: NamespaceState) -> GuestNetwork:
    addresses = _addresses(link, state)
    interface = GuestInterface(
        GUEST_INTERFACE, link.mac, link.mtu, tuple(map(_address, _in_order_of_adding(addresses)))
    )
    own = {address.address for address in addresses}
    carried = [r for r in state.routes if r.link_index == link.index and not _is_the_guests(r)]
    routes = [_route(route, own, carried) for route in carried]
    # A route through a gateway needs the route to that gateway first.
    routes.sort(key=lambda route: route.gateway is not None)
    neighbours = tuple(
        GuestNeighbour(entry.address, entry.mac, GUEST_INTERFACE)
        for entry in state.neighbours
        if entry.link_index == link.index
    )
    return GuestNetwork((interface,), tuple(routes), neighbours, tuple(_sysctls(link, state)))


def _sysctls(link: Link, state: NamespaceState) -> Iterator[tuple[str, str]]:
    for sysctl in state.sysctls:
        if sysctl.link_index is None:
            yield f"net/{sysctl.name}", sysctl.value
        elif sysctl.link_index == link.index:
            yield f"net/ipv6/conf/{GUEST_INTERFACE}/{sysctl.name}", sysctl.value


def _addresses(link: Link, state: NamespaceState) -> list[Address]:
    """The link's addresses; the IPv6 link-local one is left out, for the guest's kernel makes its
    own. One of IPv4 (169.254.0.0/16) is an address like others: no kernel makes it.
    """
    return [
        address
        for address in state.addresses
        if address.link_index == link.index and not _is_link_local(address.address)
    ]


def _in_order_of_adding(addresses: list[Address]) -> list[Address]:
    """IPv4 as listed, IPv6 from the last to the first: the kernel puts a new one before the others
    (ipv6_link_dev_addr), and which is first decides what the guest's connections come from.
    """
    ipv4 = [address for address in addresses if _version(address.address) == 4]
    ipv6 = [address for address in addresses if _version(address.address) == 6]
    return ipv4 + ipv6[::-1]


def _address(address: Address) -> GuestAddress:
    scope = _scope(address.scope) if _version(address.address) == 4 else None
    if address.peer is None:
        return GuestAddress(f"{address.address}/{address.prefix_length}", None, scope)
    return GuestAddress(address.address, f"{address.peer}/{address.prefix_length}", scope)


def _route(route: Route, own: set[str], carried: list[Route]) -> GuestRoute:
    return GuestRoute(
        destination=str(_network(route)),
        gateway=route.gateway,
        device=GUEST_INTERFACE,
        scope=_scope(route.scope) if route.family == socket.AF_INET else None,
        onlink=route.onlink or not _reaches_gateway(route, carried),
        protocol=route.protocol,
        mtu=route.mtu,
        metric=route.metric,
        # The guest's kernel refuses a source that it does not have: one on the loopback interface
        # or a link-local one.
        source=route.source if route.source in own else None,
    )


def _reaches_gateway(route: Route, carried: list[Route]) -> bool:
    """Whether the guest's kernel takes the route without `onlink`, as the pod's did once: its
    gateway is link-local, or what is on the way to it is a neighbour's (fib_check_nh_v4_gw,
    ip6_route_check_nh). The route that was there then may have gone.
    """
    if route.gateway is None:
        return True
    if _is_link_local(route.gateway):
        return True
    gateway = ipaddress.ip_address(route.gateway)
    on_the_way = [other for other in carried if gateway in _network(other)]
    if not on_the_way:
        return False
    nearest = max(on_the_way, key=lambda other: _network(other).prefixlen)
    return nearest.gateway is None and (gateway.version == 6 or nearest.scope >= _SCOPE_LINK)


def _network(route: Route) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(route.destination or _ANY[socket.AddressFamily(route.family)])


def _version(address: str) -> int:
    return ipaddress.ip_address(address).version


def _is_link_local(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return parsed.version == 6 and parsed.is_link_local


def _scope(number: int) -> str:
    return _SCOPE_NAMES.get(number, str(number))


def _is_the_guests(route: Route) -> bool:
    """Whether the guest's kernel makes the route, with its own link-local address."""
    network = _network(route)
    of_kernel = network.is_link_local and route.protocol == _PROTOCOL_KERNEL
    return network.version == 6 and (network.is_multicast or of_kernel)
