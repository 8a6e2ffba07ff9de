"""The kernel image inside Debian's vmlinuz, and its modules."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterable
from pathlib import Path

from kangaroo.errors import FailedPrecondition, InvalidRequest

# Documentation/arch/x86/boot.rst
_SETUP_SECTORS = 0x1F1
_HEADER_MAGIC = (0x202, b"HdrS")
_PAYLOAD = 0x248
_ZSTD_MAGIC = bytes.fromhex("28b52ffd")
_SIZE_TRAILER_BYTES = 4
_SIGNATURE_MARKER = b"~Module signature appended~\n"
_SIGNATURE_HEADER_BYTES = 12


def zstd_payload(image: bytes) -> bytes:
    """The compressed ELF file in a bzImage whose payload is zstd, without the length that follows
    it.

    Booted as it is, by PVH, the kernel need not unpack itself, which is most of the start of a slow
    machine. Raises InvalidRequest when `image` is something else.
    """
    offset, magic = _HEADER_MAGIC
    if image[offset : offset + 4] != magic:
        raise InvalidRequest("vmlinuz", "not an x86 boot image")
    setup_bytes = ((image[_SETUP_SECTORS] or 4) + 1) * 512
    start, length = struct.unpack_from("<II", image, _PAYLOAD)
    payload = image[setup_bytes + start : setup_bytes + start + length - _SIZE_TRAILER_BYTES]
    if not payload.startswith(_ZSTD_MAGIC):
        raise InvalidRequest("vmlinuz", "its payload is not compressed by zstd")
    return payload


def dependencies(modules_dep: str, modules_builtin: str) -> dict[str, list[str]]:
    """Of every module in the files of these names, by name: its path and those to load before it,
    in load order. Of one that is built in there is nothing to load.

    Names are as modprobe compares them, with underscores.
    """
    table: dict[str, list[str]] = {module_name(path): [] for path in modules_builtin.split()}
    for line in modules_dep.splitlines():
        path, _, needed = line.partition(":")
        # modules.dep lists the nearest dependency first (modules.dep(5)).
        table[module_name(path)] = [*reversed(needed.split()), path]
    return table


def closure(names: Iterable[str], table: dict[str, list[str]]) -> list[str]:
    """Paths of the modules `names` and all that they need, in an order that insmod accepts, each
    once.

    Raises FailedPrecondition naming those that this kernel does not have.
    """
    wanted = tuple(names)
    if missing := [name for name in wanted if name not in table]:
        raise FailedPrecondition(f"the kernel has no module {', '.join(missing)}")
    return list(dict.fromkeys(path for name in wanted for path in table[name]))


def beneath(directory: str, table: dict[str, list[str]]) -> list[str]:
    """Names of the modules in a directory. Raises FailedPrecondition when it has none."""
    names = [name for name, paths in table.items() if paths and _parent(paths[-1]) == directory]
    if not names:
        raise FailedPrecondition(f"the kernel has no modules in {directory}")
    return names


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def module_name(path: str) -> str:
    """`kernel/fs/nfs/nfs-acl.ko.xz` → `nfs_acl`."""
    return Path(path).name.partition(".")[0].replace("-", "_")


def unpack_module(source: Path, target: Path) -> None:
    """Copy a module without its compression and its signature.

    The guest's processor has better to do than to unpack and to compute RSA; the whole image has a
    sum.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    content = source.read_bytes()
    target.write_bytes(unsigned(lzma.decompress(content) if source.suffix == ".xz" else content))


def unsigned(module: bytes) -> bytes:
    """The module without an appended signature (struct module_signature,
    include/linux/module_signature.h).
    """
    if not module.endswith(_SIGNATURE_MARKER):
        return module
    end = len(module) - len(_SIGNATURE_MARKER)
    signature_bytes: int = struct.unpack(">I", module[end - 4 : end])[0]
    return module[: end - _SIGNATURE_HEADER_BYTES - signature_bytes]
