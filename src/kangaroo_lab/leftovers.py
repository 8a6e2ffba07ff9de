"""What a lab left on the machine: processes, network namespaces, mounts. Down proves there is none.

A process belongs to a lab when its command line names the lab's directory, or when it lives in one
of the lab's network namespaces.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from kangaroo.linux import mountinfo
from kangaroo_lab import network as net
from kangaroo_lab.daemon import end
from kangaroo_lab.network import Network


def stop_strays(directory: Path, network: Network) -> None:
    """Kill what runs in the lab's namespaces or on its files and is not written down."""
    end(list(_processes(directory, network)))


def find(directory: Path, network: Network) -> list[str]:
    """One line for each thing that is still there."""
    found = [f"process {pid}: {command}" for pid, command in _processes(directory, network).items()]
    found += [f"network namespace {name}" for name in network.namespaces if net.exists(name)]
    prefix = f"{directory}/"
    for entry in mountinfo.read():
        if f"{entry.mount_point}/".startswith(prefix):
            found.append(f"mount {entry.mount_point}")
    return found


def _processes(directory: Path, network: Network) -> dict[int, str]:
    """The processes of the lab, but never this one or one that it descends from."""
    namespaces = _namespaces(network)
    marks = (f"{directory}/nodes/", f"{directory}/nas/", f"{directory}/control-plane/")
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in _ancestry():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            status = (entry / "ns/net").stat()
            inside = (status.st_dev, status.st_ino) in namespaces
            if inside or any(mark in command for mark in marks):
                found[int(entry.name)] = command.strip()
    return found


def _namespaces(network: Network) -> set[tuple[int, int]]:
    paths = (Path("/run/netns", name) for name in network.namespaces)
    return {(path.stat().st_dev, path.stat().st_ino) for path in paths if path.exists()}


def _ancestry() -> set[int]:
    """This process and those above it: a shell that names the lab's directory is not of the lab."""
    pids, pid = set(), os.getpid()
    while pid > 0 and pid not in pids:
        pids.add(pid)
        stat = Path(f"/proc/{pid}/stat").read_text()
        pid = int(stat.rpartition(")")[2].split()[1])
    return pids
