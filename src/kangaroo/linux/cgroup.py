"""Control groups, version 2 (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import contextlib
import errno
import os
import select
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def resolve(cgroups_path: str) -> Path:
    """The directory below the cgroup root that an OCI `linux.cgroupsPath` names.

    Two forms exist: a plain path, and systemd's `slice:prefix:name`, where a slice `a-b.slice` lies
    in `a.slice` (man 5 systemd.slice) and the leaf is the scope `prefix-name.scope`.

    Raises ValueError on a path that would leave the root.
    """
    if cgroups_path.count(":") == 2:
        relative = _systemd(*cgroups_path.split(":"))
    else:
        relative = cgroups_path.strip("/")
    if not relative or any(part in ("", ".", "..") for part in relative.split("/")):
        raise ValueError(f"cgroup path {cgroups_path!r} is not usable")
    return ROOT / relative


def _systemd(slice_name: str, prefix: str, name: str) -> str:
    leaf = name if name.endswith(".slice") else "-".join(filter(None, (prefix, name))) + ".scope"
    return "/".join([*_slice_parts(slice_name or "system.slice"), leaf])


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
