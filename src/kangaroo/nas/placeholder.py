"""The small tmpfs that stands on the node where a NAS volume went into a guest.

It keeps "is it mounted?" true for kubelet and for any CSI driver, so that a kubelet restart does
not mount the NAS on the node again, and it bounds what a stray writer on the node can fill. It is
writable because kubelet makes the directory of a `subPath` in it.
"""

from __future__ import annotations

from kangaroo.linux.mountinfo import MountEntry

PLACEHOLDER_FSTYPE = "tmpfs"
PLACEHOLDER_SOURCE = "kangaroo-nas"
PLACEHOLDER_DATA = "size=4k,nr_inodes=4096,mode=0755"


def is_placeholder(entry: MountEntry) -> bool:
    """Whether this mount is a placeholder that the runtime put there."""
    return entry.fstype == PLACEHOLDER_FSTYPE and entry.source == PLACEHOLDER_SOURCE
