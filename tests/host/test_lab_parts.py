"""The lab's network, NAS and certificates on this machine, under names of their own."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kangaroo.errors import FailedPrecondition
from kangaroo.linux.netns import run_in
from kangaroo_lab import artefacts, daemon, nas
from kangaroo_lab import network as net
from kangaroo_lab.lab import Lab
from kangaroo_lab.nas import Nas
from kangaroo_lab.network import Network
from kangaroo_lab.pki import Pki
from kangaroo_lab.state import Shape, Store

pytestmark = [pytest.mark.host, pytest.mark.timeout(300)]

NETWORK = Network(name="kangaroo-t", hosts="10.87.0.0/24", pods="10.243.0.0/16")


@pytest.fixture
def network() -> Iterator[Network]:
    """The lab's network beside a lab that may be up: other namespaces, other addresses."""
    net.remove(NETWORK)
    net.create(NETWORK)
    yield NETWORK
    net.remove(NETWORK)
    assert not any(net.exists(name) for name in NETWORK.namespaces)


@pytest.fixture
def server(network: Network, tmp_path: Path) -> Iterator[Nas]:
    one = Nas(network, tmp_path, tmp_path / "logs", artefacts.host_tools(), Store(tmp_path))
    one.start()
    yield one
    one.stop()


def answers(server: Nas, *, timeout_s: float = 2) -> bool:
    """Whether the NAS answers an NFS v3 NULL call (RFC 5531) from the lab's namespace."""
    body = b"".join(n.to_bytes(4, "big") for n in (1, 0, 2, 100003, 3, 0, 0, 0, 0, 0))
    call = (0x80000000 | len(body)).to_bytes(4, "big") + body

    def ask() -> bool:
        try:
            with socket.create_connection((server.address, nas.PORT), timeout_s) as connection:
                connection.settimeout(timeout_s)
                connection.sendall(call)
                return connection.recv(64)[4:8] == body[:4]
        except OSError:
            return False

    return run_in(f"/run/netns/{server.network.name}", ask)


def routes(namespace: str) -> str:
    command = ["ip", "-n", namespace, "route"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_pods_are_routed_by_their_node(network: Network) -> None:
    net.add_node(network, 1)
    net.add_node(network, 2)
    for namespace in network.namespaces:
        for index in (1, 2):
            expected = f"{network.node_pods(index)} via {network.node(index)}"
            assert expected in routes(namespace)
        assert "default" not in routes(namespace)


def test_a_node_is_removed_and_added_again(network: Network) -> None:
    net.add_node(network, 1)
    for _ in range(2):
        net.add_node(network, 2)
        net.remove_node(network, 2)
        net.remove_node(network, 2)
    for namespace in network.namespaces:
        assert network.node_pods(1) in routes(namespace)
        assert network.node_pods(2) not in routes(namespace)


def test_packets_pass_between_nodes(network: Network) -> None:
    switch = Path("/proc/sys/net/ipv4/ip_forward")
    assert run_in(f"/run/netns/{network.name}", switch.read_text).strip() == "1"


def test_removing_twice_is_fine(network: Network) -> None:
    net.remove(network)
    net.remove(network)


def test_a_lab_that_ended_is_cleaned_before_the_next(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab.open(tmp_path)
    lab.store.shape = Shape(nodes=2, network=network)
    part = daemon.start("etcd", ["sleep", "300"], log=lab.logs / "etcd.log")
    lab.store.remember_daemon(part)
    (tmp_path / "nodes").mkdir()
    found = []
    monkeypatch.setattr(
        Lab, "_up", lambda lab, *_: found.extend([lab.store.shape, net.exists(network.name)])
    )
    try:
        with pytest.raises(FailedPrecondition, match="half up"):
            lab.up()
        assert not lab.ended()
    finally:
        daemon.stop(part, timeout_s=0)
    assert lab.ended()
    assert lab.up() is True
    assert found == [None, False]
    assert not (tmp_path / "nodes").exists()
    assert not net.exists(network.nas_name)


def test_the_nas_serves_stops_and_starts_again(server: Nas) -> None:
    assert server.running()
    assert answers(server)
    assert (server.root / "csi").is_dir()
    server.start()  # a repeat does nothing
    server.stop()
    server.stop()
    assert not answers(server)
    server.start()
    assert answers(server)


def test_a_restarted_nas_serves_everybody_every_version(server: Nas) -> None:
    server.stop()
    server.start(versions="4")
    server.block([NETWORK.gateway])
    assert not answers(server, timeout_s=0.5)
    server.restart()
    assert answers(server)


def test_a_second_address_that_a_killed_test_left_is_no_error(server: Nas) -> None:
    server.second_address().__enter__()
    with server.second_address():
        pass
    command = ["ip", "-n", NETWORK.nas_name, "address", "show", "dev", "eth0"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert NETWORK.second_nas not in shown


def test_a_blocked_client_gets_no_packet_through(server: Nas) -> None:
    server.block([NETWORK.gateway, NETWORK.node_pods(1)])
    assert not answers(server, timeout_s=0.5)
    server.unblock()
    server.unblock()
    assert answers(server)


def test_certificates_are_signed_for_their_names(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    pki.create_authority()
    pki.issue("node", subject="system:node:n", organisation="system:nodes", names=["IP:10.0.0.1"])
    before = pki.certificate("node").read_bytes()
    pki.issue("node", subject="other")
    assert pki.certificate("node").read_bytes() == before
    authority, certificate = str(pki.certificate("ca")), str(pki.certificate("node"))
    verify = ["openssl", "verify", "-verify_ip", "10.0.0.1", "-CAfile", authority, certificate]
    assert "OK" in subprocess.run(verify, capture_output=True, text=True, check=True).stdout
    other = [argument.replace("10.0.0.1", "10.0.0.2") for argument in verify]
    assert subprocess.run(other, capture_output=True, check=False).returncode != 0
    assert pki.directory.stat().st_mode & 0o077 == 0
