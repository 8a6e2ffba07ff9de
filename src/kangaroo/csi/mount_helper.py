"""The command that mounts a NAS volume: mount(8), which calls mount.nfs(8)."""

from __future__ import annotations

from kangaroo.nas import options
from kangaroo.nas.volume import NasVolume


def command(volume: NasVolume, target: str) -> tuple[str, ...]:
    """The argv that mounts `volume` on `target`."""
    mount_options = ",".join((volume.option_string, *_helper_options(volume)))
    return ("mount", "-t", "nfs", "-o", mount_options, volume.source, target)


def _helper_options(volume: NasVolume) -> list[str]:
    """Options for mount.nfs alone, unless the volume says otherwise.

    `retry=0`: it would try again for two minutes, as long as kubelet waits; kubelet tries again
    itself. `mountproto=tcp`: it would ask mountd over UDP first, which costs seconds where UDP is
    filtered.
    """
    about = {options.key_of(option) for option in volume.options}
    helper = [] if "retry" in about else ["retry=0"]
    if volume.version == "3" and not about & {"proto", "mountproto"}:
        helper.append("mountproto=tcp")
    return helper
