"""What a node gets on its second disk: programs, images, this project, keys and configuration.

The node's root is the same for every node and every lab; all that differs comes from here. The disk
is read-only and lasts as long as the node; `data/node/install.sh` on it puts things in place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from kangaroo.linux.process import run_sync
from kangaroo_lab import data
from kangaroo_lab.network import NAS_HOST_NAME, Network
from kangaroo_lab.pki import Pki, kubeconfig
from kangaroo_lab.ssh import Keys
from kangaroo_lab.tree import install_project

SERVICES = ("containerd", "ssh", "kangaroo-images", "kubelet", "kangaroo-csi", "kangaroo-sandboxes")
UNITS = (*SERVICES, "kangaroo-ready")
_READY_SCRIPT = "/usr/local/lib/kangaroo-ready.sh"
_PKI = "/etc/kubernetes/pki"
_KUBECONFIG = "/etc/kubernetes/kubelet.kubeconfig"
_TIMEOUT_S = 120
_SLACK_MIB = 64
# A guest in an emulated node; kubelet waits a little longer.
_BOOT_TIMEOUT_S = 240


@dataclass(frozen=True, slots=True)
class Parts:
    """The built things that go onto the payload disk."""

    host_tools: Path
    kubernetes: Path
    node_python: Path
    guest_image: Path
    images: Sequence[Path]
    pause_image: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a node is."""

    index: int
    network: Network
    server: str

    @property
    def name(self) -> str:
        return f"node{self.index}"

    @property
    def address(self) -> str:
        return self.network.node(self.index)


def create(disk: Path, identity: Identity, *, parts: Parts, pki: Pki, keys: Keys) -> None:
    """Make the payload disk at `disk` (ext4). Raises CommandFailed."""
    stage = disk.with_suffix(".stage")
    shutil.rmtree(stage, ignore_errors=True)
    (stage / "files").mkdir(parents=True)
    _programs(stage, parts)
    install_project(stage / "files", parts.node_python, host_tools=parts.host_tools)
    _identity(stage / "files", identity, pki=pki, keys=keys)
    configure(stage / "files", identity, parts.pause_image)
    for script in ("install.sh", "images.sh"):
        shutil.copy(data.path(f"node/{script}"), stage)
    (stage / "node.env").write_text(_environment(identity))
    _pack(stage, disk)
    shutil.rmtree(stage)


def _programs(stage: Path, parts: Parts) -> None:
    (stage / "bin").mkdir()
    _link(parts.kubernetes / "kubelet", stage / "bin" / "kubelet")
    (stage / "images").mkdir()
    for image in parts.images:
        _link(image, stage / "images" / image.name)
    (stage / "guest").mkdir()
    for file in parts.guest_image.iterdir():
        _link(file, stage / "guest" / file.name)


def _link(source: Path, target: Path) -> None:
    """A hard link where that is possible: the tree lives only until the disk is made from it."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def _environment(identity: Identity) -> str:
    network = identity.network
    values = {
        "NODE_NAME": identity.name,
        "NODE_ADDRESS": identity.address,
        "NODE_PREFIX": str(network.prefix),
        "GATEWAY": network.gateway,
        "UNITS": " ".join(UNITS),
    }
    return "".join(f'{name}="{value}"\n' for name, value in values.items())


def _identity(root: Path, identity: Identity, *, pki: Pki, keys: Keys) -> None:
    name, network = identity.name, identity.network
    hosts = f"127.0.0.1 localhost\n{identity.address} {name}\n{network.nas} {NAS_HOST_NAME}\n"
    _write(root / "etc/hostname", f"{name}\n")
    _write(root / "etc/hosts", hosts)
    # No name server: /etc/hosts is all there is, and a lookup must fail at once.
    _write(root / "etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    subject = {"subject": f"system:node:{name}", "organisation": "system:nodes"}
    pki.issue(name, **subject, names=[f"DNS:{name}", f"IP:{identity.address}"])
    files = {
        "ca.crt": pki.certificate("ca"),
        "kubelet.crt": pki.certificate(name),
        "kubelet.key": pki.key(name),
    }
    for target, source in files.items():
        _write(root / f"{_PKI[1:]}/{target}", source.read_text(), mode=0o600)
    config = kubeconfig(
        server=identity.server,
        authority=f"{_PKI}/ca.crt",
        certificate=f"{_PKI}/kubelet.crt",
        key=f"{_PKI}/kubelet.key",
    )
    _write(root / _KUBECONFIG[1:], config, mode=0o600)
    public = keys.user.with_suffix(".pub").read_text()
    _write(root / "root/.ssh/authorized_keys", public, mode=0o600)
    _write(root / "etc/ssh/ssh_host_ed25519_key", keys.host.read_text(), mode=0o600)
    host_public = keys.host.with_suffix(".pub").read_text()
    _write(root / "etc/ssh/ssh_host_ed25519_key.pub", host_public)
    for directory in ("root", "root/.ssh"):
        (root / directory).chmod(0o700)


def configure(root: Path, identity: Identity, pause_image: str) -> None:
    """Put the configuration of a node's services under `root`, in place of what is there."""
    pods = identity.network.node_pods(identity.index)
    values = {"pods": pods, "pause_image": pause_image, "gateway": identity.network.gateway}
    services = " ".join(f"{name}.service" for name in SERVICES)
    ready = {"services": services, "script": _READY_SCRIPT}
    _template(root / "etc/containerd/config.toml", "containerd.toml", values)
    _template(root / "etc/cni/net.d/10-kangaroo.conflist", "cni.conflist", values)
    _template(root / "etc/kubernetes/kubelet.yaml", "kubelet.yaml", values)
    _write(
        root / "etc/systemd/system/containerd.service.d/kangaroo.conf",
        data.text("node/containerd.conf"),
    )
    for unit in ("kubelet", "kangaroo-images"):
        text = data.text(f"node/{unit}.service")
        _write(root / f"etc/systemd/system/{unit}.service", text)
    _template(root / "etc/systemd/system/kangaroo-ready.service", "kangaroo-ready.service", ready)
    _write(root / _READY_SCRIPT[1:], data.text("node/ready.sh"))
    runtime = f'events_kubeconfig = "{_KUBECONFIG}"\nboot_timeout_s = {_BOOT_TIMEOUT_S}\n'
    _write(root / "etc/kangaroo/runtime.toml", runtime)
    _write(root / "etc/kangaroo/csi.toml", "# Every key has its default.\n")


def _template(target: Path, name: str, values: Mapping[str, str]) -> None:
    _write(target, Template(data.text(f"node/{name}")).substitute(values))


def _write(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _pack(stage: Path, disk: Path) -> None:
    used = int(run_sync(["du", "-sm", str(stage)], timeout_s=_TIMEOUT_S).split()[0])
    disk.unlink(missing_ok=True)
    # No journal and no reserved blocks: it is written once, here.
    options = ["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-L", "payload"]
    size = f"{used + used // 10 + _SLACK_MIB}M"
    run_sync(["mke2fs", *options, "-d", str(stage), str(disk), size], timeout_s=_TIMEOUT_S)
