"""The input of `ip -batch`."""

from __future__ import annotations

from typing import Any

import pytest

from kangaroo.agent.network import batch
from kangaroo.errors import InvalidRequest, NotFound

MAC = "02:00:00:00:00:01"


def interface(**changes: Any) -> dict[str, Any]:
    return {"name": "eth0", "mac": MAC, "mtu": 1450, "addresses": ["10.0.0.2/24"], **changes}


def route(**changes: Any) -> dict[str, Any]:
    plain = {
        "destination": "default",
        "gateway": "10.0.0.1",
        "device": "eth0",
        "scope": None,
        "onlink": False,
    }
    return {**plain, **changes}


def test_interface_with_another_name_is_renamed_before_it_is_used() -> None:
    lines = batch([interface()], [route()], [], {MAC: "eth3"}).splitlines()
    assert lines == [
        "link set dev lo up",
        "link set dev eth3 name eth0",
        "link set dev eth0 mtu 1450 up",
        "address replace 10.0.0.2/24 dev eth0",
        "route replace default via 10.0.0.1 dev eth0",
    ]


def test_neighbours_come_before_routes_and_ipv6_addresses_skip_detection() -> None:
    neighbour = {"address": "169.254.1.1", "mac": "ee:ee:ee:ee:ee:ee", "device": "eth0"}
    onlink = route(gateway="169.254.1.1", scope="link", onlink=True)
    lines = batch(
        [interface(addresses=["fd00::2/64"])], [onlink], [neighbour], {MAC: "eth0"}
    ).splitlines()
    assert lines[2:] == [
        "address replace fd00::2/64 dev eth0 nodad",
        "neighbour replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent",
        "route replace default via 169.254.1.1 dev eth0 scope link onlink",
    ]


def test_unknown_mac_names_what_is_there() -> None:
    with pytest.raises(NotFound, match=r"02:00:00:00:00:01.*present are 02:00:00:00:00:09"):
        batch([interface()], [], [], {"02:00:00:00:00:09": "eth0"})


def test_line_break_cannot_add_a_command() -> None:
    with pytest.raises(InvalidRequest):
        batch([interface(name="eth0\nlink del eth0")], [], [], {MAC: "eth0"})
