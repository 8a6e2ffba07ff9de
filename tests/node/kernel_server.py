"""The Linux kernel's own NFS server, for what the lab's NAS has not: file systems that share
blocks (CLONE), access control lists, TLS, and a server of version 4 that may fail.

It runs in a network namespace of a node, apart from the node's own network, and serves an XFS and
the node's ext4. It speaks version 4 only: version 3 would want an rpcbind of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.node import Node

ADDRESS = "192.0.2.2"
_ROOT = "/srv/kernel"  # on the node, and for its clients
WHOLE, PLAIN, TLS_ONLY = f"{_ROOT}/whole", f"{_ROOT}/ext4", f"{_ROOT}/tls"
SHARING = f"{WHOLE}/xfs"  # a file system of its own
_NAME = "kernel-nas"
_ETC = f"/etc/netns/{_NAME}"  # ip-netns(8) binds what is there over /etc
_EXPORTS = f"""
{WHOLE} *(rw,insecure,no_root_squash,no_subtree_check,fsid=3)
{SHARING} *(rw,insecure,no_root_squash,no_subtree_check)
{PLAIN} *(rw,insecure,no_root_squash,no_subtree_check,fsid=1)
{TLS_ONLY} *(rw,insecure,no_root_squash,no_subtree_check,fsid=2,xprtsec=tls)
"""
_SERVE = """
mount -t nfsd nfsd /proc/fs/nfsd
exportfs -a
rpc.nfsd --no-nfs-version 3 --grace-time 10 --lease-time 10 4
exec rpc.mountd --foreground --no-nfs-version 3
"""
# The server runs for as long as its file system nfsd is mounted, which it is for the service alone.
# Until its grace period is over it opens no file: nobody can end that without a record of clients.
_START = f"""
mkdir --parents {SHARING} {PLAIN} {TLS_ONLY} {_ETC}
truncate --size 400M {_ROOT}/xfs.img
mkfs.xfs -q {_ROOT}/xfs.img
mount -o loop {_ROOT}/xfs.img {SHARING}
ip netns add {_NAME}
ip link add {_NAME} type veth peer name eth0 netns {_NAME}
ip address add 192.0.2.1/30 dev {_NAME}
ip link set {_NAME} up
ip -n {_NAME} address add {ADDRESS}/30 dev eth0
ip -n {_NAME} link set eth0 up
ip -n {_NAME} link set lo up
ip -n {_NAME} route add default via 192.0.2.1
cat > {_ETC}/exports
modprobe nfsd
start="systemd-run --quiet --collect"
$start --unit={_NAME} ip netns exec {_NAME} sh -ec '{_SERVE}'
until ip netns exec {_NAME} ss -Hltn sport 2049 | grep -q .; do
  systemctl is-active --quiet {_NAME}
  sleep 0.2
done
server=$(systemctl show --value --property=MainPID {_NAME})
until nsenter --mount --net --target $server grep -q Y /proc/fs/nfsd/v4_end_grace; do
  systemctl is-active --quiet {_NAME}
  sleep 0.2
done
"""
# Whatever of it there is; it fails if the file system stays mounted.
_STOP = f"""
systemctl stop {_NAME}
ip netns delete {_NAME}
ip link delete {_NAME}
umount {SHARING}
rm -rf {_ROOT} {_ETC}
"""
# The handshakes of a kernel's sockets are made by a program in their network namespace. It is there
# when a socket of generic netlink (16) has joined a group, whatever that socket's number.
_TLS = f"""
[authenticate.client]
x509.truststore = {_ETC}/ca.crt
[authenticate.server]
x509.truststore = {_ETC}/ca.crt
x509.certificate = {_ETC}/{_NAME}.crt
x509.private_key = {_ETC}/{_NAME}.key
"""
_START_TLS = f"""
cat > {_ETC}/tlshd.conf
start="systemd-run --quiet --collect"
$start --unit={_NAME}-tls ip netns exec {_NAME} tlshd --stderr --config {_ETC}/tlshd.conf
$start --unit={_NAME}-client tlshd --stderr --config {_ETC}/tlshd.conf
listens='$2 == 16 && $4 != "00000000" {{ found = 1 }} END {{ exit !found }}'
until awk "$listens" /proc/net/netlink && ip netns exec {_NAME} awk "$listens" /proc/net/netlink; do
  systemctl is-active --quiet {_NAME}-tls
  systemctl is-active --quiet {_NAME}-client
  sleep 0.2
done
"""
_STOP_TLS = f"systemctl stop {_NAME}-tls {_NAME}-client"
_DROP = f"""
table inet {_NAME} {{
  chain input {{ type filter hook input priority 0; ip daddr {ADDRESS} drop; }}
}}
"""
_TIMEOUT_S = 120


@dataclass(frozen=True)
class KernelServer:
    """The server, on `node`."""

    node: Node
    address: str = ADDRESS

    def operations(self) -> dict[int, int]:
        """How often each operation of version 4 was asked for, by its number (RFC 7862)."""
        text = self._inside("cat", "/proc/net/rpc/nfsd")
        (line,) = (line for line in text.splitlines() if line.startswith("proc4ops "))
        return dict(enumerate(map(int, line.split()[2:])))

    def fail(self) -> None:
        """Let no packet in, until `recover`."""
        self._inside("nft", "-f", "-", input=_DROP)

    def recover(self) -> None:
        """Let packets in again. A repeat does nothing."""
        self._inside("nft", "destroy", "table", "inet", _NAME)

    @contextlib.contextmanager
    def tls(self, lab: Lab) -> Iterator[None]:
        """Server and node cipher what they say, where a client asks for it or an export does."""
        pki = lab.control_plane.pki
        pki.issue(_NAME, subject=_NAME, names=[f"IP:{self.address}"])
        for path in (pki.certificate("ca"), pki.certificate(_NAME), pki.key(_NAME)):
            self.node.copy_to(path, f"{_ETC}/{path.name}")
        try:
            self.node.exec(["sh", "-ec", _START_TLS], input=_TLS)
            yield
        finally:
            self.node.exec(["sh", "-c", _STOP_TLS])

    def _inside(self, *argv: str, input: str | None = None) -> str:  # noqa: A002 - as exec has it
        return self.node.exec(["ip", "netns", "exec", _NAME, *argv], input=input).stdout


@contextlib.contextmanager
def serving(node: Node) -> Iterator[KernelServer]:
    """The server, for the block. Its clients must be gone by the end."""
    try:
        node.exec(["sh", "-ec", _START], input=_EXPORTS, timeout_s=_TIMEOUT_S)
        yield KernelServer(node)
    finally:
        node.exec(["sh", "-c", _STOP], timeout_s=_TIMEOUT_S)
