"""A sandbox's state on disk: what a crash must not make us forget (docs/state.md).

`state.json` is replaced whole (temporary file, fsync, rename, fsync of the directory), so a reader
sees an old state or a new one. It holds what cannot be found out again: the processes with their
start times, the control group, and which path on the node stands for which NAS volume. Mounts are
not in it; the kernel's mount table has them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kangaroo.errors import FailedPrecondition, NotFound
from kangaroo.linux import pidfd
from kangaroo.linux.mountinfo import MountEntry
from kangaroo.wire.node_protocol import STATE_NAME

VERSION = 1

_KILL_TIMEOUT_S = 10.0
_START_TIME_FIELD = 22  # of /proc/<pid>/stat, counted from 1 (man 5 proc_pid_stat)


@dataclass(frozen=True)
class ProcessIdentity:
    """A process that cannot be confused with a later one of the same pid."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """The identity of a live process. Raises NotFound."""
        start = _start_ticks(pid)
        if start is None:
            raise NotFound(f"no process {pid}")
        return cls(pid, start)

    def alive(self) -> bool:
        """Whether this very process still exists (a zombie counts as gone)."""
        return _start_ticks(self.pid) == self.start_ticks

    def kill(self) -> None:
        """SIGKILL it and wait until the kernel has ended it. A process that is gone is fine."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # The pidfd pins the process: if the identity matches now, the signal reaches no other.
            if self.alive():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                pidfd.ended(descriptor, _KILL_TIMEOUT_S)
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class VolumeState:
    """A NAS volume that the guest has mounted, with what the node's mount table said about it.

    The node's own words are kept, not only the guest's options: another sandbox of the same pod has
    another address.
    """

    volume_id: str
    source: str
    fstype: str
    node_options: tuple[str, ...]
    node_super_options: tuple[str, ...]
    read_ahead_kib: int | None = None  # of the node's mount; None when the node did not tell


@dataclass(frozen=True)
class PlaceholderState:
    """A path on the node where a placeholder stands (`device` is its st_dev) for a directory of a
    volume.
    """

    path: str
    device: str
    volume_id: str


@dataclass(frozen=True)
class SandboxState:
    """The whole file."""

    sandbox_id: str
    pod_uid: str | None = None
    pod_namespace: str | None = None
    pod_name: str | None = None
    cgroup: str | None = None
    qemu: ProcessIdentity | None = None
    virtiofsd: ProcessIdentity | None = None
    volumes: tuple[VolumeState, ...] = ()
    placeholders: tuple[PlaceholderState, ...] = ()
    containers: tuple[str, ...] = ()

    def with_volume(self, volume: VolumeState) -> SandboxState:
        """The state with `volume` in place of one of the same id."""
        others = tuple(v for v in self.volumes if v.volume_id != volume.volume_id)
        return dataclasses.replace(self, volumes=(*others, volume))

    def with_placeholder(self, placeholder: PlaceholderState) -> SandboxState:
        """The state with `placeholder` in place of one at the same path."""
        others = tuple(p for p in self.placeholders if p.path != placeholder.path)
        return dataclasses.replace(self, placeholders=(*others, placeholder))

    def with_container(self, container_id: str) -> SandboxState:
        """The state with the container in it; a repeat changes nothing."""
        if container_id in self.containers:
            return self
        return dataclasses.replace(self, containers=(*self.containers, container_id))

    def without_container(self, container_id: str) -> SandboxState:
        """The state without the container."""
        left = tuple(name for name in self.containers if name != container_id)
        return dataclasses.replace(self, containers=left)


def volume_state(volume_id: str, entry: MountEntry, read_ahead_kib: int | None) -> VolumeState:
    """The record of a volume from the node's mount of it."""
    return VolumeState(
        volume_id=volume_id,
        source=entry.source,
        fstype=entry.fstype,
        node_options=entry.options,
        node_super_options=entry.super_options,
        read_ahead_kib=read_ahead_kib,
    )


def mount_entry(volume: VolumeState) -> MountEntry:
    """The node's mount as it was, as far as a volume is derived from it."""
    return MountEntry(
        mount_id=0,
        parent_id=0,
        device="0:0",
        root="/",
        mount_point="/",
        options=volume.node_options,
        propagation=(),
        fstype=volume.fstype,
        source=volume.source,
        super_options=volume.node_super_options,
    )


def encode(state: SandboxState) -> bytes:
    """The file's content."""
    document = {"version": VERSION, **dataclasses.asdict(state)}
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def decode(content: bytes) -> SandboxState:
    """Read what `encode` wrote. Raises FailedPrecondition on another version or shape."""
    try:
        document = json.loads(content)
        version = document.pop("version")
        if version != VERSION:
            raise FailedPrecondition(f"sandbox state has version {version}, not {VERSION}")
        document["qemu"] = _process(document["qemu"])
        document["virtiofsd"] = _process(document["virtiofsd"])
        document["volumes"] = tuple(decode_volume(v) for v in document["volumes"])
        document["placeholders"] = tuple(PlaceholderState(**p) for p in document["placeholders"])
        document["containers"] = tuple(document["containers"])
        return SandboxState(**document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FailedPrecondition(f"sandbox state cannot be read: {error!r}") from error


def decode_volume(document: dict[str, Any]) -> VolumeState:
    """One volume record. Raises TypeError or KeyError on another shape."""
    return VolumeState(
        volume_id=str(document["volume_id"]),
        source=str(document["source"]),
        fstype=str(document["fstype"]),
        node_options=tuple(document["node_options"]),
        node_super_options=tuple(document["node_super_options"]),
        read_ahead_kib=document.get("read_ahead_kib"),
    )


def load(directory: Path) -> SandboxState:
    """Read the state in `directory`. Raises NotFound, FailedPrecondition."""
    try:
        return decode((directory / STATE_NAME).read_bytes())
    except FileNotFoundError as error:
        raise NotFound(f"no sandbox state in {directory}") from error


def save(directory: Path, state: SandboxState) -> None:
    """Replace the state in `directory` durably. Raises OSError."""
    replace_file(directory / STATE_NAME, encode(state))


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write `path` so that it has either its old content or the new, also after a power cut. Raises
    OSError.
    """
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode
    )
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _process(document: dict[str, int] | None) -> ProcessIdentity | None:
    return None if document is None else ProcessIdentity(**document)


def _start_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the command name in parentheses and may contain anything.
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[_START_TIME_FIELD - 3])
