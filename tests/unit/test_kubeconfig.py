"""Kubeconfigs as nodes have them: whose files are read, what is refused by name."""

from __future__ import annotations

import base64
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from kangaroo.errors import InvalidRequest
from kangaroo.runtime import kubeconfig
from kangaroo.runtime.kubeconfig import ApiAccess

# As kubeadm writes /etc/kubernetes/kubelet.conf.
KUBEADM = f"""
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: {base64.b64encode(b"the authority").decode()}
    server: https://10.0.0.1:6443
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: system:node:worker
  name: system:node:worker@kubernetes
current-context: system:node:worker@kubernetes
kind: Config
preferences: {{}}
users:
- name: system:node:worker
  user:
    client-certificate: pki/current.pem
    client-key: pki/current.pem
"""


def written(directory: Path, text: str) -> Path:
    path = directory / "kubelet.conf"
    path.write_text(dedent(text))
    (directory / "pki").mkdir(exist_ok=True)
    (directory / "pki" / "current.pem").write_text("certificate and key")
    return path


def changed(directory: Path, kind: str, **entry: Any) -> Path:
    """kubeadm's with another cluster or user."""
    document = yaml.safe_load(KUBEADM)
    document[f"{kind}s"][0][kind] = entry
    return written(directory, yaml.safe_dump(document))


def test_a_nodes_own(tmp_path: Path) -> None:
    assert kubeconfig.load(written(tmp_path, KUBEADM)) == ApiAccess(
        server="https://10.0.0.1:6443",
        authority=b"the authority",
        certificate=b"certificate and key",
        key=b"certificate and key",
    )


@pytest.mark.parametrize("key", ["token", "tokenFile"])
def test_a_token(tmp_path: Path, key: str) -> None:
    (tmp_path / "t").write_text("secret\n")
    value = {"token": "secret", "tokenFile": "t"}[key]
    access = kubeconfig.load(changed(tmp_path, "user", **{key: value}))
    assert (access.token, access.certificate) == ("secret", None)


@pytest.mark.parametrize(
    ("kind", "entry", "named"),
    [
        ("user", {"exec": {"command": "aws"}}, "user.exec"),
        ("user", {"client-certificate": "absent.pem"}, "client-certificate"),
        ("user", {"client-key-data": "not base64!"}, "client-key-data"),
        ("cluster", {"server": "http://10.0.0.1"}, "cluster.server"),
        ("cluster", {"server": "https://a", "insecure-skip-tls-verify": True}, "insecure-skip"),
        ("context", {"cluster": "other", "user": "u"}, "clusters"),
    ],
)
def test_what_is_refused_is_named(
    tmp_path: Path, kind: str, entry: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidRequest, match=named):
        kubeconfig.load(changed(tmp_path, kind, **entry))


@pytest.mark.parametrize("text", ["", "- a list", "a: [", "{}"])
def test_what_is_no_kubeconfig_names_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"kubelet\.conf"):
        kubeconfig.load(written(tmp_path, text))
