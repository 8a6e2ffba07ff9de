"""The NAS volumes of this node's pods: on the node by its mount table, in guests by the state of
their sandboxes. No server and no guest is asked.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kangaroo.errors import InvalidRequest
from kangaroo.linux.mountinfo import MountEntry
from kangaroo.nas import kubelet_target
from kangaroo.nas.guest_mount import is_nas, split_source
from kangaroo.nas.kubelet_target import KubeletTarget
from kangaroo.wire.node_protocol import SOCKET_NAME, STATE_NAME

_log = logging.getLogger(__name__)

NODE, GUEST = "node", "guest"

_VOLUME_DATA = "vol_data.json"
_FILE_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class PodVolume:
    """Which volume of which pod it is, as the node knows it; nothing of it is a guest's word."""

    path: str  # kubelet's mount point; in a guest's case what stands on it is a placeholder
    where: str  # NODE or GUEST
    volume: str  # kubelet's name; empty where the mount is none of kubelet's
    pod_uid: str
    driver: str
    volume_handle: str
    server: str
    export: str
    version: str
    options: tuple[str, ...]  # in force on the node, also before a guest took it
    superblock: str  # volumes of one superblock have the same counters


@dataclass(frozen=True, slots=True)
class InGuest:
    """A volume in a guest, and where its figures are asked for."""

    volume: PodVolume
    socket: Path


def on_node(entries: Iterable[MountEntry], pods_dir: str) -> dict[str, PodVolume]:
    """The volumes mounted on the node, by their mount point."""
    found = {}
    for entry in entries:
        target = kubelet_target.parse(entry.mount_point, pods_dir)
        if target is not None and is_nas(entry):
            what = _names(entry.mount_point, target)
            found[entry.mount_point] = PodVolume(
                path=entry.mount_point,
                where=NODE,
                superblock=entry.device,
                **what,
                **_mount(entry.source, entry.options, entry.super_options),
            )
    return found


def in_guests(sandboxes: Path, pods_dir: str, failed: Callable[[], None]) -> list[InGuest]:
    """The volumes that sandboxes have taken. `failed` is called for each state that cannot be read;
    a sandbox that has just ended is not one.
    """
    found: dict[PodVolume, InGuest] = {}
    for path in sorted(sandboxes.glob(f"*/{STATE_NAME}")):
        try:
            for one in _of_sandbox(path, pods_dir):
                found.setdefault(one.volume, one)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("state not readable path=%s error=%r", path, error)
            failed()
    return list(found.values())


def _of_sandbox(path: Path, pods_dir: str) -> Iterator[InGuest]:
    state = _read_json(path)
    records = {record["volume_id"]: record for record in state["volumes"]}
    for placeholder in state["placeholders"]:
        target_path, volume_id = placeholder["path"], placeholder["volume_id"]
        record = records[volume_id]
        target = kubelet_target.parse(target_path, pods_dir)
        volume = PodVolume(
            path=target_path,
            where=GUEST,
            superblock=f"{path.parent.name[:12]}/{volume_id}",
            **_names(target_path, target or KubeletTarget(state["pod_uid"] or "", "", "")),
            **_mount(record["source"], record["node_options"], record["node_super_options"]),
        )
        yield InGuest(volume, path.with_name(SOCKET_NAME))


def _names(path: str, target: KubeletTarget) -> dict[str, Any]:
    """The driver and its name for the volume stand in a file beside a CSI volume's mount point."""
    driver, handle = target.plugin, ""
    if target.plugin == kubelet_target.CSI:
        try:
            data = _read_json(Path(path).with_name(_VOLUME_DATA))
            driver, handle = str(data["driverName"]), str(data["volumeHandle"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.debug("no volume data beside target=%s error=%r", path, error)
    return {
        "volume": target.volume,
        "pod_uid": target.pod_uid,
        "driver": driver,
        "volume_handle": handle,
    }


def _mount(source: str, options: Iterable[str], super_options: Iterable[str]) -> dict[str, Any]:
    try:
        server, export = split_source(source)
    except InvalidRequest:
        server, export = source, ""
    shown = (*options, *super_options)
    versions = [option.removeprefix("vers=") for option in shown if option.startswith("vers=")]
    return {
        "server": server,
        "export": export,
        "version": versions[-1] if versions else "",
        "options": tuple(dict.fromkeys(shown)),
    }


def _read_json(path: Path) -> Any:
    with path.open("rb") as file:
        return json.loads(file.read(_FILE_LIMIT))
