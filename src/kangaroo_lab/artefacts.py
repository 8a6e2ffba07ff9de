"""What the lab is made of, each built on first use and kept in the cache.

The cache key of an artefact is its recipe; what Debian's mirror holds on the day is not part of it,
so an artefact stays as it was until its recipe changes or `cache.REFRESH` is counted up.
Every function returns at once when the artefact is there, and raises what its tools raise
(CommandFailed, DeadlineExceeded, FailedPrecondition) when it cannot be built.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import kangaroo
from kangaroo.errors import FailedPrecondition
from kangaroo.guest import build as guest_build
from kangaroo.guest import debian
from kangaroo.linux.process import run_sync
from kangaroo_lab import cache, gobuild, images, nodeimage, workload_image
from kangaroo_lab.tree import CHECKOUT

HOST_PACKAGES = (
    "busybox-static",
    "ca-certificates",
    "crun",
    "erofs-utils",
    "etcd-server",
    "ipxe-qemu",
    "iproute2",
    "netbase",
    "nfs-ganesha",
    "nfs-ganesha-vfs",
    "procps",
    "python3",  # the node's version, to compile what the node runs
    "qemu-system-x86",
    "qemu-utils",
    "rpcbind",
    "seabios",
    "virtiofsd",
)

KUBERNETES = "v1.35.4"
_KUBERNETES_PROGRAMS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kubectl",
)

BUSYBOX_IMAGE = "registry.cn-hangzhou.aliyuncs.com/acs/busybox:v1.29.2"
# The first is what Debian's containerd asks for by default.
PAUSE_IMAGES = ("registry.k8s.io/pause:3.8", "registry.k8s.io/pause:3.10")
_PIP_TIMEOUT_S = 900.0


def host_tools() -> Path:
    """A trixie root whose programs this machine runs through `enclosure.enclosed`."""

    def build(output: Path) -> None:
        debian.bootstrap(output / "root", HOST_PACKAGES)

    inputs = cache.digest(cache.REFRESH, debian.SUITE, *HOST_PACKAGES)
    return cache.artefact("host-tools", inputs, build) / "root"


def kubernetes() -> Path:
    """A directory with kubelet, kubectl and the programs of the control plane."""

    def build(output: Path) -> None:
        gobuild.build(
            "kubernetes",
            [f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES_PROGRAMS],
            output,
            stamps=_kubernetes_stamps(),
        )

    what = (*_KUBERNETES_PROGRAMS, *_kubernetes_stamps())
    inputs = cache.digest(KUBERNETES, *what, gobuild.recipe("kubernetes"))
    return cache.artefact("kubernetes", inputs, build)


def csi_sanity() -> Path:
    """The program `csi-sanity`, the CSI project's conformance suite."""

    def build(output: Path) -> None:
        package = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"
        gobuild.build("csi-sanity", [package], output)

    inputs = cache.digest(gobuild.recipe("csi-sanity"))
    return cache.artefact("csi-sanity", inputs, build) / "csi-sanity"


def probe() -> Path:
    """The static program `probe`, which observes how a file system behaves (data/probe)."""

    def build(output: Path) -> None:
        gobuild.build("probe", ["."], output)

    return cache.artefact("probe", cache.digest(gobuild.recipe("probe")), build) / "probe"


def node_root() -> Path:
    """A directory with the node's `disk.raw`, `vmlinuz` and `initrd.img`; see `nodeimage`.

    They are shared: a running node writes to an overlay of the disk.
    """
    inputs = cache.digest(cache.REFRESH, nodeimage.recipe())
    return cache.artefact("node-root", inputs, nodeimage.build)


def node_python() -> Path:
    """The node's Python libraries, as a flat directory for its Python 3.13."""
    lock = CHECKOUT / "requirements" / "node.txt"
    if not lock.is_file():
        raise FailedPrecondition("the lab runs from a checkout of the project")

    def build(output: Path) -> None:
        argv = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(output)]
        run_sync([*argv, *_FOR_NODE, "-r", str(lock)], timeout_s=_PIP_TIMEOUT_S, env=os.environ)

    return cache.artefact("node-python", cache.digest(lock.read_bytes(), *_FOR_NODE), build)


# Of pip: whole and ready-made, for the node's Python.
_FOR_NODE = (
    *("--no-compile", "--no-deps", "--require-hashes", "--only-binary=:all:"),
    *("--python-version", "3.13", "--platform", "manylinux_2_28_x86_64"),
    *("--platform", "manylinux2014_x86_64", "--platform", "linux_x86_64"),
)


def guest_image() -> Path:
    """The sandboxes' guest image, from this checkout's sources."""
    package = Path(kangaroo.__file__).parent
    files = (path for path in package.rglob("*") if path.suffix in {".py", ".sh"})
    inside = (path for path in files if path.relative_to(package).parts[0] in _GUEST_SOURCES)
    inputs = cache.digest(cache.REFRESH, debian.SUITE, cache.digest_files(package, inside))

    def build(output: Path) -> None:
        guest_build.build(output)

    return cache.artefact("guest-image", inputs, build)


# What of the package goes into the guest, or decides how the image is made.
_GUEST_SOURCES = {"__init__.py", "agent", "errors.py", "guest", "linux", "wire"}


def oci_images() -> list[Path]:
    """Image archives for `ctr images import`: busybox, pause and the workload."""

    def build(output: Path) -> None:
        busybox = (host_tools() / "usr/bin/busybox").read_bytes()
        programs = output / "programs"
        programs.mkdir()
        gobuild.build("pause", ["."], programs)
        workload_image.build(programs)
        for name, image in _images(busybox, programs).items():
            images.write(image, output / f"{name}.tar")
        shutil.rmtree(programs)

    recipe = Path(images.__file__).read_bytes()
    programs = (gobuild.recipe("pause"), workload_image.digest())
    inputs = cache.digest(cache.REFRESH, recipe, Path(__file__).read_bytes(), *programs)
    return sorted(cache.artefact("oci-images", inputs, build).glob("*.tar"))


def sidecar_images() -> list[Path]:
    """Image archives of the CSI project's sidecars, by the names that `deploy/` asks for."""

    def build(output: Path) -> None:
        programs = output / "programs"
        programs.mkdir()
        packages = [f"{module}/cmd/{name}" for name, module in _SIDECARS.items()]
        gobuild.build("sidecars", packages, programs)
        for name, module in _SIDECARS.items():
            image = images.Image(
                names=[f"{_SIDECAR_REGISTRY}/{name}:{gobuild.version('sidecars', module)}"],
                files={name: (0o755, (programs / name).read_bytes())},
                entrypoint=[f"/{name}"],
            )
            images.write(image, output / f"{name}.tar")
        shutil.rmtree(programs)

    recipe = Path(images.__file__).read_bytes()
    inputs = cache.digest(recipe, _SIDECAR_REGISTRY, *_SIDECARS, gobuild.recipe("sidecars"))
    return sorted(cache.artefact("sidecar-images", inputs, build).glob("*.tar"))


_SIDECAR_REGISTRY = "registry.k8s.io/sig-storage"
_SIDECARS = {
    "csi-provisioner": "github.com/kubernetes-csi/external-provisioner/v6",
    "csi-resizer": "github.com/kubernetes-csi/external-resizer/v2",
    "csi-snapshotter": "github.com/kubernetes-csi/external-snapshotter/v8",
    "snapshot-controller": "github.com/kubernetes-csi/external-snapshotter/v8",
}


def snapshot_crds() -> list[Path]:
    """The definitions of VolumeSnapshot and what goes with it, as the snapshotter has them."""

    def build(output: Path) -> None:
        published = gobuild.fetched("sidecars", _SNAPSHOT_API) / "config/crd"
        for path in published.glob("snapshot.storage.k8s.io_*.yaml"):
            shutil.copyfile(path, output / path.name)

    inputs = cache.digest(_SNAPSHOT_API, gobuild.recipe("sidecars"))
    return sorted(cache.artefact("snapshot-crds", inputs, build).glob("*.yaml"))


_SNAPSHOT_API = "github.com/kubernetes-csi/external-snapshotter/client/v8"


def everything() -> Mapping[str, Callable[[], object]]:
    """What a lab is made of, by the name of the step that builds it, quick ones first."""
    return {
        "host tools": host_tools,
        "node Python libraries": node_python,
        "container images": oci_images,
        "guest image": guest_image,
        "node disk": node_root,
        "Kubernetes": kubernetes,
    }


def for_tests() -> Mapping[str, Callable[[], object]]:
    """What only the node tests put into a lab, likewise."""
    return {"csi-sanity": csi_sanity, "probe": probe}


def for_provisioning() -> Mapping[str, Callable[[], object]]:
    """What those of them need that provision volumes with the CSI project's sidecars."""
    return {"CSI sidecars": sidecar_images, "snapshot definitions": snapshot_crds}


def _kubernetes_stamps() -> list[str]:
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    stamps = []
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        stamps += [
            f"{package}.gitVersion={KUBERNETES}",
            f"{package}.gitMajor={major}",
            f"{package}.gitMinor={minor}",
            f"{package}.gitTreeState=clean",
        ]
    return stamps


def _images(busybox: bytes, programs: Path) -> dict[str, images.Image]:
    shell = partial(
        images.Image,
        links=_applets(),
        directories={"tmp": 0o1777, "root": 0o700, "proc": 0o755, "sys": 0o755, "dev": 0o755},
        command=["sh"],
    )
    base = {
        "bin/busybox": (0o755, busybox),
        "etc/passwd": (0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:::\n"),
        "etc/group": (0o644, b"root:x:0:\nnogroup:x:65534:\n"),
    }
    workload = (0o755, (programs / "workload").read_bytes())
    pause = (0o755, (programs / "pause").read_bytes())
    return {
        "busybox": shell(names=[BUSYBOX_IMAGE], files=base),
        "workload": shell(
            names=[workload_image.IMAGE], files={**base, workload_image.PROGRAM: workload}
        ),
        "pause": images.Image(names=PAUSE_IMAGES, files={"pause": pause}, entrypoint=["/pause"]),
    }


def _applets() -> dict[str, str]:
    """A link for each of busybox's programs."""
    program = host_tools() / "usr/bin/busybox"
    names = run_sync([str(program), "--list"], timeout_s=60).split()
    return {f"bin/{name}": "busybox" for name in names if name != "busybox"}
