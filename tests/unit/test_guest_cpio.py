"""The initrd's archive, read back by cpio(1)."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from kangaroo.guest import cpio

MEMBERS = [
    cpio.directory("dev"),
    cpio.character_device("dev/null", 1, 3, 0o666),
    cpio.file("init", b"#!/bin/sh\n", 0o755),
    cpio.link("sh", "busybox"),
]


def test_same_members_give_the_same_bytes() -> None:
    assert cpio.archive(MEMBERS) == cpio.archive(list(MEMBERS))
    assert len(cpio.archive(MEMBERS)) % 4 == 0


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio(1)")
def test_cpio_reads_every_member() -> None:
    listing = subprocess.run(
        ["cpio", "-tv", "--quiet"], input=cpio.archive(MEMBERS), capture_output=True, check=True
    )
    lines = listing.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == [
        "drwxr-xr-x",
        "crw-rw-rw-",
        "-rwxr-xr-x",
        "lrwxrwxrwx",
    ]
    assert lines[1].split()[4:6] == ["1,", "3"]
    assert lines[3].endswith("sh -> busybox")
