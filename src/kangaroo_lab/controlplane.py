"""etcd and the Kubernetes control plane, run natively on the machine in the lab's namespace.

Only the node is emulated: the control plane on an emulated processor would be ten times slower, and
it is not what is under test. Grace periods are those of a slow node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kangaroo.linux.process import run_sync
from kangaroo_lab import network as net
from kangaroo_lab import readiness
from kangaroo_lab.daemon import Daemon, start
from kangaroo_lab.enclosure import enclosed
from kangaroo_lab.network import Network
from kangaroo_lab.pki import Pki, kubeconfig

ETCD = "http://127.0.0.1:2379"
PORT = 6443
ADMIN = "admin"
_CONTROLLERS = ("controller-manager", "scheduler")
_READY_TIMEOUT_S = 60
_LAST_ROLE = "rolebinding/system::extension-apiserver-authentication-reader"


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """Where the control plane's programs and files are. Its processes have the names in PARTS."""

    PARTS: ClassVar = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")

    network: Network
    pki: Pki
    directory: Path
    logs: Path
    binaries: Path
    host_tools: Path

    @property
    def server(self) -> str:
        return f"https://{self.network.gateway}:{PORT}"

    def kubeconfig(self, user: str) -> Path:
        return self.directory / f"{user}.kubeconfig"

    def prepare(self) -> None:
        """Certificates and kubeconfigs. A repeat keeps what is there."""
        self.directory.mkdir(parents=True, exist_ok=True)
        pki = self.pki
        pki.create_authority()
        first_service = self.network.services.rpartition(".")[0] + ".1"
        names = ["DNS:kubernetes", "DNS:kubernetes.default", "DNS:kubernetes.default.svc"]
        names += ["DNS:localhost", "IP:127.0.0.1", f"IP:{self.network.gateway}"]
        pki.issue("apiserver", subject="kube-apiserver", names=[*names, f"IP:{first_service}"])
        pki.issue("kubelet-client", subject="kube-apiserver", organisation="system:masters")
        pki.issue(ADMIN, subject="kubernetes-admin", organisation="system:masters")
        for name in _CONTROLLERS:
            pki.issue(name, subject=f"system:kube-{name}")
        for user in (ADMIN, *_CONTROLLERS):
            self._write_kubeconfig(user)

    def start(self) -> Iterator[Daemon]:
        """Start the parts, each as soon as the one it needs answers. Yields each as it starts."""
        for name, argv in (("etcd", self._etcd()), ("kube-apiserver", self._apiserver())):
            with readiness.notification(self.directory / f"{name}.notify") as notified:
                daemon = self._start(name, argv, env={"NOTIFY_SOCKET": str(notified.path)})
                yield daemon
                notified.wait(daemon, timeout_s=_READY_TIMEOUT_S)
        self._await_roles()
        yield self._start("kube-controller-manager", self._controller_manager())
        yield self._start("kube-scheduler", self._scheduler())

    def kubectl(self, *arguments: str) -> list[str]:
        """argv of kubectl as the administrator, inside the lab's namespace."""
        program = str(self.binaries / "kubectl")
        return net.inside(
            self.network.name, program, f"--kubeconfig={self.kubeconfig(ADMIN)}", *arguments
        )

    def _await_roles(self) -> None:
        """The API server makes its default roles after it is ready; a controller manager that may
        not yet read its configuration ends.
        """
        wait = ["wait", "--for=create", "--namespace=kube-system", f"--timeout={_READY_TIMEOUT_S}s"]
        run_sync(self.kubectl(*wait, _LAST_ROLE), timeout_s=_READY_TIMEOUT_S + 10)

    def _start(self, name: str, argv: list[str], env: Mapping[str, str] | None = None) -> Daemon:
        log = self.logs / f"{name}.log"
        return start(name, net.inside(self.network.name, *argv), log=log, env=env)

    def _write_kubeconfig(self, user: str) -> None:
        text = kubeconfig(
            server=self.server,
            authority=str(self.pki.certificate("ca")),
            certificate=str(self.pki.certificate(user)),
            key=str(self.pki.key(user)),
        )
        self.kubeconfig(user).write_text(text)

    def _etcd(self) -> list[str]:
        data = self.directory / "etcd"
        data.mkdir(exist_ok=True)
        argv = ["etcd", f"--data-dir={data}", "--name=lab", "--log-level=warn"]
        argv += [f"--listen-client-urls={ETCD}", f"--advertise-client-urls={ETCD}"]
        argv += ["--listen-peer-urls=http://127.0.0.1:2380"]
        # The lab is thrown away with its data: durability would only cost disk time.
        argv += ["--unsafe-no-fsync"]
        return enclosed(self.host_tools, argv, binds={self.directory: str(self.directory)})

    def _apiserver(self) -> list[str]:
        pki = self.pki
        return [
            str(self.binaries / "kube-apiserver"),
            f"--etcd-servers={ETCD}",
            f"--bind-address={self.network.gateway}",
            f"--advertise-address={self.network.gateway}",
            f"--secure-port={PORT}",
            f"--service-cluster-ip-range={self.network.services}",
            f"--client-ca-file={pki.certificate('ca')}",
            f"--tls-cert-file={pki.certificate('apiserver')}",
            f"--tls-private-key-file={pki.key('apiserver')}",
            f"--kubelet-certificate-authority={pki.certificate('ca')}",
            f"--kubelet-client-certificate={pki.certificate('kubelet-client')}",
            f"--kubelet-client-key={pki.key('kubelet-client')}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer={self.server}",
            f"--service-account-key-file={pki.key('service-accounts')}",
            f"--service-account-signing-key-file={pki.key('service-accounts')}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--profiling=false",
        ]

    def _controller_manager(self) -> list[str]:
        config = str(self.kubeconfig("controller-manager"))
        return [
            str(self.binaries / "kube-controller-manager"),
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            f"--root-ca-file={self.pki.certificate('ca')}",
            f"--service-account-private-key-file={self.pki.key('service-accounts')}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--node-monitor-grace-period=180s",
            "--profiling=false",
        ]

    def _scheduler(self) -> list[str]:
        config = str(self.kubeconfig("scheduler"))
        return [
            str(self.binaries / "kube-scheduler"),
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--leader-elect=false",
        ]
