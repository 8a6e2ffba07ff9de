"""From what a CNI plugin left in the namespace to the operations and the guest's configuration."""

from __future__ import annotations

import dataclasses
import socket

import pytest

from kangaroo.errors import FailedPrecondition, Unsupported
from kangaroo.net.model import Address, Link, NamespaceState, Neighbour, Route
from kangaroo.net.plan import (
    GuestInterface,
    GuestNeighbour,
    GuestNetwork,
    GuestRoute,
    RedirectIngress,
    SetMtu,
    plan,
)

pytestmark = pytest.mark.unit

LOOPBACK = Link(1, "lo", "00:00:00:00:00:00", 65536, None, loopback=True)
VETH = Link(2, "eth0", "0a:58:0a:f4:01:02", 1450, "veth")
INET, INET6 = int(socket.AF_INET), int(socket.AF_INET6)

BRIDGE_CNI = NamespaceState(
    links=(LOOPBACK, VETH),
    addresses=(
        Address(1, "127.0.0.1", 8, 254),
        Address(2, "10.244.1.2", 24),
        Address(2, "fe80::858:aff:fef4:102", 64, 253),
    ),
    routes=(
        Route(2, None, "10.244.1.1", INET),
        Route(2, "10.244.1.0/24", None, INET, scope=253, kernel=True),
        Route(2, "fe80::/64", None, INET6, kernel=True),
        Route(2, "10.244.0.0/16", "10.244.1.1", INET),
    ),
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
        interfaces=(GuestInterface("eth0", VETH.mac, 1450, ("10.244.1.2/24",)),),
        routes=(
            GuestRoute("0.0.0.0/0", "10.244.1.1", "eth0", None, onlink=False),
            GuestRoute("10.244.0.0/16", "10.244.1.1", "eth0", None, onlink=False),
        ),
    )
    assert result.guest.addresses[0] == "10.244.1.2"


def test_gateway_outside_the_subnet_is_onlink_and_comes_after_its_route() -> None:
    # Calico: a /32 address, a link-scope route to 169.254.1.1, a default route through it.
    state = NamespaceState(
        links=(LOOPBACK, VETH),
        addresses=(Address(2, "192.168.5.9", 32),),
        routes=(
            Route(2, None, "169.254.1.1", INET),
            Route(2, "169.254.1.1/32", None, INET, scope=253),
        ),
        neighbours=(Neighbour(2, "169.254.1.1", "ee:ee:ee:ee:ee:ee"),),
    )
    result = plan(state)
    assert result is not None
    assert result.guest.routes == (
        GuestRoute("169.254.1.1/32", None, "eth0", "link", onlink=False),
        GuestRoute("0.0.0.0/0", "169.254.1.1", "eth0", None, onlink=True),
    )
    assert result.guest.neighbours == (GuestNeighbour("169.254.1.1", "ee:ee:ee:ee:ee:ee", "eth0"),)


def test_dual_stack_keeps_the_global_address_and_its_default_route() -> None:
    state = dataclasses.replace(
        BRIDGE_CNI,
        addresses=(*BRIDGE_CNI.addresses, Address(2, "fd00:1::2", 64)),
        routes=(*BRIDGE_CNI.routes, Route(2, None, "fd00:1::1", INET6)),
    )
    result = plan(state)
    assert result is not None
    assert result.guest.interfaces[0].addresses == ("10.244.1.2/24", "fd00:1::2/64")
    assert GuestRoute("::/0", "fd00:1::1", "eth0", None, onlink=False) in result.guest.routes


def test_only_loopback_means_no_network() -> None:
    assert plan(NamespaceState(links=(LOOPBACK,))) is None


def test_a_tap_of_an_earlier_try_is_not_the_pods_interface() -> None:
    tap = Link(3, "kangaroo0", "02:00:00:00:00:03", 1450, "tun")
    state = dataclasses.replace(BRIDGE_CNI, links=(*BRIDGE_CNI.links, tap))
    assert plan(state) == plan(BRIDGE_CNI)


def test_several_interfaces_are_refused_by_name() -> None:
    second = dataclasses.replace(VETH, index=3, name="net1")
    state = dataclasses.replace(
        BRIDGE_CNI,
        links=(LOOPBACK, VETH, second),
        addresses=(*BRIDGE_CNI.addresses, Address(3, "10.9.0.2", 24)),
    )
    with pytest.raises(Unsupported, match="eth0, net1"):
        plan(state)


@pytest.mark.parametrize(
    "state",
    [
        NamespaceState(links=(LOOPBACK, VETH)),
        dataclasses.replace(BRIDGE_CNI, links=(LOOPBACK, dataclasses.replace(VETH, up=False))),
    ],
    ids=["no address", "down"],
)
def test_an_unusable_interface_is_named(state: NamespaceState) -> None:
    with pytest.raises(FailedPrecondition, match="eth0"):
        plan(state)
