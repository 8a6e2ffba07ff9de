"""A pod's interface joined to a tap, with real namespaces and real frames."""

from __future__ import annotations

import os
import select
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kangaroo.linux import netns
from kangaroo.net import apply

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

POD, PEER = f"kgt-pod-{os.getpid()}", f"kgt-peer-{os.getpid()}"
_VNET_HEADER = 10  # struct virtio_net_hdr
_BROADCAST = b"\xff" * 6
_ETHERTYPE = 0x88B5  # for local experiments


def ip(*words: str) -> str:
    return subprocess.run(
        ["ip", *words], check=True, capture_output=True, text=True, timeout=20
    ).stdout


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
