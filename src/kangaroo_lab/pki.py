"""The lab's own certificate authority, made by openssl, and the kubeconfigs that use it.

Keys are P-256: an emulated node checks an elliptic-curve signature far sooner than it starts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kangaroo.linux.process import run_sync

_TIMEOUT_S = 30
_DAYS = "3650"


@dataclass(frozen=True, slots=True)
class Pki:
    """Certificates in one directory: NAME.crt and NAME.key. A file that exists is kept."""

    directory: Path

    def certificate(self, name: str) -> Path:
        return self.directory / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    def create_authority(self) -> None:
        """The authority, and the key that signs service-account tokens."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._create_key("ca")
        if not self.certificate("ca").exists():
            self._openssl(
                *("req", "-x509", "-new", "-sha256", "-days", _DAYS, "-subj", "/CN=kangaroo-lab"),
                *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
                *("-key", str(self.key("ca")), "-out", str(self.certificate("ca"))),
            )
        self._create_key("service-accounts")

    def issue(
        self, name: str, *, subject: str, organisation: str = "", names: Sequence[str] = ()
    ) -> None:
        """A certificate good for both ends. `names` are `DNS:…` and `IP:…`. A repeat keeps it."""
        if self.certificate(name).exists():
            return
        self._create_key(name)
        request = self.directory / f"{name}.csr"
        group = f"/O={organisation}" if organisation else ""
        self._openssl(
            *("req", "-new", "-sha256", "-subj", f"{group}/CN={subject}"),
            *("-key", str(self.key(name)), "-out", str(request)),
        )
        extensions = self.directory / f"{name}.ext"
        extensions.write_text(_extensions(names))
        self._openssl(
            *("x509", "-req", "-sha256", "-days", _DAYS, "-in", str(request), "-CAcreateserial"),
            *("-CA", str(self.certificate("ca")), "-CAkey", str(self.key("ca"))),
            *("-extfile", str(extensions), "-out", str(self.certificate(name))),
        )
        request.unlink()
        extensions.unlink()

    def _create_key(self, name: str) -> None:
        if not self.key(name).exists():
            self._openssl(
                "ecparam", "-genkey", "-noout", "-name", "prime256v1", "-out", str(self.key(name))
            )

    def _openssl(self, *arguments: str) -> None:
        run_sync(["openssl", *arguments], timeout_s=_TIMEOUT_S)


def _extensions(names: Sequence[str]) -> str:
    lines = ["keyUsage=critical,digitalSignature", "extendedKeyUsage=serverAuth,clientAuth"]
    if names:
        lines.append(f"subjectAltName={','.join(names)}")
    return "\n".join(lines) + "\n"


def kubeconfig(*, server: str, authority: str, certificate: str, key: str) -> str:
    """A kubeconfig (JSON is YAML) that names its files by path."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "lab",
                    "cluster": {"server": server, "certificate-authority": authority},
                }
            ],
            "users": [
                {
                    "name": "user",
                    "user": {"client-certificate": certificate, "client-key": key},
                }
            ],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "user"}}],
            "current-context": "lab",
        },
        indent=1,
    )
