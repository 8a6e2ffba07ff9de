"""What a lab left on the machine: processes, network namespaces, mounts. Down proves there is none.

A process belongs to a lab when it lives in one of the lab's network namespaces, or when it is a
program that the lab runs and its command line names the lab's directory. Others that name it are
their owner's: an editor, a pager.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path, PurePath

from kangaroo.linux import mountinfo
from kangaroo_lab import network as net
from kangaroo_lab.daemon import end
from kangaroo_lab.network import Network

# What the lab runs on its files outside its namespaces, or to enter them.
_PROGRAMS = {"bwrap", "mke2fs", "nsenter", "qemu-img", "qemu-system-x86_64", "ssh"}


def stop_strays(directory: Path, network: Network) -> None:
    """Kill the lab's processes that are not written down."""
    end(list(_processes(directory, network)))


def strangers(directory: Path) -> list[str]:
    """One line for each process that names files of the lab and is not one of its programs."""
    named = {pid: command for pid, command in _running().items() if _names(directory, command)}
    return [_line(pid, command) for pid, command in named.items() if not _is_ours(command)]


def find(directory: Path, network: Network) -> list[str]:
    """One line for each thing of the lab that is still there."""
    found = [_line(pid, command) for pid, command in _processes(directory, network).items()]
    found += [f"network namespace {name}" for name in network.namespaces if net.exists(name)]
    prefix = f"{directory}/"
    for entry in mountinfo.read():
        if f"{entry.mount_point}/".startswith(prefix):
            found.append(f"mount {entry.mount_point}")
    return found


def _processes(directory: Path, network: Network) -> dict[int, str]:
    """The processes of the lab, but never this one or one that it descends from."""
    namespaces = _namespaces(network)
    return {
        pid: command
        for pid, command in _running().items()
        if _namespace(pid) in namespaces or (_names(directory, command) and _is_ours(command))
    }


def _running() -> dict[int, str]:
    """The command lines of all processes but this one and those that it descends from."""
    ours, found = _ancestry(), {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in ours:
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = command.decode(errors="replace").strip()
    return found


def _names(directory: Path, command: str) -> bool:
    marks = (f"{directory}/nodes/", f"{directory}/nas/", f"{directory}/control-plane/")
    return any(mark in command for mark in marks)


def _is_ours(command: str) -> bool:
    return PurePath(command.partition(" ")[0]).name in _PROGRAMS


def _line(pid: int, command: str) -> str:
    return f"process {pid}: {command}"


def _namespace(pid: int) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/ns/net").stat()
        return status.st_dev, status.st_ino
    return None


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
