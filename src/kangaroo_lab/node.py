"""A node: a QEMU machine that boots the stock root with its payload disk, and commands on it."""

from __future__ import annotations

import base64
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kangaroo.errors import CommandFailed, DeadlineExceeded, Unavailable
from kangaroo.linux.process import run_sync
from kangaroo_lab import accelerator, readiness
from kangaroo_lab import network as net
from kangaroo_lab.daemon import Daemon, start, tail
from kangaroo_lab.enclosure import enclosed
from kangaroo_lab.network import Network
from kangaroo_lab.ssh import Keys

UNIT = "kangaroo-node"
_INSTALLER = """\
[Unit]
Description=Make this machine a node
Wants=dev-vdb.device sys-subsystem-net-devices-eth0.device
After=dev-vdb.device sys-subsystem-net-devices-eth0.device
After=local-fs.target systemd-modules-load.service systemd-sysctl.service
Before=ssh.service containerd.service
[Service]
Type=oneshot
RemainAfterExit=yes
StandardOutput=journal+console
ExecStart=mkdir -p /run/payload
ExecStart=mount -o ro /dev/vdb /run/payload
ExecStart=sh /run/payload/install.sh
"""
_READY_TIMEOUT_S = 300
_COPY_TIMEOUT_S = 300
_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Completed:
    """What a command said, and how it ended."""

    stdout: str
    stderr: str
    status: int


@dataclass(frozen=True, slots=True)
class Node:
    """Node `index` of a lab."""

    index: int
    network: Network
    directory: Path
    logs: Path
    keys: Keys

    @property
    def name(self) -> str:
        return f"node{self.index}"

    @property
    def address(self) -> str:
        return self.network.node(self.index)

    @property
    def console(self) -> Path:
        """The serial console's log."""
        return self.logs / f"{self.name}-console.log"

    @property
    def disk(self) -> Path:
        """What the node has changed of the stock root; it outlives the machine."""
        return self.directory / "disk.qcow2"

    @property
    def payload(self) -> Path:
        return self.directory / "payload.img"

    def exec(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 180,
        check: bool = True,
        input: str | None = None,  # noqa: A002 - the name that subprocess uses
    ) -> Completed:
        """Run `argv` as root on the node. Raises CommandFailed (with `check`), DeadlineExceeded."""
        command = self.ssh(*argv)
        return completed(command, timeout_s=timeout_s, check=check, data=input)

    def ssh(self, *remote: str, terminal: bool = False) -> list[str]:
        """argv that runs `remote` on the node."""
        return self.keys.command(self.address, *remote, terminal=terminal)

    def copy_to(self, local: Path, remote: str) -> None:
        """Copy a file, or what a directory holds, to `remote` on the node; it replaces what is
        there and removes nothing. Raises CommandFailed, DeadlineExceeded, OSError; a directory may
        be there in part then.
        """
        if local.is_dir():
            pack = ["tar", "-C", str(local), "-cf", "-", "."]
            # Modes of directories that are there stay: a temporary directory's 0700 is not for `/`.
            unpack = f"tar -C '{remote}' --no-same-owner --no-overwrite-dir -xf -"
            self._stream(pack, f"mkdir -p '{remote}' && {unpack}")
        else:
            with local.open("rb") as source:
                put = f"cat >'{remote}.new' && mv '{remote}.new' '{remote}'"
                self._feed(source, put)

    def boot(
        self, *, host_tools: Path, root: Path, memory_mib: int, accel: str
    ) -> Iterator[Daemon]:
        """Start the machine, yield its process, and wait until its services run. A disk that is
        there is that of a node that was up before. Raises DeadlineExceeded, and Unavailable where
        the machine or one of the services does not run.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self.console.unlink(missing_ok=True)  # QEMU may end before it writes one
        if not self.disk.exists():
            self._make_disk(host_tools, root)
        argv = self._argv(root, memory_mib=memory_mib, accel=accel)
        binds = {self.directory: str(self.directory), self.logs: str(self.logs)}
        command = enclosed(host_tools, argv, binds=binds, read_only={root: str(root)})
        with readiness.line_socket(self.directory / "ready.sock") as listener:
            log = self.logs / f"{self.name}-qemu.log"
            machine = start(self.name, net.inside(self.network.name, *command), log=log)
            yield machine
            try:
                require_active(readiness.lines(listener, machine, timeout_s=_READY_TIMEOUT_S))
            except (DeadlineExceeded, Unavailable) as error:
                said = f"{error.message}\nthe end of {self.console}:\n{tail(self.console)}"
                raise type(error)(said, hint=f"{log}, {self.console}") from error

    def _make_disk(self, host_tools: Path, root: Path) -> None:
        backing = root / "disk.raw"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(backing)]
        binds = {self.directory: str(self.directory)}
        command = enclosed(
            host_tools, [*create, str(self.disk)], binds=binds, read_only={root: str(root)}
        )
        run_sync(command, timeout_s=_TIMEOUT_S)

    def _argv(self, root: Path, *, memory_mib: int, accel: str) -> list[str]:
        unit = base64.b64encode(_INSTALLER.encode()).decode()
        credential = f"io.systemd.credential.binary:systemd.extra-unit.{UNIT}.service={unit}"
        disk = f"file={self.disk},if=virtio,format=qcow2,cache=unsafe,discard=unmap"
        payload = f"file={self.payload},if=virtio,format=raw,readonly=on,cache=unsafe"
        tap = f"tap,id=net,ifname={self.network.tap(self.index)},script=no,downscript=no"
        kernel = "console=ttyS0 root=/dev/vda rw net.ifnames=0 mitigations=off init_on_alloc=0"
        wants = f"systemd.show_status=false systemd.wants={UNIT}.service"
        return [
            *accelerator.ENVIRONMENT,
            *("qemu-system-x86_64", "-name", self.name, "-M", "q35"),
            *(*accelerator.ARGUMENTS[accel], "-m", str(memory_mib)),
            *("-nodefaults", "-display", "none", "-no-reboot", "-rtc", "base=utc"),
            *("-kernel", str(root / "vmlinuz"), "-initrd", str(root / "initrd.img")),
            *("-append", f"{kernel} {wants} systemd.hostname={self.name}"),
            *("-smbios", f"type=11,value={credential}"),
            *("-drive", disk, "-drive", payload),
            *(
                "-netdev",
                tap,
                "-device",
                f"virtio-net-pci,netdev=net,mac={self.network.mac(self.index)}",
            ),
            *("-device", "virtio-rng-pci"),
            *("-chardev", f"file,id=console,path={self.console}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=ready,path={self.directory}/ready.sock"),
            *("-serial", "chardev:ready"),
            *("-qmp", f"unix:{self.directory}/qmp.sock,server=on,wait=off"),
        ]

    def _stream(self, source: Sequence[str], remote: str) -> None:
        """Pipe what `source` writes into a shell command on the node."""
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(source, stdout=subprocess.PIPE, stderr=errors) as producer,
        ):
            assert producer.stdout is not None
            try:
                self._feed(producer.stdout, remote)
                producer.stdout.close()
                status = producer.wait(_TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                raise DeadlineExceeded(f"{source[0]} does not end") from error
            finally:
                producer.kill()
            # The sink may have had all that it wants before the last block's padding.
            if status not in (0, -signal.SIGPIPE):
                errors.seek(0)
                raise CommandFailed(tuple(source), status, errors.read().decode(errors="replace"))

    def _feed(self, source: IO[bytes], remote: str) -> None:
        """Give an open file to a shell command on the node."""
        sink = self.ssh("sh", "-c", remote)
        try:
            done = subprocess.run(
                sink, stdin=source, capture_output=True, check=False, timeout=_COPY_TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded(f"{self.name}: copy not done in {_COPY_TIMEOUT_S} s") from error
        if done.returncode != 0:
            raise CommandFailed(tuple(sink), done.returncode, done.stderr.decode(errors="replace"))


def require_active(lines: Iterable[str]) -> None:
    """Read what `data/node/ready.sh` writes to its end: a unit and its state a line, then `ready`.
    Raises Unavailable naming the units that are not active.
    """
    failed = []
    for line in lines:
        if line == "ready":
            break
        unit, _, state = line.partition(" ")
        if state not in ("", "active"):
            failed.append(f"{unit} is {state}")
    if failed:
        raise Unavailable(f"the node is up, but {', '.join(failed)}")


def completed(
    argv: Sequence[str], *, timeout_s: float, check: bool, data: str | None = None
) -> Completed:
    """Run `argv`, both streams kept apart. Raises CommandFailed, DeadlineExceeded."""
    try:
        done = subprocess.run(
            argv,
            input=None if data is None else data.encode(),
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeadlineExceeded(f"{' '.join(argv)}: not done within {timeout_s:g} s") from error
    stdout, stderr = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    if check and done.returncode != 0:
        raise CommandFailed(tuple(argv), done.returncode, stderr, stdout)
    return Completed(stdout, stderr, done.returncode)
