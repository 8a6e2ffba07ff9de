"""What kubelet's paths say: `<pods>/<pod uid>/volumes/<plugin>/<volume>`; a CSI volume is mounted
below that, on `mount` (Kubernetes' pkg/kubelet/kubelet_getters.go, pkg/volume/csi).
"""

from __future__ import annotations

from typing import NamedTuple

CSI = "kubernetes.io/csi"


class KubeletTarget(NamedTuple):
    """A volume of a pod on the node."""

    pod_uid: str
    plugin: str  # "kubernetes.io/csi", "kubernetes.io/nfs", …
    volume: str  # the PersistentVolume's name; of an inline volume, its name in the pod


def parse(path: str, pods_dir: str) -> KubeletTarget | None:
    """The pod's volume that is mounted on `path`, None when it is no such path."""
    below = path.removeprefix(f"{pods_dir}/")
    if below == path:
        return None
    match below.split("/"):
        case [pod_uid, "volumes", plugin, volume, "mount"] if plugin == "kubernetes.io~csi":
            return KubeletTarget(pod_uid, CSI, volume)
        case [pod_uid, "volumes", plugin, volume]:
            return KubeletTarget(pod_uid, plugin.replace("~", "/"), volume)
    return None
