"""`kangaroo guest build` and `kangaroo guest verify`."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from kangaroo.errors import AlreadyExists
from kangaroo.guest import manifest
from kangaroo.guest.build import build


def register(subparsers: Any) -> None:
    """Add the verb `guest` to the command line."""
    parser = subparsers.add_parser("guest", help="build and check the guest image")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    builder = verbs.add_parser("build", help="build kernel, initrd and root from Debian packages")
    builder.add_argument("--output", type=Path, default=manifest.DEFAULT_DIRECTORY, metavar="DIR")
    builder.add_argument("--force", action="store_true", help="replace an image that is there")
    builder.set_defaults(run=_build)
    checker = verbs.add_parser("verify", help="compare an image's files with its manifest")
    checker.add_argument("directory", type=Path, nargs="?", default=manifest.DEFAULT_DIRECTORY)
    checker.set_defaults(run=_verify)


def _build(arguments: argparse.Namespace) -> None:
    """Build beside the place and move it there: sandboxes that run keep the files they opened."""
    output: Path = arguments.output
    there = output.is_dir() and any(output.iterdir())
    if there and not arguments.force:
        raise AlreadyExists(f"{output} is not empty", hint="--force replaces what is there")
    began = time.monotonic()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".guest-", dir=output.parent) as work:
        new = Path(work) / "new"
        print("building the guest image; packages are downloaded, this takes about 20 s")
        built = build(new)
        new.chmod(0o755)
        if output.is_symlink() or output.exists():
            output.rename(Path(work) / "old")
        new.rename(output)
    size_mib = sum(path.stat().st_size for path in output.iterdir()) >> 20
    print(f"{output}: kernel {built.kernel}, {size_mib} MiB, {time.monotonic() - began:.0f} s")


def _verify(arguments: argparse.Namespace) -> None:
    found = manifest.verify(arguments.directory)
    print(f"{arguments.directory}: kernel {found.kernel}, agent protocol {found.protocol_version}")
