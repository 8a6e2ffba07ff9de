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


@dataclass(frozen=True)
class Address:
    """One address of a link; `scope` is rtnetlink's number (0 global, 253 link)."""

    link_index: int
    address: str
    prefix_length: int
    scope: int = 0


@dataclass(frozen=True)
class Route:
    """One unicast route of the main table. `destination` is None for a default route.

    `kernel` marks a route that the kernel made for an address; the guest's kernel makes it again.
    """

    link_index: int
    destination: str | None
    gateway: str | None
    family: int
    scope: int = 0
    onlink: bool = False
    kernel: bool = False


@dataclass(frozen=True)
class Neighbour:
    """A permanent neighbour entry."""

    link_index: int
    address: str
    mac: str


@dataclass(frozen=True)
class NamespaceState:
    """What rtnetlink shows in one network namespace."""

    links: tuple[Link, ...] = ()
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
