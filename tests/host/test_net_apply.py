"""A pod's interface joined to a tap, with real namespaces and real frames, and what the guest is
configured with compared with what the pod's namespace has.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kangaroo.agent import requests
from kangaroo.agent.network import batch
from kangaroo.errors import Unsupported
from kangaroo.linux import netns
from kangaroo.net import apply
from kangaroo.net.plan import plan
from kangaroo.runtime.sandbox import _network_message
from kangaroo.wire.agent_protocol import Method, encode

POD, PEER, GUEST = (f"kgt-{name}-{os.getpid()}" for name in ("pod", "peer", "guest"))
MAC = "02:00:00:00:00:05"
_VNET_HEADER = 10  # struct virtio_net_hdr
_BROADCAST = b"\xff" * 6
_ETHERTYPE = 0x88B5  # for local experiments


# What plugins leave behind on eth0.
BRIDGE = """
address add 10.1.0.5/24 dev eth0
address add fd00:1::5/64 dev eth0 nodad
route add default via 10.1.0.1
route add default via fd00:1::1
"""
PTP = """
address add 10.1.0.5/24 dev eth0
address add fd00:1::5/64 dev eth0 nodad
route delete 10.1.0.0/24 dev eth0
route delete fd00:1::/64 dev eth0
route add 10.1.0.1 dev eth0 scope link src 10.1.0.5
route add 10.1.0.0/24 via 10.1.0.1 src 10.1.0.5
route add default via 10.1.0.1 mtu 1350
route add default via 10.1.0.1 metric 900
route add fd00:1::1 dev eth0
route add fd00:1::/64 via fd00:1::1 src fd00:1::5
route add default via fd00:1::1 mtu 1340 metric 512
route add default via fd00:1::1 metric 900
"""
CALICO = """
address add 10.1.0.5/32 dev eth0
address add fd00:1::5/128 dev eth0 nodad
neighbour add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
neighbour add fe80::ecee lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
route add 169.254.1.1 dev eth0 scope link
route add default via 169.254.1.1
route add fe80::ecee dev eth0
route add default via fe80::ecee dev eth0
"""
# The kernel makes the route to an IPv6 peer some time after the address: here it is there at once.
ODD = """
address add 10.7.0.5 peer 10.7.0.1/32 dev eth0
address add 10.8.0.5/24 dev eth0
address add 10.8.0.6/24 dev eth0
address add 169.254.9.9/22 dev eth0 scope link
address add fd00:7::5 peer fd00:7::1/128 dev eth0 nodad
route replace fd00:7::1 dev eth0 proto kernel metric 256
address add fd00:8::5/64 dev eth0 nodad
address add fd00:8::6/64 dev eth0 nodad
route add default via 10.7.0.1 proto 186
route add 10.9.0.0/16 via inet6 fe80::1 dev eth0
route add 10.10.0.0/16 dev eth0 scope global
route add 10.11.0.0/16 via 10.99.0.1 dev eth0 onlink
route add 10.12.0.0/16 via 10.8.0.1 src 10.8.0.6
route add default via fd00:7::1 src fd00:8::5
"""


def ip(*words: str, content: str | None = None) -> str:
    return subprocess.run(
        ["ip", *words], check=True, capture_output=True, text=True, timeout=20, input=content
    ).stdout


def ip_json(*words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ip("-json", *words))
    return found


@pytest.fixture
def pod() -> Iterator[str]:
    """A namespace as a CNI plugin leaves it; the other end of its veth is in another namespace."""
    for name in (POD, PEER):
        ip("netns", "add", name)
    try:
        ip("-n", POD, "link", "add", "eth0", "type", "veth", "peer", "name", "host0", "netns", PEER)
        ip("-n", PEER, "link", "set", "host0", "mtu", "1400", "up")
        ip("-n", POD, "link", "set", "eth0", "mtu", "1400", "up")
        ip("-n", POD, "addr", "add", "10.99.0.2/24", "dev", "eth0")
        ip("-n", POD, "route", "add", "default", "via", "10.99.0.1")
        yield f"/run/netns/{POD}"
    finally:
        for name in (POD, PEER):
            ip("netns", "del", name)


def packet_socket() -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETHERTYPE))
    sock.bind(("host0", _ETHERTYPE))
    sock.settimeout(10)
    return sock


def read_frame(fd: int, wanted: bytes) -> None:
    """Read frames until one contains `wanted`; the kernel's own chatter may come between."""
    while select.select([fd], [], [], 10)[0]:
        if wanted in os.read(fd, 65536):
            return
    pytest.fail(f"no frame with {wanted!r} arrived")


def test_a_qdisc_of_another_program_is_left_and_named(pod: str) -> None:
    clsact = ("dev", "eth0", "clsact")
    subprocess.run(["tc", "-n", POD, "qdisc", "add", *clsact], check=True, timeout=20)
    with pytest.raises(Unsupported, match="qdisc clsact"):
        apply.connect(pod)
    assert "kangaroo0" not in ip("-n", POD, "link", "show")
    subprocess.run(["tc", "-n", POD, "qdisc", "del", *clsact], check=True, timeout=20)


def test_settings_of_the_pods_namespace_are_the_guests(pod: str) -> None:
    """Not those of the namespace that the shim is in."""

    def change() -> None:
        Path("/proc/sys/net/ipv4/tcp_rmem").write_text("4096 100000 200000")
        Path("/proc/sys/net/ipv6/conf/eth0/accept_ra").write_text("0")

    netns.run_in(pod, change)
    network = apply.connect(pod)
    assert network is not None
    network.close()
    settings = dict(network.plan.guest.sysctls)
    assert settings["net/ipv4/tcp_rmem"].split() == ["4096", "100000", "200000"]
    assert settings["net/ipv6/conf/eth0/accept_ra"] == "0"
    assert "net/ipv4/tcp_congestion_control" in settings


def test_frames_pass_both_ways_and_the_guest_gets_the_interface(pod: str) -> None:
    network = apply.connect(pod)
    assert network is not None
    try:
        guest = network.plan.guest
        assert guest.addresses[0] == "10.99.0.2"
        assert guest.interfaces[0].mtu == 1400
        assert guest.interfaces[0].mac in ip("-n", POD, "link", "show", "eth0")
        assert "mtu 1400" in ip("-n", POD, "link", "show", "kangaroo0")

        with netns.run_in(f"/run/netns/{PEER}", packet_socket) as peer:
            mac = bytes.fromhex(guest.interfaces[0].mac.replace(":", ""))
            header = mac + b"\x02\0\0\0\0\x09" + _ETHERTYPE.to_bytes(2, "big")
            peer.send(header + b"to the guest".ljust(60))
            read_frame(network.tap_fd, b"to the guest")

            frame = _BROADCAST + mac + _ETHERTYPE.to_bytes(2, "big") + b"to the node".ljust(60)
            os.write(network.tap_fd, bytes(_VNET_HEADER) + frame)
            assert b"to the node" in peer.recv(2048)
    finally:
        network.close()


def test_closing_leaves_no_tap_and_connecting_again_works(pod: str) -> None:
    for _ in range(2):
        network = apply.connect(pod)
        assert network is not None
        assert "kangaroo0" in ip("-n", POD, "link")
        network.close()
        network.close()
        assert "kangaroo0" not in ip("-n", POD, "link")


def test_a_namespace_with_only_loopback_has_no_network(pod: str) -> None:
    ip("-n", POD, "link", "del", "eth0")
    assert apply.connect(pod) is None


def test_a_namespace_that_does_not_exist() -> None:
    with pytest.raises(FileNotFoundError):
        apply.connect("/run/netns/kgt-absent")


def test_the_caller_stays_in_its_namespace(pod: str) -> None:
    before = Path("/proc/self/ns/net").readlink()
    apply.inspect(pod)
    assert Path("/proc/self/ns/net").readlink() == before


@pytest.fixture
def namespaces() -> Iterator[None]:
    """A pod's namespace without addresses and a guest's, where the interface has another name."""
    for name in (POD, PEER, GUEST):
        ip("netns", "add", name)
    try:
        for name, device, host in ((POD, "eth0", "host0"), (GUEST, "ens3", "host1")):
            peer = ("peer", "name", host, "netns", PEER)
            ip("-n", name, "link", "add", device, "address", MAC, "type", "veth", *peer)
            ip("-n", PEER, "link", "set", host, "up")
        ip("-n", POD, "link", "set", "eth0", "mtu", "1400", "up")
        yield
    finally:
        for name in (POD, PEER, GUEST):
            ip("netns", "del", name)


def configure_guest() -> None:
    """From the pod's namespace to the guest's, by everything but the connection between."""
    result = plan(apply.inspect(f"/run/netns/{POD}"))
    assert result is not None
    payload = encode(_network_message(result.guest))
    message = requests.read(Method.CONFIGURE_NETWORK, payload)
    [device] = (link["ifname"] for link in ip_json("-n", GUEST, "link") if link["address"] == MAC)
    ip("-n", GUEST, "-batch", "-", content=batch(**message, present={MAC: device}))


def network_of(name: str) -> dict[str, Any]:
    """What a namespace has, without what its kernel made of its link-local IPv6 address."""
    [link] = ip_json("-n", name, "address", "show", "dev", "eth0")
    keys = ("local", "address", "prefixlen", "scope")
    return {
        "mtu": link["mtu"],
        "addresses": [
            {key: info.get(key) for key in keys}
            for info in link["addr_info"]
            if not info["local"].startswith("fe80:")
        ],
        "routes": [
            route
            for family in ("-4", "-6")
            for route in ip_json("-n", name, family, "route", "show", "table", "main")
            if route["dst"] != "fe80::/64"
        ],
        "neighbours": ip_json("-n", name, "neighbour", "show", "nud", "permanent"),
    }


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize(
    "commands", [BRIDGE, PTP, CALICO, ODD], ids=["bridge", "ptp", "calico", "odd"]
)
def test_the_guest_has_what_the_pods_namespace_has(commands: str) -> None:
    ip("-n", POD, "-batch", "-", content=commands)
    expected = network_of(POD)
    added = sum(line.startswith("route add") for line in commands.splitlines())
    assert len(expected["routes"]) >= added
    for _ in range(2):  # a repeat is harmless
        configure_guest()
        assert network_of(GUEST) == expected


@pytest.mark.usefixtures("namespaces")
def test_a_pod_behind_the_gateway_is_not_looked_for_on_the_link() -> None:
    ip("-n", POD, "-batch", "-", content=PTP)
    configure_guest()
    for neighbour, gateway in (("10.1.0.9", "10.1.0.1"), ("fd00:1::9", "fd00:1::1")):
        [route] = ip_json("-n", GUEST, "route", "get", neighbour)
        assert route.get("gateway") == gateway
    assert " mtu 1340 " in ip("-n", GUEST, "-6", "route", "get", "fd00:2::1")


@pytest.mark.usefixtures("namespaces")
def test_a_gateway_whose_route_has_gone_is_still_one() -> None:
    commands = "route delete 10.1.0.0/24 dev eth0\nroute delete fd00:1::/64 dev eth0\n"
    ip("-n", POD, "-batch", "-", content=BRIDGE + commands)
    configure_guest()
    for neighbour, gateway in (("10.2.0.9", "10.1.0.1"), ("fd00:2::9", "fd00:1::1")):
        [route] = ip_json("-n", GUEST, "route", "get", neighbour)
        assert route.get("gateway") == gateway
