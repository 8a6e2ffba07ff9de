"""What a kubeconfig says about its current context: where the API server is, and who we are to it.

Only what a node's own kubeconfig uses: certificates and tokens, in files or in line. What would
start a program or talk through a proxy is refused by name.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kangaroo.errors import InvalidRequest

_REFUSED = {
    "cluster": ("insecure-skip-tls-verify", "proxy-url", "tls-server-name"),
    "user": ("exec", "auth-provider", "username", "password"),
}


@dataclass(frozen=True)
class ApiAccess:
    """Enough for a request. PEM as bytes; `authority` None means the system's authorities."""

    server: str  # https://HOST[:PORT][/PREFIX]
    authority: bytes | None = None
    certificate: bytes | None = None  # may hold the key, too
    key: bytes | None = None
    token: str | None = None


def load(path: Path) -> ApiAccess:
    """Read the file and the files that it names, which are relative to its own directory. Raises
    InvalidRequest naming file and key.
    """
    try:
        document = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise InvalidRequest(str(path), str(error)) from error
    return _Reader(path).access(document)


class _Reader:
    """Reads one document; `path` names it in errors."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def access(self, document: Any) -> ApiAccess:
        whole = self._mapping(document, "the document")
        name = whole.get("current-context")
        context = self._named(whole, "context", name)
        cluster = self._named(whole, "cluster", context.get("cluster"))
        user = self._named(whole, "user", context.get("user"))
        return ApiAccess(
            server=self._server(cluster),
            authority=self._content(cluster, "certificate-authority"),
            certificate=self._content(user, "client-certificate"),
            key=self._content(user, "client-key"),
            token=self._token(user),
        )

    def _named(self, whole: Mapping[str, Any], kind: str, name: Any) -> Mapping[str, Any]:
        """The entry of `kind`s that is called `name`, without what is refused."""
        entries = whole.get(f"{kind}s")
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and entry.get("name") == name:
                found = self._mapping(entry.get(kind), kind)
                for key in _REFUSED.get(kind, ()):
                    if found.get(key):
                        raise self._refused(f"{kind}.{key}", "is not supported here")
                return found
        raise self._refused(f"{kind}s", f"has no {name!r}")

    def _server(self, cluster: Mapping[str, Any]) -> str:
        server = cluster.get("server")
        if not isinstance(server, str) or not server.startswith("https://"):
            raise self._refused("cluster.server", f"{server!r} is not an https:// address")
        return server.rstrip("/")

    def _token(self, user: Mapping[str, Any]) -> str | None:
        if user.get("tokenFile"):
            return self._file("tokenFile", user["tokenFile"]).decode().strip()
        return str(user["token"]) if user.get("token") else None

    def _content(self, entry: Mapping[str, Any], key: str) -> bytes | None:
        """What `key` names or `key`-data holds; the latter wins, as in client-go."""
        if encoded := entry.get(f"{key}-data"):
            try:
                return base64.b64decode(str(encoded), validate=True)
            except binascii.Error as error:
                raise self._refused(f"{key}-data", str(error)) from error
        return self._file(key, entry[key]) if entry.get(key) else None

    def _file(self, key: str, name: Any) -> bytes:
        try:
            return (self._path.parent / str(name)).read_bytes()
        except OSError as error:
            raise self._refused(key, str(error)) from error

    def _mapping(self, value: Any, what: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._refused(what, "is not a mapping")
        return value

    def _refused(self, key: str, reason: str) -> InvalidRequest:
        return InvalidRequest(f"{self._path}: {key}", reason)
