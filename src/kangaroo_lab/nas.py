"""The NAS: nfs-ganesha in a namespace of its own, serving a directory of the machine.

NFS v3 and v4.0 to v4.2 over TCP. `/` is exported whole, so every directory beneath it can be
mounted by its path; `/nodeonly` refuses everyone but nodes, `/readonly` takes no writes, and
`/squashed` takes root for nobody. Stopping and partitioning it are real.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from string import Template
from typing import ClassVar

from kangaroo.linux.process import run_sync
from kangaroo_lab import data, readiness
from kangaroo_lab import network as net
from kangaroo_lab.daemon import Daemon, start, stop
from kangaroo_lab.enclosure import enclosed
from kangaroo_lab.network import Network
from kangaroo_lab.state import Store

PORT = 2049
DIRECTORIES = ("csi", "nodeonly", "readonly", "squashed")
_PORTMAPPER, _MOUNTD = 111, 20048
_INSIDE = "/srv/nas"
_CONFIG = "/run/ganesha.conf"
_READY_TIMEOUT_S = 30
_TIMEOUT_S = 20
_TABLE = "inet kangaroo"


class Failure(Enum):
    """Ways in which a server fails: a chain of the NAS's packet filter, and its rule."""

    DROPPED = ("input", "ip daddr $nas drop")
    """No packet arrives: the machine or the network is gone."""
    REFUSED = ("input", "ip daddr $nas tcp flags & (fin | rst) == 0x0 reject with tcp reset")
    """The machine is there, its services are not: connections end, and new ones are refused."""
    RESET = ("input", "ip daddr $nas tcp flags & (syn | fin | rst) == 0x0 reject with tcp reset")
    """Connections are accepted, and reset at their first byte."""
    HUNG_MOUNTD = ("output", "ip saddr $nas tcp sport $mountd tcp flags & psh == psh drop")
    """mountd accepts connections and takes requests, and never answers one."""


@dataclass(frozen=True, slots=True)
class Nas:
    """The NAS of a lab. Its processes are written down in `store`, by the names in PARTS."""

    PARTS: ClassVar = ("rpcbind", "ganesha")

    network: Network
    directory: Path
    logs: Path
    host_tools: Path
    store: Store

    @property
    def address(self) -> str:
        return self.network.nas

    @property
    def root(self) -> Path:
        """The directory of the machine that is exported as `/`."""
        return self.directory / "export"

    def start(self, *, grace: bool = False, versions: str = "3, 4") -> None:
        """Serve these versions; a repeat does nothing. Raises Unavailable, DeadlineExceeded.

        With `grace` clients of version 4 may reclaim what they held at an earlier server, and
        nobody gets anything new until they have, or until the lease of one that is gone is over.
        Without, what they held is lost, and nobody waits.
        """
        if self.running():
            return
        self._prepare(grace=grace, versions=versions)
        self._run("rpcbind", ["rpcbind", "-f", "-w"], _PORTMAPPER)
        server = [
            "ganesha.nfsd",
            "-F",
            "-L",
            "/dev/stdout",
            "-f",
            _CONFIG,
            "-p",
            "/run/ganesha.pid",
        ]
        self._run("ganesha", server, PORT)

    def stop(self) -> None:
        """End the server at once, as a failure does: clients wait for it. A repeat does nothing."""
        for name in reversed(self.PARTS):
            if daemon := self.store.daemon(name):
                stop(daemon, timeout_s=0)
                self.store.forget_daemon(name)

    def restart(self) -> None:
        """Serve everybody every version, whatever was done to it before. Raises what `start`
        raises.
        """
        self.unblock()
        self.stop()
        self.start()

    @property
    def recovery(self) -> Path:
        """The clients of version 4 that may reclaim what they held: it outlives the server, as a
        NAS's does, and lasts as long as the lab.
        """
        return self.directory / "run" / "recovery"

    def running(self) -> bool:
        daemon = self.store.daemon("ganesha")
        return daemon is not None and daemon.alive()

    def block(self, addresses: Iterable[str], *, percent: int = 100) -> None:
        """Drop every packet from and to `addresses` (clients' or networks), until `unblock`; with
        `percent` only so many, at random.
        """
        members = ", ".join(addresses)
        chance = "" if percent == 100 else f"numgen random mod 100 < {percent} "
        self._filter(
            input=f"ip saddr {{ {members} }} {chance}drop",
            output=f"ip daddr {{ {members} }} {chance}drop",
        )

    def fail(self, address: str, failure: Failure) -> None:
        """Let one of the NAS's own addresses fail, until `unblock`."""
        chain, rule = failure.value
        self._filter(**{chain: Template(rule).substitute(nas=address, mountd=_MOUNTD)})

    def unblock(self) -> None:
        """Let all packets pass again. A repeat does nothing."""
        self._nft(f"table {_TABLE}\ndelete table {_TABLE}\n")

    @contextlib.contextmanager
    def second_address(self) -> Iterator[str]:
        """Another address of the NAS, which clients (of version 3) take for another server."""
        address = f"{self.network.second_nas}/{self.network.prefix}"
        self._address("replace", address)  # one that a killed test left is as good
        try:
            yield self.network.second_nas
        finally:
            self.unblock()
            self._address("delete", address)

    def _address(self, verb: str, address: str) -> None:
        command = ("ip", "address", verb, address, "dev", "eth0")
        run_sync(net.inside(self.network.nas_name, *command), timeout_s=_TIMEOUT_S)

    def _filter(self, **chains: str) -> None:
        """In place of what is filtered now."""
        hooks = (
            f"chain {name} {{ type filter hook {name} priority 0; {rule}; }}"
            for name, rule in chains.items()
        )
        fresh = (f"table {_TABLE}", f"delete table {_TABLE}", f"table {_TABLE} {{")
        self._nft("\n".join((*fresh, *hooks, "}")))

    def _nft(self, rules: str) -> None:
        run_sync(
            net.inside(self.network.nas_name, "nft", "-f", "-"), timeout_s=_TIMEOUT_S, input=rules
        )

    def _prepare(self, *, grace: bool, versions: str) -> None:
        for name in DIRECTORIES:
            path = self.root / name
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o777)
        text = Template(data.text("nas/ganesha.conf")).substitute(
            root=_INSIDE,
            nodes=self.network.hosts,
            nfs_port=PORT,
            mount_port=_MOUNTD,
            graceless=str(not grace).lower(),
            versions=versions,
        )
        (self.directory / "ganesha.conf").write_text(text)
        self.recovery.mkdir(parents=True, exist_ok=True)

    def _run(self, name: str, argv: list[str], port: int) -> Daemon:
        files = {data.path(f"nas/{file}"): f"/etc/{file}" for file in _ETC}
        command = enclosed(
            self.host_tools,
            argv,
            # One /run for both, because ganesha registers at rpcbind's socket.
            binds={
                self.directory / "run": "/run",
                self.root: _INSIDE,
                self.recovery: "/var/lib/nfs/ganesha",
            },
            read_only={**files, self.directory / "ganesha.conf": _CONFIG},
        )
        daemon = start(
            name, net.inside(self.network.nas_name, *command), log=self.logs / f"{name}.log"
        )
        self.store.remember_daemon(daemon)
        readiness.accepts(
            self.network.nas_name, self.address, port, daemon=daemon, timeout_s=_READY_TIMEOUT_S
        )
        return daemon


# A minimal root has none of these; libtirpc looks services and protocols up by name.
_ETC = ("services", "protocols", "rpc", "hosts")
