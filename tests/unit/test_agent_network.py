"""The input of `ip -batch`."""

from __future__ import annotations

from typing import Any

import pytest

from kangaroo.agent import requests
from kangaroo.agent.network import batch
from kangaroo.errors import InvalidRequest, NotFound
from kangaroo.wire.agent_protocol import Method, encode

MAC = "02:00:00:00:00:01"


def interface(**changes: Any) -> dict[str, Any]:
    plain = {"name": "eth0", "mac": MAC, "mtu": 1450, "addresses": [address()]}
    return {**plain, **changes}


def address(text: str = "10.0.0.2/24", **changes: Any) -> dict[str, Any]:
    return {"address": text, "peer": None, "scope": None, **changes}


def route(**changes: Any) -> dict[str, Any]:
    plain = {
        "destination": "0.0.0.0/0",
        "gateway": "10.0.0.1",
        "device": "eth0",
        "scope": None,
        "onlink": False,
        "protocol": 3,
        "mtu": None,
        "metric": None,
        "source": None,
    }
    return {**plain, **changes}


def test_interface_with_another_name_is_renamed_before_it_is_used() -> None:
    lines = batch([interface()], [route()], [], {MAC: "eth3"}).splitlines()
    assert lines == [
        "link set dev lo up",
        "link set dev eth3 name eth0",
        "link set dev eth0 mtu 1450 up",
        "address replace 10.0.0.2/24 dev eth0 noprefixroute",
        "route replace 0.0.0.0/0 via 10.0.0.1 dev eth0 proto 3",
    ]


def test_neighbours_come_before_routes_and_ipv6_addresses_skip_detection() -> None:
    neighbour = {"address": "169.254.1.1", "mac": "ee:ee:ee:ee:ee:ee", "device": "eth0"}
    onlink = route(gateway="169.254.1.1", scope="link", onlink=True)
    lines = batch(
        [interface(addresses=[address("fd00::2/64")])], [onlink], [neighbour], {MAC: "eth0"}
    ).splitlines()
    assert lines[2:] == [
        "address replace fd00::2/64 dev eth0 noprefixroute nodad",
        "neighbour replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent",
        "route replace 0.0.0.0/0 via 169.254.1.1 dev eth0 proto 3 onlink scope link",
    ]


def test_an_address_has_its_peer_and_its_scope() -> None:
    peers = interface(
        addresses=[
            address("10.0.0.2", peer="10.0.0.1/32", scope="global"),
            address("169.254.9.9/22", scope="link"),
        ]
    )
    assert batch([peers], [], [], {MAC: "eth0"}).splitlines()[2:] == [
        "address replace 10.0.0.2 peer 10.0.0.1/32 dev eth0 scope global noprefixroute",
        "address replace 169.254.9.9/22 dev eth0 scope link noprefixroute",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"mtu": 1430, "metric": 0, "source": "10.0.0.2", "protocol": 186},
            "0.0.0.0/0 via 10.0.0.1 dev eth0 proto 186 mtu 1430 metric 0 src 10.0.0.2",
        ),
        (
            {"destination": "10.0.0.0/24", "gateway": None, "scope": "global"},
            "10.0.0.0/24 dev eth0 proto 3 scope global",
        ),
        ({"gateway": "fe80::1"}, "0.0.0.0/0 via inet6 fe80::1 dev eth0 proto 3"),
        (
            {"destination": "::/0", "gateway": "fe80::1", "metric": 1024},
            "::/0 via fe80::1 dev eth0 proto 3 metric 1024",
        ),
    ],
)
def test_a_route_has_what_is_known_of_it(changes: dict[str, Any], line: str) -> None:
    lines = batch([], [route(**changes)], [], {}).splitlines()
    assert lines[1:] == [f"route replace {line}"]


@pytest.mark.parametrize("gone", ["mtu", "metric", "source", "protocol"])
def test_a_route_out_of_shape_is_refused(gone: str) -> None:
    incomplete = {key: value for key, value in route().items() if key != gone}
    for wrong in (incomplete, route(**{gone: []}), route(colour="red")):
        message = {"interfaces": [], "routes": [wrong], "neighbours": []}
        with pytest.raises(InvalidRequest, match="routes"):
            requests.read(Method.CONFIGURE_NETWORK, encode(message))


def test_unknown_mac_names_what_is_there() -> None:
    with pytest.raises(NotFound, match=r"02:00:00:00:00:01.*present are 02:00:00:00:00:09"):
        batch([interface()], [], [], {"02:00:00:00:00:09": "eth0"})


def test_line_break_cannot_add_a_command() -> None:
    with pytest.raises(InvalidRequest):
        batch([interface(name="eth0\nlink del eth0")], [], [], {MAC: "eth0"})
