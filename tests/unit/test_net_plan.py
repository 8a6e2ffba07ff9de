"""From what a CNI plugin left in the namespace to the operations and the guest's configuration."""

from __future__ import annotations

import dataclasses
import socket
from typing import Any

import pytest

from kangaroo.errors import FailedPrecondition, Unsupported
from kangaroo.net.model import Address, Link, NamespaceState, Neighbour, Route, Sysctl
from kangaroo.net.plan import (
    GuestAddress,
    GuestInterface,
    GuestNeighbour,
    GuestNetwork,
    GuestRoute,
    RedirectIngress,
    SetMtu,
    plan,
)

LOOPBACK = Link(1, "lo", "00:00:00:00:00:00", 65536, None, loopback=True)
VETH = Link(2, "eth0", "0a:58:0a:f4:01:02", 1450, "veth")
INET, INET6 = int(socket.AF_INET), int(socket.AF_INET6)
KERNEL, BOOT = 2, 3
GLOBAL, LINK = 0, 253

BRIDGE_CNI = NamespaceState(
    links=(LOOPBACK, VETH),
    addresses=(
        Address(1, "127.0.0.1", 8, 254),
        Address(2, "10.244.1.2", 24),
        Address(2, "fe80::858:aff:fef4:102", 64, 253),
    ),
    routes=(
        Route(2, None, "10.244.1.1", INET),
        Route(2, "10.244.1.0/24", None, INET, scope=LINK, protocol=KERNEL, source="10.244.1.2"),
        Route(2, "fe80::/64", None, INET6, protocol=KERNEL, metric=256),
        Route(2, "10.244.0.0/16", "10.244.1.1", INET),
    ),
)


def guest_route(
    destination: str, gateway: str | None = None, *, scope: str | None = "global", **changes: Any
) -> GuestRoute:
    plain: dict[str, Any] = {"onlink": False, "protocol": BOOT}
    return GuestRoute(destination, gateway, "eth0", scope, **{**plain, **changes})


def guest_of(*, addresses: tuple[Address, ...], routes: tuple[Route, ...] = ()) -> GuestNetwork:
    result = plan(NamespaceState(links=(LOOPBACK, VETH), addresses=addresses, routes=routes))
    assert result is not None
    return result.guest


def test_settings_of_the_namespace_and_of_the_interface_are_the_guests() -> None:
    state = NamespaceState(
        links=(LOOPBACK, Link(7, "net1", VETH.mac, 1450, "veth")),
        addresses=(Address(7, "10.244.1.2", 24),),
        sysctls=(
            Sysctl("ipv4/tcp_rmem", "1 2 3"),
            Sysctl("accept_ra", "1", LOOPBACK.index),
            Sysctl("accept_ra", "0", 7),
        ),
    )
    result = plan(state)
    assert result is not None
    assert result.guest.sysctls == (
        ("net/ipv4/tcp_rmem", "1 2 3"),
        ("net/ipv6/conf/eth0/accept_ra", "0"),
    )


def test_bridge_cni() -> None:
    result = plan(BRIDGE_CNI)
    assert result is not None
    assert result.operations == (
        SetMtu("kangaroo0", 1450),
        RedirectIngress("eth0", "kangaroo0"),
        RedirectIngress("kangaroo0", "eth0"),
    )
    assert result.guest == GuestNetwork(
        interfaces=(
            GuestInterface(
                "eth0", VETH.mac, 1450, (GuestAddress("10.244.1.2/24", None, "global"),)
            ),
        ),
        routes=(
            guest_route("10.244.1.0/24", scope="link", protocol=KERNEL, source="10.244.1.2"),
            guest_route("0.0.0.0/0", "10.244.1.1"),
            guest_route("10.244.0.0/16", "10.244.1.1"),
        ),
    )
    assert result.guest.addresses[0] == "10.244.1.2"


def test_a_prefix_route_that_the_plugin_took_away_is_not_made_again() -> None:
    # CNI ptp: the prefix goes through the gateway, which alone is on the link.
    routes = (
        Route(2, None, "10.1.0.1", INET),
        Route(2, "10.1.0.0/24", "10.1.0.1", INET, source="10.1.0.5"),
        Route(2, "10.1.0.1/32", None, INET, scope=LINK, source="10.1.0.5"),
        Route(2, "fd00:1::1/128", None, INET6, metric=1024),
        Route(2, "fd00:1::/64", "fd00:1::1", INET6, metric=1024),
        Route(2, "fe80::/64", None, INET6, protocol=KERNEL, metric=256),
    )
    guest = guest_of(
        addresses=(Address(2, "10.1.0.5", 24), Address(2, "fd00:1::5", 64)), routes=routes
    )
    assert guest.routes == (
        guest_route("10.1.0.1/32", scope="link", source="10.1.0.5"),
        guest_route("fd00:1::1/128", scope=None, metric=1024),
        guest_route("0.0.0.0/0", "10.1.0.1"),
        guest_route("10.1.0.0/24", "10.1.0.1", source="10.1.0.5"),
        guest_route("fd00:1::/64", "fd00:1::1", scope=None, metric=1024),
    )


def test_a_route_keeps_its_mtu_metric_source_and_who_made_it() -> None:
    # Cilium with a tunnel: the interface has 1500, the route has what fits into the tunnel.
    routes = (
        Route(2, None, "10.0.0.1", INET, protocol=16, mtu=1450, metric=100, source="10.0.0.7"),
        Route(2, None, "10.0.0.2", INET, metric=200),
        Route(2, "10.0.0.0/24", None, INET, scope=LINK, protocol=KERNEL),
    )
    guest = guest_of(addresses=(Address(2, "10.0.0.7", 24),), routes=routes)
    assert guest.routes[1:] == (
        guest_route("0.0.0.0/0", "10.0.0.1", protocol=16, mtu=1450, metric=100, source="10.0.0.7"),
        guest_route("0.0.0.0/0", "10.0.0.2", metric=200),
    )


@pytest.mark.parametrize("source", ["10.77.0.1", "fe80::858:aff:fef4:102"])
def test_a_source_that_the_guest_does_not_have_is_left_out(source: str) -> None:
    route = dataclasses.replace(BRIDGE_CNI.routes[0], source=source)
    guest = guest_of(
        addresses=(*BRIDGE_CNI.addresses, Address(1, "10.77.0.1", 32)),
        routes=(route, BRIDGE_CNI.routes[1]),
    )
    assert [r.source for r in guest.routes] == ["10.244.1.2", None]


def test_only_what_the_kernel_makes_of_a_link_local_address_is_left_out() -> None:
    # Calico's gateway has a route of its own.
    routes = (
        Route(2, "fe80::ecee/128", None, INET6, metric=1024),
        Route(2, "fe80::1/128", None, INET6, protocol=KERNEL, metric=256),
        Route(2, "fe80::/64", None, INET6, protocol=KERNEL, metric=256),
        Route(2, "ff00::/8", None, INET6, metric=256),
        Route(2, None, "fe80::ecee", INET6, metric=1024),
    )
    guest = guest_of(addresses=(Address(2, "fd00::5", 128),), routes=routes)
    assert guest.routes == (
        guest_route("fe80::ecee/128", scope=None, metric=1024),
        guest_route("::/0", "fe80::ecee", scope=None, metric=1024),
    )


@pytest.mark.parametrize(
    ("on_link", "onlink"),
    [
        ([], True),
        ([Route(2, "10.0.0.0/24", None, INET, scope=LINK)], False),
        ([Route(2, "10.0.0.0/24", None, INET, scope=GLOBAL)], True),
        (
            [
                Route(2, "10.0.0.0/8", None, INET, scope=LINK),
                Route(2, "10.0.0.0/24", "10.3.0.1", INET),
            ],
            True,
        ),
    ],
    ids=["none", "link scope", "global scope", "behind another gateway"],
)
def test_onlink_is_added_where_the_kernel_would_not_find_the_gateway(
    on_link: list[Route], onlink: bool
) -> None:
    guest = guest_of(
        addresses=(Address(2, "10.0.0.7", 24),),
        routes=(Route(2, None, "10.0.0.1", INET), *on_link),
    )
    assert [r.onlink for r in guest.routes if r.destination == "0.0.0.0/0"] == [onlink]


def test_addresses_keep_peer_scope_and_order() -> None:
    # As listed: the kernel puts a new IPv6 address first, so the last one was the first.
    guest = guest_of(
        addresses=(
            Address(2, "169.254.9.9", 22, LINK),
            Address(2, "10.7.0.5", 32, GLOBAL, peer="10.7.0.1"),
            Address(2, "fd00::6", 64),
            Address(2, "fd00::5", 128, peer="fd00::1"),
            Address(2, "fe80::5", 64, LINK),
        )
    )
    assert guest.interfaces[0].addresses == (
        GuestAddress("169.254.9.9/22", None, "link"),
        GuestAddress("10.7.0.5", "10.7.0.1/32", "global"),
        GuestAddress("fd00::5", "fd00::1/128", None),
        GuestAddress("fd00::6/64", None, None),
    )
    assert guest.addresses == ("10.7.0.5", "fd00::5", "fd00::6", "169.254.9.9")


def test_gateway_outside_the_subnet_comes_after_its_route() -> None:
    # Calico: a /32 address, a link-scope route to 169.254.1.1, a default route through it.
    state = NamespaceState(
        links=(LOOPBACK, VETH),
        addresses=(Address(2, "192.168.5.9", 32),),
        routes=(
            Route(2, None, "169.254.1.1", INET),
            Route(2, "169.254.1.1/32", None, INET, scope=LINK),
        ),
        neighbours=(Neighbour(2, "169.254.1.1", "ee:ee:ee:ee:ee:ee"),),
    )
    result = plan(state)
    assert result is not None
    assert result.guest.routes == (
        guest_route("169.254.1.1/32", scope="link"),
        guest_route("0.0.0.0/0", "169.254.1.1"),
    )
    assert result.guest.neighbours == (GuestNeighbour("169.254.1.1", "ee:ee:ee:ee:ee:ee", "eth0"),)


def test_dual_stack_keeps_the_global_address_and_its_default_route() -> None:
    state = dataclasses.replace(
        BRIDGE_CNI,
        addresses=(*BRIDGE_CNI.addresses, Address(2, "fd00:1::2", 64)),
        routes=(
            *BRIDGE_CNI.routes,
            Route(2, "fd00:1::/64", None, INET6, protocol=KERNEL, metric=256),
            Route(2, None, "fd00:1::1", INET6, metric=1024),
        ),
    )
    result = plan(state)
    assert result is not None
    assert result.guest.addresses == ("10.244.1.2", "fd00:1::2")
    assert guest_route("::/0", "fd00:1::1", scope=None, metric=1024) in result.guest.routes


def test_only_loopback_means_no_network() -> None:
    assert plan(NamespaceState(links=(LOOPBACK,))) is None


def test_a_tap_of_an_earlier_try_is_not_the_pods_interface() -> None:
    tap = Link(3, "kangaroo0", "02:00:00:00:00:03", 1450, "tun")
    state = dataclasses.replace(BRIDGE_CNI, links=(*BRIDGE_CNI.links, tap))
    assert plan(state) == plan(BRIDGE_CNI)


@pytest.mark.parametrize(
    "address", ["10.9.0.2", "169.254.172.2"], ids=["global", "IPv4 link-local"]
)
def test_several_interfaces_are_refused_by_name(address: str) -> None:
    second = dataclasses.replace(VETH, index=3, name="net1")
    state = dataclasses.replace(
        BRIDGE_CNI,
        links=(LOOPBACK, VETH, second),
        addresses=(*BRIDGE_CNI.addresses, Address(3, address, 22)),
    )
    with pytest.raises(Unsupported, match="eth0, net1"):
        plan(state)


def test_an_interface_with_only_an_ipv6_link_local_address_is_no_second_one() -> None:
    second = dataclasses.replace(VETH, index=3, name="net1")
    state = dataclasses.replace(
        BRIDGE_CNI,
        links=(LOOPBACK, VETH, second),
        addresses=(*BRIDGE_CNI.addresses, Address(3, "fe80::1", 64, LINK)),
    )
    assert plan(state) == plan(BRIDGE_CNI)


@pytest.mark.parametrize(
    "state",
    [
        NamespaceState(links=(LOOPBACK, VETH)),
        NamespaceState(links=(LOOPBACK, Link(9, "tunl0", "", 1480, "ipip", up=False), VETH)),
        dataclasses.replace(BRIDGE_CNI, links=(LOOPBACK, dataclasses.replace(VETH, up=False))),
    ],
    ids=["no address", "a tunnel before it", "down"],
)
def test_an_unusable_interface_is_named(state: NamespaceState) -> None:
    with pytest.raises(FailedPrecondition, match="eth0"):
        plan(state)


@pytest.mark.parametrize("change", [{"arp": False}, {"mac": "00:00:00:00:00:00"}])
def test_an_interface_without_ethernet_is_refused(change: dict[str, Any]) -> None:
    link = dataclasses.replace(VETH, **change)
    with pytest.raises(Unsupported, match="eth0 is of layer 3 only"):
        plan(dataclasses.replace(BRIDGE_CNI, links=(LOOPBACK, link)))
