"""The guest's network: one `ip -batch` child does it all."""

from __future__ import annotations

import os
from typing import Any

from kangaroo.agent.children import Children
from kangaroo.errors import InvalidRequest, NotFound

_IP = "/usr/bin/ip"
_TIMEOUT_S = 30.0
_CLASS_NET = "/sys/class/net"
# Keys of a route that may be null, and ip-route(8)'s words for them.
_OPTIONAL = {"scope": "scope", "mtu": "mtu", "metric": "metric", "source": "src"}


async def configure(
    children: Children,
    *,
    interfaces: list[dict[str, Any]],
    routes: list[dict[str, Any]],
    neighbours: list[dict[str, Any]],
) -> None:
    """Rename the interfaces by their MAC and apply everything. A repeat is harmless.

    Raises NotFound for a MAC that no interface has, CommandFailed with the words of ip(8).
    """
    text = batch(interfaces, routes, neighbours, interfaces_by_mac())
    await children.run((_IP, "-batch", "-"), timeout_s=_TIMEOUT_S, content=text.encode())


def interfaces_by_mac() -> dict[str, str]:
    """The names of the interfaces there are."""
    found = {}
    for name in os.listdir(_CLASS_NET):
        with open(f"{_CLASS_NET}/{name}/address") as file:
            found[file.read().strip()] = name
    return found


def batch(
    interfaces: list[dict[str, Any]],
    routes: list[dict[str, Any]],
    neighbours: list[dict[str, Any]],
    present: dict[str, str],
) -> str:
    """The input of `ip -batch`. `present` maps MACs to the names that the interfaces have now."""
    lines = ["link set dev lo up"]
    for interface in interfaces:
        name = interface["name"]
        current = present.get(interface["mac"].lower())
        if current is None:
            raise NotFound(
                f"no interface has the address {interface['mac']}",
                hint=f"present are {', '.join(sorted(present)) or 'none'}",
            )
        if current != name:
            lines.append(f"link set dev {current} name {name}")
        lines.append(f"link set dev {name} mtu {interface['mtu']} up")
        lines.extend(_address(address, name) for address in interface["addresses"])
    lines.extend(_neighbour(neighbour) for neighbour in neighbours)
    lines.extend(_route(route) for route in routes)
    for line in lines:
        if "\n" in line:
            raise InvalidRequest("interfaces", "a line break in a name or an address")
    return "\n".join(lines) + "\n"


def _address(address: dict[str, Any], device: str) -> str:
    words = ["address", "replace", address["address"]]
    if address["peer"] is not None:
        words += ["peer", address["peer"]]
    words += ["dev", device]
    if address["scope"] is not None:
        words += ["scope", address["scope"]]
    # What there is on the link is among the routes: not every CNI plugin leaves the prefix there.
    words.append("noprefixroute")
    if ":" in address["address"]:
        # Without duplicate address detection: CNI owns the address, and a tentative one cannot be
        # used.
        words.append("nodad")
    return " ".join(words)


def _neighbour(neighbour: dict[str, Any]) -> str:
    address, mac, device = neighbour["address"], neighbour["mac"], neighbour["device"]
    return f"neighbour replace {address} lladdr {mac} dev {device} nud permanent"


def _route(route: dict[str, Any]) -> str:
    destination, gateway = route["destination"], route["gateway"]
    words = ["route", "replace", destination]
    if gateway is not None:
        other_family = ":" in gateway and ":" not in destination
        words += ["via", "inet6", gateway] if other_family else ["via", gateway]
    words += ["dev", route["device"], "proto", str(route["protocol"])]
    if route["onlink"]:
        words.append("onlink")
    for key, word in _OPTIONAL.items():
        if route[key] is not None:
            words += [word, str(route[key])]
    return " ".join(words)
