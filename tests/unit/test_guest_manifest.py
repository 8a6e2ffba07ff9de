"""The image's manifest: complete, of this format, and the files are those it describes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kangaroo.errors import FailedPrecondition, NotFound
from kangaroo.guest import manifest


@pytest.fixture
def image(tmp_path: Path) -> Path:
    for name in (manifest.KERNEL, manifest.INITRD, manifest.ROOT):
        (tmp_path / name).write_text(name)
    manifest.write(tmp_path, protocol_version=1, kangaroo_version="0.1.0", kernel="6.12")
    return tmp_path


def test_written_manifest_is_read_and_verified(image: Path) -> None:
    assert manifest.verify(image) == manifest.read(image)
    assert manifest.read(image).kernel == "6.12"


def test_changed_file_is_named(image: Path) -> None:
    (image / manifest.ROOT).write_text("something else")
    with pytest.raises(FailedPrecondition, match=manifest.ROOT):
        manifest.verify(image)


@pytest.mark.parametrize("name", [manifest.KERNEL, manifest.MANIFEST])
def test_missing_file_is_named(image: Path, name: str) -> None:
    (image / name).unlink()
    with pytest.raises(NotFound, match=name):
        manifest.read(image)


@pytest.mark.parametrize("change", [{"format": 2}, {"extra": 1}])
def test_other_format_is_refused(image: Path, change: dict[str, int]) -> None:
    path = image / manifest.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FailedPrecondition, match="format 1"):
        manifest.read(image)


@pytest.mark.parametrize("files", [{}, {manifest.KERNEL: "0"}, [*manifest.FILES]])
def test_every_file_must_be_described(image: Path, files: object) -> None:
    """What has no sum would be taken for verified."""
    path = image / manifest.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": files}))
    with pytest.raises(FailedPrecondition, match=f"does not describe .*{manifest.ROOT}"):
        manifest.verify(image)
