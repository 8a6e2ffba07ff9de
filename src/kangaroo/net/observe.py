"""Read a network namespace with rtnetlink and from /proc/sys into plain data. No decisions here."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kangaroo.net.model import Address, Link, NamespaceState, Neighbour, Route, Sysctl
from kangaroo.net.rtnetlink import IPRoute

_PROC_SYS_NET = Path("/proc/sys/net")
_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
_IFF_NOARP = 0x80
_TABLE_MAIN = 254
_TYPE_UNICAST = 1
_NUD_PERMANENT = 0x80
_RTNH_F_ONLINK = 4


# A new namespace has these of the node's (net/ipv4/tcp_ipv4.c, tcp_sk_init); CNI plugins set them.
_NAMESPACES = ("ipv4/tcp_congestion_control", "ipv4/tcp_rmem", "ipv4/tcp_wmem")
_INTERFACES = ("accept_ra", "disable_ipv6")


def observe(ipr: IPRoute) -> NamespaceState:
    """What the namespace of `ipr`, the calling thread's own, holds now."""
    links = tuple(_link(message) for message in ipr.get_links())
    return NamespaceState(
        links=links,
        addresses=tuple(_address(message) for message in ipr.get_addr()),
        routes=tuple(_routes(ipr)),
        neighbours=tuple(_neighbours(ipr)),
        sysctls=tuple(_sysctls(links)),
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
        arp=not flags & _IFF_NOARP,
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


def _sysctls(links: Iterable[Link]) -> Iterator[Sysctl]:
    """What the kernel has of them: without IPv6 there is nothing of an interface."""
    for name in _NAMESPACES:
        with contextlib.suppress(OSError):
            yield Sysctl(name, (_PROC_SYS_NET / name).read_text().strip())
    for link in links:
        for name in _INTERFACES:
            with contextlib.suppress(OSError):
                value = (_PROC_SYS_NET / "ipv6/conf" / link.name / name).read_text().strip()
                yield Sysctl(name, value, link.index)


def _neighbours(ipr: IPRoute) -> list[Neighbour]:
    return [
        Neighbour(int(m["ifindex"]), str(m.get_attr("NDA_DST")), str(m.get_attr("NDA_LLADDR")))
        for m in ipr.get_neighbours()
        if int(m["state"]) & _NUD_PERMANENT and m.get_attr("NDA_LLADDR")
    ]
