"""What there is on a node that may belong to a pod, and the death of its parts.

This file is a test's hand on the node: it is run there (`on`), with the standard library and the
node's own `kangaroo.linux`, and answers in JSON. It judges nothing; `tests.node.invariants` does.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kangaroo.linux import mountinfo, netns

if TYPE_CHECKING:
    from kangaroo_lab.node import Node

TASKS = "/run/containerd/io.containerd.runtime.v2.task/k8s.io"
SHIM_SOCKETS = "/run/containerd/s"
SANDBOXES = "/run/kangaroo/sandboxes"
KUBELET_PODS = "/var/lib/kubelet/pods"
NAMESPACES = "/run/netns"
CNI = "/var/lib/cni"
LOGS = "/var/log/pods"
PARTS = ("shim", "qemu", "virtiofsd")
_CGROUPS = "/sys/fs/cgroup"
_TIMEOUT_S = 60
_STEP_S = 0.1  # no event tells of another's process or directory
_TAIL = 4096


def on(node: Node, verb: str, *, timeout_s: float = _TIMEOUT_S, **request: Any) -> Any:
    """Do a verb of this file on the node. Raises CommandFailed, DeadlineExceeded."""
    python = ["env", "PYTHONPATH=/opt/kangaroo/lib", "python3", "-S", "-"]
    command = [*python, verb, json.dumps(request)]
    done = node.exec(command, input=Path(__file__).read_text(), timeout_s=timeout_s)
    return json.loads(done.stdout)


# --- from here on, on the node


def census() -> dict[str, Any]:
    """Everything that pods leave marks in, by kind."""
    return {
        "bundles": list(_bundles()),
        "processes": list(_processes()),
        "mounts": list(_mounts()),
        "cgroups": [path for path, _, _ in os.walk(_CGROUPS)],
        "namespaces": _listed(NAMESPACES),
        "interfaces": _interfaces(),
        "sockets": [f"{SHIM_SOCKETS}/{name}" for name in _listed(SHIM_SOCKETS)],
        "runtime_files": _listed("/run/kangaroo"),
        "sandboxes": _listed(SANDBOXES),
        "pod_directories": _listed(KUBELET_PODS),
        "cni_results": list(_cni_results()),
        "leases": dict(_leases()),
    }


def kill(*, uid: str, part: str, unit: str = "", delay_s: float, wait_s: float) -> dict[str, Any]:
    """SIGKILL the processes `part` of the pod's newest sandbox, `delay_s` after they are there; or
    the main process of `unit`, `delay_s` after kubelet has begun with the pod. Whom it hit, and
    what the pod had reported by then.
    """
    if unit:
        begun(uid=uid, delay_s=delay_s, wait_s=wait_s)
    else:
        _await(lambda: bool(_victims(uid, part)[1]), wait_s)
        time.sleep(delay_s)
    told = reported(uid=uid)
    sandbox, pids = ("", _main_pids(unit)) if unit else _victims(uid, part)
    killed = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
    return {"sandbox": sandbox, "killed": killed, "reported": told}


def begun(*, uid: str, delay_s: float, wait_s: float) -> bool:
    """Wait until kubelet has begun with the pod, and `delay_s`. False when it never did."""
    there = _await(lambda: os.path.exists(f"{KUBELET_PODS}/{uid}"), wait_s)
    time.sleep(delay_s)
    return there


def whole(*, uid: str) -> list[str]:
    """The pod's sandboxes that have all of their processes."""
    return [
        bundle["id"]
        for bundle in _sandboxes_of(uid)
        if all(_processes_of(bundle["id"], part) for part in PARTS)
    ]


def newest(*, uid: str) -> str | None:
    """The pod's newest sandbox."""
    return next((bundle["id"] for bundle in _sandboxes_of(uid)), None)


def reported(*, uid: str) -> dict[str, int]:
    """The last number of each NAME in lines `NAME NUMBER` of the pod's container logs. The CRI's
    format is: time, stream, tag, text.
    """
    found = {}
    for path in glob.glob(f"{LOGS}/*_{uid}/*/*.log"):
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            for line in file.read().decode(errors="replace").splitlines(keepends=True):
                if match := re.fullmatch(r"\S+ stdout F (\S+) (\d+)\n", line):
                    found[match[1]] = int(match[2])
    return found


def _await(there: Callable[[], bool], wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while not (found := there()) and time.monotonic() < deadline:
        time.sleep(_STEP_S)
    return found


def _bundles() -> Iterator[dict[str, Any]]:
    """The tasks that containerd has, from what it put there for their shims."""
    for path in glob.glob(f"{TASKS}/*"):
        try:
            with open(f"{path}/config.json", "rb") as file:
                spec = json.load(file)
                made_ns = os.fstat(file.fileno()).st_mtime_ns
        except (OSError, ValueError):
            spec, made_ns = {}, 0
        notes = spec.get("annotations") or {}
        spaces = (spec.get("linux") or {}).get("namespaces") or []
        yield {
            "id": os.path.basename(path),
            "sandbox": notes.get("io.kubernetes.cri.sandbox-id", ""),
            "pod": notes.get("io.kubernetes.cri.sandbox-uid", ""),
            "kind": notes.get("io.kubernetes.cri.container-type", ""),
            "namespace": next(
                (os.path.basename(x.get("path", "")) for x in spaces if x.get("type") == "network"),
                "",
            ),
            "address": _read(f"{path}/address").strip().removeprefix("unix://"),
            "made_ns": made_ns,
        }


def _processes() -> Iterator[dict[str, Any]]:
    for pid in _pids():
        if args := _args(pid):
            group = _read(f"/proc/{pid}/cgroup").strip().removeprefix("0::")
            yield {"pid": pid, "args": args, "cgroup": group}


def _mounts() -> Iterator[dict[str, Any]]:
    """The mount tables of all mount namespaces; `holder` is a process that sees it."""
    seen = set()
    for pid in _pids():
        try:
            number = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        except OSError:
            continue
        if number in seen:
            continue
        seen.add(number)
        with contextlib.suppress(OSError):
            for entry in mountinfo.read(f"/proc/{pid}/mountinfo"):
                yield {
                    "point": entry.mount_point,
                    "fstype": entry.fstype,
                    "source": entry.source,
                    "holder": pid,
                }


def _interfaces() -> dict[str, list[str]]:
    """The network interfaces by namespace; the node's own is ""."""

    def look() -> list[str]:
        return [name for _, name in socket.if_nameindex()]

    found = {"": look()}
    for name in _listed(NAMESPACES):
        with contextlib.suppress(OSError):  # it has just gone
            found[name] = netns.run_in(f"{NAMESPACES}/{name}", look)
    return found


def _cni_results() -> Iterator[dict[str, str]]:
    """CNI's cache of what it has attached: sandbox and network namespace."""
    for path in glob.glob(f"{CNI}/results/*"):
        with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
            result = json.load(file)
            name = os.path.basename(result.get("netns") or "")
            yield {"sandbox": result.get("containerId", ""), "namespace": name}


def _leases() -> Iterator[tuple[str, str]]:
    """Addresses that host-local has given out, and the sandbox that has each."""
    for path in glob.glob(f"{CNI}/networks/*/*.*.*.*"):
        yield os.path.basename(path), _read(path).split("\n")[0].strip()


def _victims(uid: str, part: str) -> tuple[str, list[int]]:
    sandbox = newest(uid=uid)
    return (sandbox, _processes_of(sandbox, part)) if sandbox else ("", [])


def _sandboxes_of(uid: str) -> list[Mapping[str, Any]]:
    """The newest first."""
    mine = [one for one in _bundles() if one["pod"] == uid and one["kind"] == "sandbox"]
    return sorted(mine, key=lambda one: -int(one["made_ns"]))


def _processes_of(sandbox: str, part: str) -> list[int]:
    return [pid for pid in _pids() if part_of(_args(pid), sandbox) == part]


def part_of(args: list[str], sandbox: str) -> str | None:
    """Which part of the sandbox a command line is of: shim, qemu, virtiofsd, or None."""
    if args[-3:] == ["-id", sandbox, "daemon"]:
        return "shim"
    program = os.path.basename(args[0]) if args else ""
    named = any(sandbox in word for word in args)
    for part, start in (("qemu", "qemu-system"), ("virtiofsd", "virtiofsd")):
        if named and program.startswith(start):
            return part
    return None


def _main_pids(unit: str) -> list[int]:
    """None while the unit does not run: 0 would be our own process group."""
    show = ["systemctl", "show", "--value", "--property=MainPID", unit]
    said = subprocess.run(show, capture_output=True, check=True, timeout=_TIMEOUT_S).stdout
    return [pid for pid in [int(said)] if pid > 0]


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _args(pid: int) -> list[str]:
    """A process's arguments; none for a thread of the kernel and one that has ended."""
    line = _read(f"/proc/{pid}/cmdline").rstrip("\0")
    return line.split("\0") if line else []


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _listed(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


VERBS: Mapping[str, Callable[..., Any]] = {
    "census": census,
    "kill": kill,
    "begun": begun,
    "whole": whole,
    "newest": newest,
    "reported": reported,
}

if __name__ == "__main__":
    json.dump(VERBS[sys.argv[1]](**json.loads(sys.argv[2])), sys.stdout)
