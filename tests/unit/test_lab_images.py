"""Image archives: what containerd reads of them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from kangaroo_lab import images

NAMES = ("example.invalid/a/thing:1", "example.invalid/thing:2")


@pytest.fixture
def image() -> images.Image:
    return images.Image(
        names=NAMES,
        files={"bin/thing": (0o755, b"program"), "etc/name": (0o644, b"x\n")},
        links={"bin/other": "thing"},
        directories={"tmp": 0o1777},
        entrypoint=["/bin/thing"],
        command=["serve"],
    )


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {member.name: read(archive, member) for member in archive}


def read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    handle = archive.extractfile(member)
    return handle.read() if handle else b""


def blob(archive: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    data = archive["blobs/" + descriptor["digest"].replace(":", "/")]
    assert len(data) == descriptor["size"]
    assert hashlib.sha256(data).hexdigest() == descriptor["digest"].removeprefix("sha256:")
    return data


def test_every_name_leads_to_the_image(image: images.Image, tmp_path: Path) -> None:
    images.write(image, tmp_path / "image.tar")
    archive = members(tmp_path / "image.tar")
    entries = json.loads(archive["index.json"])["manifests"]
    assert [entry["annotations"]["io.containerd.image.name"] for entry in entries] == list(NAMES)
    manifest = json.loads(blob(archive, entries[0]))
    config = json.loads(blob(archive, manifest["config"]))
    assert config["config"]["Entrypoint"] == ["/bin/thing"]
    assert config["config"]["Cmd"] == ["serve"]
    layer = blob(archive, manifest["layers"][0])
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]


def test_the_layer_holds_what_was_given(image: images.Image, tmp_path: Path) -> None:
    images.write(image, tmp_path / "image.tar")
    archive = members(tmp_path / "image.tar")
    entry = json.loads(archive["index.json"])["manifests"][0]
    layer = blob(archive, json.loads(blob(archive, entry))["layers"][0])
    with tarfile.open(fileobj=io.BytesIO(layer)) as tree:
        kinds = {member.name: (member.type, member.mode, member.linkname) for member in tree}
        assert read(tree, tree.getmember("bin/thing")) == b"program"
    assert kinds == {
        "bin": (tarfile.DIRTYPE, 0o755, ""),
        "bin/other": (tarfile.SYMTYPE, 0o777, "thing"),
        "bin/thing": (tarfile.REGTYPE, 0o755, ""),
        "etc": (tarfile.DIRTYPE, 0o755, ""),
        "etc/name": (tarfile.REGTYPE, 0o644, ""),
        "tmp": (tarfile.DIRTYPE, 0o1777, ""),
    }


def test_the_same_image_gives_the_same_bytes(image: images.Image, tmp_path: Path) -> None:
    for name in ("one", "two"):
        images.write(image, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
