"""Control groups, version 2 (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import contextlib
import errno
import os
import select
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path("/sys/fs/cgroup")

_Group = TypeVar("_Group", "Scope", Path)


@dataclass(frozen=True)
class Scope:
    """A systemd scope: the unit `name` in the slice `slice_name` (man 5 systemd.scope)."""

    slice_name: str
    name: str

    @property
    def path(self) -> Path:
        """The scope's directory. A slice `a-b.slice` lies in `a.slice` (man 5 systemd.slice)."""
        return ROOT.joinpath(*_slice_parts(self.slice_name), self.name)


def parse(cgroups_path: str) -> Scope | Path:
    """What an OCI `linux.cgroupsPath` names: systemd's form `slice:prefix:name` is a scope that
    systemd must make, because it takes controllers away from the parents of a group that it does
    not know; any other is a directory below the root.

    Raises ValueError on a path that would leave the root.
    """
    if cgroups_path.count(":") == 2:
        slice_name, prefix, name = cgroups_path.split(":")
        scope = Scope(slice_name or "system.slice", f"{prefix}-{name}.scope".removeprefix("-"))
        return _checked(scope, str(scope.path.relative_to(ROOT)), cgroups_path)
    relative = cgroups_path.strip("/")
    return _checked(ROOT / relative, relative, cgroups_path)


def memory_bounded(cgroups_path: str | None) -> bool:
    """Whether the group above the one that `cgroups_path` names has a memory limit. kubelet gives a
    pod's group one when each of the pod's containers has. True when it cannot be read.
    """
    return _memory_max_above(cgroups_path) != "max"


def memory_limit(cgroups_path: str | None) -> int | None:
    """The memory limit, in bytes, of the group above the one that `cgroups_path` names; None when
    it has none, or it cannot be read.
    """
    value = _memory_max_above(cgroups_path)
    return int(value) if value.isdecimal() else None


def _memory_max_above(cgroups_path: str | None) -> str:
    try:
        group = parse(cgroups_path or "")
        above = (group if isinstance(group, Path) else group.path).parent
        return (above / "memory.max").read_text().strip()
    except (OSError, ValueError):
        return ""


def _checked(result: _Group, relative: str, cgroups_path: str) -> _Group:
    if not relative or any(part in ("", ".", "..") for part in relative.split("/")):
        raise ValueError(f"cgroup path {cgroups_path!r} is not usable")
    return result


def _slice_parts(slice_name: str) -> list[str]:
    stem = slice_name.removesuffix(".slice")
    if stem in ("", "-"):
        return []
    words = stem.split("-")
    return ["-".join(words[: count + 1]) + ".slice" for count in range(len(words))]


def create(path: Path) -> None:
    """Make the group and its parents. A group that exists is left as it is."""
    path.mkdir(parents=True, exist_ok=True)


def kill(path: Path) -> None:
    """SIGKILL everything in the group. A group that is gone is fine."""
    with contextlib.suppress(FileNotFoundError):
        (path / "cgroup.kill").write_text("1")


def remove(path: Path, *, timeout_s: float) -> None:
    """Remove the group, waiting until its last process has been reaped. A group that is gone is
    fine.

    Raises OSError (EBUSY) when processes remain after `timeout_s`.
    """
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _wait_empty(path, timeout_s)
        path.rmdir()


def _wait_empty(path: Path, timeout_s: float) -> None:
    """Wait on cgroup.events, which the kernel signals with POLLPRI when `populated` changes."""
    with (path / "cgroup.events").open("rb", buffering=0) as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        if b"populated 0" not in os.pread(events.fileno(), 4096, 0):
            poll.poll(timeout_s * 1000)
