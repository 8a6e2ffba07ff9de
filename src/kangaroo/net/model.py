"""A network namespace as plain data: what `observe` returns and `plan` takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """One interface. `kind` is rtnetlink's, for example `veth`; None for a plain device."""

    index: int
    name: str
    mac: str
    mtu: int
    kind: str | None
    up: bool = True
    loopback: bool = False
    arp: bool = True


@dataclass(frozen=True)
class Address:
    """One address of a link; `scope` is rtnetlink's number (0 global, 253 link).

    On a point-to-point link the prefix is that of `peer`, the address at the other end.
    """

    link_index: int
    address: str
    prefix_length: int
    scope: int = 0
    peer: str | None = None


@dataclass(frozen=True)
class Route:
    """One unicast route of the main table. `destination` is None for a default route.

    `protocol` is rtnetlink's number of who made it (2 the kernel, for an address; 3 an
    administrator); `source` is the preferred source address, `mtu` one below the link's.
    """

    link_index: int
    destination: str | None
    gateway: str | None
    family: int
    scope: int = 0
    onlink: bool = False
    protocol: int = 3
    mtu: int | None = None
    metric: int | None = None
    source: str | None = None


@dataclass(frozen=True)
class Neighbour:
    """A permanent neighbour entry."""

    link_index: int
    address: str
    mac: str


@dataclass(frozen=True)
class Sysctl:
    """A setting of the namespace, by its path beneath /proc/sys/net; or of a link, by its name in
    the link's directory of net/ipv6/conf.
    """

    name: str
    value: str
    link_index: int | None = None


@dataclass(frozen=True)
class NamespaceState:
    """What rtnetlink and /proc/sys show in one network namespace."""

    links: tuple[Link, ...] = ()
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
