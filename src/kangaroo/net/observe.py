"""Read a network namespace with rtnetlink into plain data. Thin: no decisions here."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from kangaroo.net.model import Address, Link, NamespaceState, Neighbour, Route
from kangaroo.net.rtnetlink import IPRoute

_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_TABLE_MAIN = 254
_TYPE_UNICAST = 1
_NUD_PERMANENT = 0x80
_RTNH_F_ONLINK = 4


def observe(ipr: IPRoute) -> NamespaceState:
    """What the namespace of `ipr` holds now."""
    return NamespaceState(
        links=tuple(_link(message) for message in ipr.get_links()),
        addresses=tuple(_address(message) for message in ipr.get_addr()),
        routes=tuple(_routes(ipr)),
        neighbours=tuple(_neighbours(ipr)),
    )


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    flags = int(message["flags"])
    return Link(
        index=int(message["index"]),
        name=str(message.get_attr("IFLA_IFNAME")),
        mac=str(message.get_attr("IFLA_ADDRESS")),
        mtu=int(message.get_attr("IFLA_MTU")),
        kind=info.get_attr("IFLA_INFO_KIND") if info else None,
        up=bool(flags & _IFF_UP),
        loopback=bool(flags & _IFF_LOOPBACK),
    )


def _address(message: Any) -> Address:
    # On a point-to-point link IFA_ADDRESS is the peer's; IFA_LOCAL is always ours where it exists.
    peer = message.get_attr("IFA_ADDRESS")
    own = message.get_attr("IFA_LOCAL") or peer
    return Address(
        link_index=int(message["index"]),
        address=str(own),
        prefix_length=int(message["prefixlen"]),
        scope=int(message["scope"]),
        peer=str(peer) if peer and peer != own else None,
    )


def _routes(ipr: IPRoute) -> list[Route]:
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        # A kernel without IPv6 refuses the dump.
        with contextlib.suppress(OSError):
            for message in ipr.get_routes(family=family, table=_TABLE_MAIN):
                device = message.get_attr("RTA_OIF")
                if message["type"] == _TYPE_UNICAST and device is not None:
                    found.append(_route(message, int(family), int(device)))
    return found


def _route(message: Any, family: int, device: int) -> Route:
    destination = message.get_attr("RTA_DST")
    metrics = message.get_attr("RTA_METRICS")
    # RTA_VIA is a gateway of the other family: IPv4 through an IPv6 neighbour.
    via = message.get_attr("RTA_VIA")
    return Route(
        link_index=device,
        destination=f"{destination}/{message['dst_len']}" if destination else None,
        gateway=str(via["addr"]) if via else message.get_attr("RTA_GATEWAY"),
        family=family,
        scope=int(message["scope"]),
        onlink=bool(int(message["flags"]) & _RTNH_F_ONLINK),
        protocol=int(message["proto"]),
        mtu=metrics.get_attr("RTAX_MTU") if metrics else None,
        metric=message.get_attr("RTA_PRIORITY"),
        source=message.get_attr("RTA_PREFSRC"),
    )


def _neighbours(ipr: IPRoute) -> list[Neighbour]:
    return [
        Neighbour(int(m["ifindex"]), str(m.get_attr("NDA_DST")), str(m.get_attr("NDA_LLADDR")))
        for m in ipr.get_neighbours()
        if int(m["state"]) & _NUD_PERMANENT and m.get_attr("NDA_LLADDR")
    ]
