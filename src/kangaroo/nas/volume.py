"""A NAS volume as a PersistentVolume describes it: volumeAttributes, mountOptions, read-only.

Everything is checked here, before anything runs: an error names the field as the manifest writes
it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kangaroo.errors import InvalidRequest
from kangaroo.nas import options as nfs_options

VERSIONS = ("3", "4", "4.0", "4.1", "4.2")
DEFAULT_VERSION = "3"
DEFAULT_OPTIONS = (  # after nolock (version 3) and proto
    "rsize=1048576",
    "wsize=1048576",
    "hard",
    "timeo=600",
    "retrans=2",
    "noresvport",
)

ATTRIBUTES = ("server", "path", "vers", "options", "mode", "modeType")
# Kubelet and the provisioner add keys of their own.
_FOREIGN_PREFIXES = ("csi.storage.k8s.io/", "storage.kubernetes.io/")

_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_PATH_LIMIT_BYTES = 1024  # NFS_MAXPATHLEN and MNTPATHLEN
_HOST_LIMIT = 253


@dataclass(frozen=True, slots=True)
class NasVolume:
    """A checked volume. `options` holds neither the version nor ro/rw."""

    server: str  # host name, IPv4 address, or IPv6 address in brackets
    path: str  # absolute, normalised
    version: str
    options: tuple[str, ...]
    read_only: bool = False
    mode: str | None = None  # octal digits for chmod
    mode_recursive: bool = False

    @property
    def source(self) -> str:
        """server:/path, the source of the mount."""
        return f"{self.server}:{self.path}"

    @property
    def tcp(self) -> str:
        """The netid of TCP to the server (nfs(5), `proto`). A name is taken for one with an IPv4
        address.
        """
        return _tcp(self.server)

    @property
    def option_string(self) -> str:
        """The comma list for `mount -o`."""
        access = ("ro",) if self.read_only else ()
        return ",".join((f"vers={self.version}", *self.options, *access))


def parse(
    attributes: Mapping[str, str],
    mount_options: Sequence[str] = (),
    *,
    read_only: bool = False,
) -> NasVolume:
    """Check and normalise what a PersistentVolume says.

    `mount_options` override `vers` and `options` of the attributes, option by option. Without any
    option the defaults apply. Raises InvalidRequest naming the field.
    """
    for key in attributes:
        if key not in ATTRIBUTES and not key.startswith(_FOREIGN_PREFIXES):
            raise InvalidRequest(
                f"volumeAttributes.{key}", "unknown", hint=f"known are {', '.join(ATTRIBUTES)}"
            )
    server = _server(attributes.get("server", ""))
    path = _path(attributes.get("path", ""))
    own = _attribute_options(attributes)
    override = tuple(
        option for text in mount_options for option in nfs_options.parse(text, "mountOptions")
    )
    version = (
        _version_in(override, "mountOptions") or _own_version(attributes, own) or DEFAULT_VERSION
    )
    merged = nfs_options.merge(own, override)
    access = [option for option in merged if option in ("ro", "rw")]
    plain = tuple(
        option
        for option in merged
        if nfs_options.key_of(option) not in ("vers", "minorversion", "ro")
    )
    if not plain and attributes.get("options", "").strip() != "none":
        lock = ("nolock",) if version == "3" else ()
        plain = (*lock, f"proto={_tcp(server)}", *DEFAULT_OPTIONS)
    return NasVolume(
        server=server,
        path=path,
        version=version,
        options=plain,
        read_only=read_only or access == ["ro"],
        mode=_mode(attributes.get("mode", ""), path),
        mode_recursive=_mode_recursive(attributes.get("modeType", "")),
    )


def _tcp(server: str) -> str:
    return "tcp6" if server.startswith("[") else "tcp"


def _server(server: str) -> str:
    field = "volumeAttributes.server"
    if not server:
        raise InvalidRequest(field, "missing")
    if server.startswith("${"):
        raise InvalidRequest(field, f"{server!r} is a placeholder", hint="write the NAS's address")
    if server.startswith("[") and server.endswith("]"):
        try:
            address = ipaddress.IPv6Address(server[1:-1])
        except ValueError as error:
            raise InvalidRequest(field, f"{server!r} is not an IPv6 address") from error
        if address.scope_id:
            raise InvalidRequest(
                field, f"{server!r}: an address with a scope is not routed to a NAS"
            )
        return f"[{address.compressed}]"
    if ":" in server:
        hint = "write an IPv6 address in brackets; a path goes into 'path', a port into 'options'"
        raise InvalidRequest(field, f"{server!r} has a colon outside brackets", hint=hint)
    if re.fullmatch(r"[0-9.]+", server):
        try:
            return str(ipaddress.IPv4Address(server))
        except ValueError as error:
            raise InvalidRequest(field, f"{server!r} is not an IPv4 address") from error
    labels = server.removesuffix(".").split(".")
    if len(server) > _HOST_LIMIT or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise InvalidRequest(field, f"{server!r} is not a host name or address")
    return server


def _path(path: str) -> str:
    field = "volumeAttributes.path"
    if not path:
        return "/"
    for character in path:
        if character in ",:" or not character.isprintable():
            raise InvalidRequest(field, f"{path!r} contains {character!r}")
    if not path.startswith("/"):
        raise InvalidRequest(field, f"{path!r} is not absolute")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidRequest(field, f"{path!r} contains '..'")
    if any(part != part.strip() for part in parts):
        raise InvalidRequest(field, f"{path!r}: a name begins or ends with a blank")
    try:
        length = len(path.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest(field, f"{path!r} is not valid Unicode") from error
    if length > _PATH_LIMIT_BYTES:
        raise InvalidRequest(field, f"longer than {_PATH_LIMIT_BYTES} bytes")
    return "/" + "/".join(parts)


def _attribute_options(attributes: Mapping[str, str]) -> tuple[str, ...]:
    text = attributes.get("options", "")
    # "none" is what Alibaba's driver takes for: not even the defaults.
    return () if text.strip() == "none" else nfs_options.parse(text, "volumeAttributes.options")


def _own_version(attributes: Mapping[str, str], own: Sequence[str]) -> str | None:
    written = attributes.get("vers", "")
    version = _version(written, "volumeAttributes.vers") if written else None
    in_options = _version_in(own, "volumeAttributes.options")
    if version and in_options and version != in_options:
        raise InvalidRequest(
            "volumeAttributes.vers", f"{written!r} contradicts vers={in_options} in 'options'"
        )
    return version or in_options


def _version_in(options: Sequence[str], field: str) -> str | None:
    """The one version that these options ask for. Raises InvalidRequest when they ask for two."""
    minor = next((o.partition("=")[2] for o in options if o.startswith("minorversion=")), None)
    written = [
        version for option in options if (version := nfs_options.version_of(option)) is not None
    ]
    versions = {_version(version, field) for version in written}
    if minor is not None:
        if versions - {"4", f"4.{minor}"}:
            raise InvalidRequest(field, f"minorversion={minor} contradicts vers={written[0]}")
        versions = {_version(f"4.{minor}", field)}
    if len(versions) > 1:
        raise InvalidRequest(field, f"two NFS versions: {' and '.join(sorted(versions))}")
    return versions.pop() if versions else None


def _version(text: str, field: str) -> str:
    version = "3" if text == "3.0" else text
    if version not in VERSIONS:
        raise InvalidRequest(
            field, f"NFS version {text!r} is unknown", hint=f"known are {', '.join(VERSIONS)}"
        )
    return version


def _mode(mode: str, path: str) -> str | None:
    field = "volumeAttributes.mode"
    if not mode:
        return None
    if not re.fullmatch(r"[0-7]{3,4}", mode):
        raise InvalidRequest(field, f"{mode!r} is not three or four octal digits")
    if path == "/":
        raise InvalidRequest(field, "the mode of the NAS's root directory is not changed")
    return mode


def _mode_recursive(kind: str) -> bool:
    if kind not in ("", "recursive", "non-recursive"):
        raise InvalidRequest(
            "volumeAttributes.modeType", f"{kind!r} is neither 'recursive' nor 'non-recursive'"
        )
    return kind == "recursive"
