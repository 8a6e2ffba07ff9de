"""What a container's bind of a NAS volume is mounted with."""

from __future__ import annotations

import pytest

from kangaroo.agent.containers import with_flags


@pytest.mark.parametrize(
    ("options", "flags", "expected"),
    [
        (["rbind", "rprivate", "rw"], (), ["rbind", "rprivate", "rw"]),
        (["rbind", "rw"], ("nosuid", "noexec"), ["rbind", "rw", "nosuid", "noexec"]),
        (["rbind", "rw"], ("ro", "nodev"), ["rbind", "ro", "nodev"]),
        (["rbind", "ro", "noexec"], ("noexec",), ["rbind", "ro", "noexec"]),
    ],
)
def test_the_volumes_own_flags_hold(
    options: list[str], flags: tuple[str, ...], expected: list[str]
) -> None:
    assert with_flags(options, flags) == expected
