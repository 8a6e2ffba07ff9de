"""Who is asked for, to see whether a server takes writes."""

from __future__ import annotations

import asyncio

import pytest

from kangaroo.csi import condition
from kangaroo.csi.condition import Identity, may_write
from kangaroo.linux import mountinfo

OWNER = Identity(1000, 2000)
NOBODY = Identity(65534, 65534)
MOUNT = "40 1 0:9 / /t {} shared:1 - {} nas:/csi {}"


@pytest.mark.parametrize(
    ("mode", "owner", "writer"),
    [
        (0o777, Identity(0, 0), NOBODY),
        (0o1777, OWNER, NOBODY),
        (0o755, OWNER, OWNER),
        (0o775, Identity(0, 2000), Identity(65534, 2000)),
        (0o755, Identity(0, 0), None),  # root alone, and root may be squashed
        (0o775, Identity(0, 0), None),
        (0o555, OWNER, None),
        (0o666, OWNER, None),  # nobody may enter
    ],
)
def test_somebody_who_may_write_by_mode(mode: int, owner: Identity, writer: Identity) -> None:
    assert may_write(mode, owner) == writer


@pytest.mark.parametrize(
    ("options", "fstype", "super_options"),
    [
        ("ro,relatime", "nfs", "rw,sec=sys"),
        ("rw,relatime", "nfs", "ro,sec=sys"),
        ("rw,relatime", "nfs4", "rw,sec=krb5"),
        ("rw,relatime", "tmpfs", "rw"),
    ],
)
def test_what_cannot_be_known_is_not_asked(options: str, fstype: str, super_options: str) -> None:
    (entry,) = mountinfo.parse(MOUNT.format(options, fstype, super_options))
    assert asyncio.run(condition.takes_writes(entry, OWNER, 0o777, 1)) is None
