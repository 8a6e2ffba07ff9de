"""Container images without a registry: OCI image archives that `ctr images import` takes.

An image is one layer. Everything that would vary between two builds (times, owners, order) is
fixed, so the same files give the same digests.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_INDEX = "application/vnd.oci.image.index.v1+json"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Image:
    """What an image holds. Paths are relative to its root; directories come by themselves.

    `files` are programs or texts (path → mode, bytes), `links` symlinks (path → target),
    `directories` further ones with their mode.
    """

    names: Sequence[str]
    files: Mapping[str, tuple[int, bytes]]
    links: Mapping[str, str] = field(default_factory=dict)
    directories: Mapping[str, int] = field(default_factory=dict)
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()


def write(image: Image, target: Path) -> None:
    """Write the archive of `image`, under all of its names, at `target`."""
    layer = _layer(image)
    config = _json(_configuration(image, layer))
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, config),
            "layers": [_descriptor(_LAYER, layer)],
        }
    )
    index = {
        "schemaVersion": 2,
        "mediaType": _INDEX,
        "manifests": [_named(_descriptor(_MANIFEST, manifest), name) for name in image.names],
    }
    members = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(index)}
    for blob in (layer, config, manifest):
        members[f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}"] = blob
    with tarfile.open(target, "w") as archive:
        for name, data in members.items():
            _add_file(archive, name, 0o644, data)


def _configuration(image: Image, layer: bytes) -> dict[str, Any]:
    settings: dict[str, Any] = {"Env": [_PATH], "WorkingDir": "/"}
    if image.entrypoint:
        settings["Entrypoint"] = list(image.entrypoint)
    if image.command:
        settings["Cmd"] = list(image.command)
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }


def _layer(image: Image) -> bytes:
    directories = {str(parent): 0o755 for path in _paths(image) for parent in Path(path).parents}
    directories.pop(".", None)
    directories |= image.directories
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, mode in sorted(directories.items()):
            _add(archive, path, tarfile.DIRTYPE, mode)
        for path, (mode, data) in sorted(image.files.items()):
            _add_file(archive, path, mode, data)
        for path, link in sorted(image.links.items()):
            _add(archive, path, tarfile.SYMTYPE, 0o777, link=link)
    return buffer.getvalue()


def _paths(image: Image) -> list[str]:
    return [*image.files, *image.links, *image.directories]


def _add(archive: tarfile.TarFile, path: str, kind: bytes, mode: int, link: str = "") -> None:
    member = tarfile.TarInfo(path)
    member.type, member.mode, member.linkname = kind, mode, link
    archive.addfile(member)


def _add_file(archive: tarfile.TarFile, path: str, mode: int, data: bytes) -> None:
    member = tarfile.TarInfo(path)
    member.mode, member.size = mode, len(data)
    archive.addfile(member, io.BytesIO(data))


def _named(descriptor: dict[str, Any], name: str) -> dict[str, Any]:
    annotations = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    return {**descriptor, "annotations": annotations}


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
