"""The command that mounts a NAS volume: mount.nfs(8).

mount(8) would only look at the mount table, which is long on a node, and start it.
"""

from __future__ import annotations

import errno
import shutil

from kangaroo.errors import MountFailed
from kangaroo.nas import options
from kangaroo.nas.volume import NasVolume

PROGRAM = "mount.nfs"
# Where mount(8) looks for helpers, whatever the PATH.
_DIRECTORIES = "/sbin:/usr/sbin"


def command(volume: NasVolume, target: str) -> tuple[str, ...]:
    """The argv that mounts `volume` on `target`. Raises MountFailed on a node without mount.nfs."""
    program = shutil.which(PROGRAM, path=_DIRECTORIES)
    if program is None:
        raise MountFailed(
            volume.source,
            volume.option_string,
            f"there is no {PROGRAM} in {_DIRECTORIES}",
            errno=errno.ENODEV,
            hint="install nfs-common on the node",
        )
    return (program, *arguments(volume, target))


def arguments(volume: NasVolume, target: str) -> tuple[str, ...]:
    """What mount.nfs is told. Pure."""
    mount_options = ",".join((volume.option_string, *_helper_options(volume)))
    return (volume.source, target, "-o", mount_options)


def _helper_options(volume: NasVolume) -> list[str]:
    """Options for mount.nfs alone, unless the volume says otherwise.

    `retry=0`: it would try again for two minutes, as long as kubelet waits; kubelet tries again
    itself. `mountproto=tcp`: it would ask mountd over UDP first, which costs seconds where UDP is
    filtered. Its family is the server's: mount.nfs takes `tcp` for IPv4.
    """
    about = {options.key_of(option) for option in volume.options}
    helper = [] if "retry" in about else ["retry=0"]
    if volume.version == "3" and not about & {"proto", "mountproto"}:
        helper.append(f"mountproto={volume.tcp}")
    return helper
