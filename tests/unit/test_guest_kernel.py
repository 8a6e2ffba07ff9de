"""What the builder reads out of kernels and module tables."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

import pytest

from kangaroo.errors import FailedPrecondition, InvalidRequest
from kangaroo.guest import kernel

MARKER = b"~Module signature appended~\n"


def boot_image(payload: bytes, setup_sectors: int = 1) -> bytes:
    header = bytearray((setup_sectors + 1) * 512)
    header[0x1F1] = setup_sectors
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", header, 0x248, 16, len(payload))
    return bytes(header) + b"\0" * 16 + payload + b"rest"


def test_payload_is_found_and_loses_the_length_behind_it() -> None:
    packed = bytes.fromhex("28b52ffd") + b"frame"
    assert kernel.zstd_payload(boot_image(packed + b"size")) == packed


@pytest.mark.parametrize("image", [b"", b"\0" * 4096, boot_image(b"gzip rather than zstd")])
def test_other_images_are_refused(image: bytes) -> None:
    with pytest.raises(InvalidRequest):
        kernel.zstd_payload(image)


def test_modules_come_after_what_they_need_and_once() -> None:
    table = kernel.dependencies(
        "kernel/net/a-b.ko.xz: kernel/lib/c.ko.xz kernel/lib/d.ko.xz\n"
        "kernel/lib/c.ko.xz: kernel/lib/d.ko.xz\n"
        "kernel/lib/d.ko.xz:\n",
        "kernel/fs/built-in.ko\n",
    )
    assert kernel.closure(["c", "a_b", "built_in"], table) == [
        "kernel/lib/d.ko.xz",
        "kernel/lib/c.ko.xz",
        "kernel/net/a-b.ko.xz",
    ]
    assert kernel.beneath("kernel/lib", table) == ["c", "d"]


def test_modules_that_the_kernel_does_not_have_are_named() -> None:
    table = kernel.dependencies("kernel/lib/c.ko.xz:\n", "")
    with pytest.raises(FailedPrecondition, match=r"no module a_b, d$"):
        kernel.closure(["a_b", "c", "d"], table)
    with pytest.raises(FailedPrecondition, match=r"no modules in kernel/li$"):
        kernel.beneath("kernel/li", table)


def test_module_loses_its_compression_and_its_signature(tmp_path: Path) -> None:
    signed = b"module" + b"s" * 100 + b"\0" * 8 + struct.pack(">I", 100) + MARKER
    (tmp_path / "m.ko.xz").write_bytes(lzma.compress(signed))
    kernel.unpack_module(tmp_path / "m.ko.xz", tmp_path / "out/m.ko")
    assert (tmp_path / "out/m.ko").read_bytes() == b"module"
    assert kernel.unsigned(b"module") == b"module"
