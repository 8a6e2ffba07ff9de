"""What the containers of a pod see of their mounts, and what the guest's own mount table says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kangaroo.linux import mountinfo

if TYPE_CHECKING:
    from tests.node.pods import Space

    from kangaroo.linux.mountinfo import MountEntry


def table(
    space: Space, pod: str, container: str | None = None, *, pid: str = "self"
) -> tuple[MountEntry, ...]:
    """The mount table of a process that the container sees; its own without `pid`."""
    said = space.run(pod, f"cat /proc/{pid}/mountinfo", container=container)
    return mountinfo.parse(said.stdout)


def mounted(space: Space, pod: str, container: str | None, *paths: str) -> dict[str, MountEntry]:
    """What is mounted on each of `paths` in the container."""
    entries = table(space, pod, container)
    found = {path: mountinfo.at(path, entries) for path in paths}
    missing = [path for path, entry in found.items() if entry is None]
    assert not missing, f"nothing is mounted on {missing} in {pod}/{container}: {entries}"
    return {path: entry for path, entry in found.items() if entry is not None}
