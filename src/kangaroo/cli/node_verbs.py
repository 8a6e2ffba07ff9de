"""`kangaroo volumes` and `kangaroo sandboxes`: what runs on this node. `kangaroo end-sandboxes`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kangaroo.errors import FailedPrecondition

if TYPE_CHECKING:
    from kangaroo.cli.node_view import Places, SandboxView, VolumeView

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_TIMEOUT_S = 5.0
_END_TIMEOUT_S = 110.0


def register(subparsers: Any) -> None:
    """Add the verbs to the command line."""
    for name, run, text in (
        (
            "volumes",
            _volumes,
            "list the NAS volumes of this node's pods, and where each is mounted",
        ),
        ("sandboxes", _sandboxes, "list the sandboxes of this node, and their processes"),
    ):
        parser = subparsers.add_parser(name, help=text)
        parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
        _add_options(parser, _TIMEOUT_S, "how long a guest or a shim is waited for")
        parser.set_defaults(run=run)
    parser = subparsers.add_parser(
        "end-sandboxes",
        help="end all pods of the runtime, durably, as the node goes down",
        description="End all pods of the runtime on this node: guests write back what the pods left"
        " unwritten. kubelet starts them anew, unless it was stopped before, as"
        " kangaroo-sandboxes.service has it.",
    )
    _add_options(parser, _END_TIMEOUT_S, "how long they may take")
    parser.set_defaults(run=_end_sandboxes)


def _add_options(parser: argparse.ArgumentParser, timeout_s: float, meaning: str) -> None:
    parser.add_argument(
        "--timeout",
        type=float,
        default=timeout_s,
        metavar="SECONDS",
        help=f"{meaning} (default: %(default)g)",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the runtime's configuration")


def _volumes(arguments: argparse.Namespace) -> None:
    from kangaroo.cli import node_view

    views = asyncio.run(node_view.volumes(_places(arguments.config), arguments.timeout))
    if arguments.json:
        print(json.dumps([volume_document(view) for view in views], indent=2))
    else:
        print(table(_VOLUME_HEADINGS, map(_volume_row, views)))


def _sandboxes(arguments: argparse.Namespace) -> None:
    from kangaroo.cli import node_view

    views = asyncio.run(node_view.sandboxes(_places(arguments.config), arguments.timeout))
    if arguments.json:
        print(json.dumps([sandbox_document(view) for view in views], indent=2))
    else:
        print(table(_SANDBOX_HEADINGS, map(_sandbox_row, views)))


def _end_sandboxes(arguments: argparse.Namespace) -> None:
    from kangaroo.runtime.ending import end_all

    root = _places(arguments.config).sandboxes
    for sandbox, seconds in end_all(root, arguments.timeout):
        print(f"ended {sandbox} in {seconds:.1f} s", flush=True)


def _places(config: Path | None) -> Places:
    from kangaroo.cli.node_view import Places
    from kangaroo.runtime import config as runtime_config

    if os.geteuid() != 0:
        raise FailedPrecondition("the state of sandboxes is only for root to read")
    loaded = runtime_config.load(config or runtime_config.DEFAULT_PATH)
    return Places(sandboxes=loaded.state_root, pods=loaded.kubelet_root / "pods")


def volume_document(view: VolumeView) -> dict[str, Any]:
    """One volume for `--json`."""
    volume = view.volume
    return {
        "pod": {"uid": view.pod.uid, "namespace": view.pod.namespace, "name": view.pod.name},
        "volume": volume.volume,
        "volume_handle": volume.volume_handle,
        "driver": volume.driver,
        "where": view.where,
        "server": volume.server,
        "export": volume.export,
        "version": volume.version,
        "options": list(volume.options),
        "path": volume.path,
        "sandbox": view.sandbox,
        "statistics": _statistics(view),
        "problem": view.problem,
    }


def _statistics(view: VolumeView) -> dict[str, int] | None:
    if view.figures is None and view.counters is None:
        return None
    found = dict(view.figures or {})
    if view.counters is not None:
        operations = view.counters.operations.values()
        found |= {
            "read_bytes": view.counters.read_bytes,
            "written_bytes": view.counters.written_bytes,
            "operations": sum(one.operations for one in operations),
            "retransmissions": sum(one.retransmissions for one in operations),
            "major_timeouts": sum(one.major_timeouts for one in operations),
        }
    return found


def sandbox_document(view: SandboxView) -> dict[str, Any]:
    """One sandbox for `--json`."""
    return {
        "sandbox": view.sandbox,
        "pod": {"uid": view.pod.uid, "namespace": view.pod.namespace, "name": view.pod.name},
        "shim": {"pid": view.shim_pid, "version": view.shim_version},
        "qemu": {"pid": view.qemu},
        "virtiofsd": {"pid": view.virtiofsd},
        "memory_bytes": view.memory_bytes,
        "volumes": list(view.volumes),
        "containers": list(view.state.containers) if view.state else [],
        "problem": view.problem,
    }


_VOLUME_HEADINGS = (
    *("POD", "VOLUME", "WHERE", "SOURCE", "VERS", "SIZE", "FREE", "READ", "WRITTEN", "OPS"),
    *("RESENT", "STATE", "OPTIONS"),
)


def _volume_row(view: VolumeView) -> tuple[str, ...]:
    found = _statistics(view) or {}
    return (
        str(view.pod),
        view.volume.volume or "-",
        view.where,
        f"{view.volume.server}:{view.volume.export}",
        view.volume.version or "-",
        *(size(found.get(name)) for name in ("total_bytes", "available_bytes")),
        *(size(found.get(name)) for name in ("read_bytes", "written_bytes")),
        *(str(found.get(name, "-")) for name in ("operations", "retransmissions")),
        view.problem or "ok",
        ",".join(view.volume.options),
    )


_SANDBOX_HEADINGS = (
    *("SANDBOX", "POD", "SHIM", "VERSION", "QEMU", "VIRTIOFSD", "MEMORY", "CONTAINERS", "STATE"),
    "VOLUMES",
)


def _sandbox_row(view: SandboxView) -> tuple[str, ...]:
    return (
        view.sandbox[:13],
        str(view.pod),
        str(view.shim_pid or "-"),
        view.shim_version or "-",
        _life(view.qemu, view.state and view.state.qemu),
        _life(view.virtiofsd, view.state and view.state.virtiofsd),
        size(view.memory_bytes),
        str(len(view.state.containers)) if view.state else "-",
        view.problem or "ok",
        " ".join(view.volumes) or "-",
    )


def _life(pid: int | None, recorded: object) -> str:
    return str(pid) if pid else "dead" if recorded else "-"


def size(number: int | None) -> str:
    """Bytes for people."""
    if number is None:
        return "-"
    value, unit = float(number), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{number} B"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of equal width; what a guest or an export's name has of control characters is
    shown, not sent to the terminal.
    """
    lines = [headings, *([_printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
