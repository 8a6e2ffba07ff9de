"""ssh to a node, from inside the lab's namespace, with keys that belong to the lab alone."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kangaroo.errors import CommandFailed
from kangaroo.linux.process import run_sync
from kangaroo_lab import network as net

_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Keys:
    """The user's key and the nodes' host key, in one directory; `namespace` is where nodes are."""

    directory: Path
    namespace: str

    @property
    def user(self) -> Path:
        return self.directory / "ssh-user"

    @property
    def host(self) -> Path:
        return self.directory / "ssh-host"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "ssh-known-hosts"

    def create(self) -> None:
        """Make both keys. A repeat keeps them."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for key in (self.user, self.host):
            if not key.exists():
                command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key.name]
                run_sync([*command, "-f", str(key)], timeout_s=_TIMEOUT_S)
        host_key = self.host.with_suffix(".pub").read_text()
        self.known_hosts.write_text(f"* {host_key}")

    def command(self, address: str, *remote: str, terminal: bool = False) -> list[str]:
        """argv that runs the remote argv, quoted, as root on the node at `address`.

        One connection is shared by all commands of a short while: on an emulated processor the
        handshake costs more than most commands.
        """
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "15",
            "ControlMaster": "auto",
            "ControlPath": f"{self.directory}/ssh-%h",
            "ControlPersist": "60",
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
            "ServerAliveInterval": "15",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
        }
        argv = ["ssh", "-F", "none", "-i", str(self.user), "-t" if terminal else "-T"]
        for name, value in options.items():
            argv += ["-o", f"{name}={value}"]
        return net.inside(self.namespace, *argv, f"root@{address}", "--", quoted(remote))

    def close(self, address: str) -> None:
        """End the shared connection, if there is one."""
        path = self.directory / f"ssh-{address}"
        if path.exists():
            command = ["ssh", "-F", "none", "-o", f"ControlPath={path}", "-O", "exit", address]
            with contextlib.suppress(CommandFailed):  # one that ended a moment ago is as good
                run_sync(command, timeout_s=_TIMEOUT_S)


def quoted(argv: Sequence[str]) -> str:
    """`argv` as the one string that the remote shell takes apart again."""
    return shlex.join(argv)
