"""`manifest.json` of a guest image: what is in it, and which agent protocol it speaks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from kangaroo.errors import FailedPrecondition, NotFound

DEFAULT_DIRECTORY = Path("/var/lib/kangaroo/guest")  # of an image on a node

FORMAT = 1
KERNEL = "vmlinuz"
INITRD = "initrd.img"
ROOT = "rootfs.erofs"
MANIFEST = "manifest.json"
FILES = (KERNEL, INITRD, ROOT)


@dataclass(frozen=True)
class Manifest:
    """`files` maps each file's name to its SHA-256 in hex."""

    format: int
    protocol_version: int
    kangaroo_version: str
    kernel: str
    files: dict[str, str]


def write(
    directory: Path, *, protocol_version: int, kangaroo_version: str, kernel: str
) -> Manifest:
    """Describe the image files that lie in `directory`."""
    files = {name: _sha256(directory / name) for name in FILES}
    manifest = Manifest(FORMAT, protocol_version, kangaroo_version, kernel, files)
    (directory / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    return manifest


def read(directory: Path) -> Manifest:
    """The manifest of the image in `directory`. Sums are not checked; see `verify`.

    Raises NotFound when there is no image, FailedPrecondition when it is of another format or
    incomplete.
    """
    path = directory / MANIFEST
    hint = "build one with `kangaroo guest build`"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(
            f"no guest image in {directory}: {MANIFEST} is missing", hint=hint
        ) from error
    except ValueError as error:
        raise FailedPrecondition(f"{path} is not JSON: {error}", hint=hint) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FailedPrecondition(f"{path} is not of format {FORMAT}", hint=hint)
    if set(content) != {field.name for field in fields(Manifest)}:
        raise FailedPrecondition(f"{path} has other keys than format {FORMAT}", hint=hint)
    described = content["files"]
    if not isinstance(described, dict) or set(described) != set(FILES):
        raise FailedPrecondition(f"{path} does not describe {', '.join(FILES)}", hint=hint)
    for name in FILES:
        if not (directory / name).is_file():
            raise NotFound(f"no guest image in {directory}: {name} is missing", hint=hint)
    return Manifest(**content)


def verify(directory: Path) -> Manifest:
    """`read`, and compare the files with their sums. Raises FailedPrecondition naming the first
    that differs.
    """
    manifest = read(directory)
    for name, expected in manifest.files.items():
        if _sha256(directory / name) != expected:
            raise FailedPrecondition(
                f"{directory / name} is not the file that {MANIFEST} describes"
            )
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
