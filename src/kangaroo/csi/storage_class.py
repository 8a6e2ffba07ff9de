"""What a StorageClass says: its parameters checked, where a volume goes, what deletion does.

The names are those of Alibaba Cloud's NAS driver and of the community's csi-driver-nfs where these
mean the same; their case does not matter. docs/provisioning.md has the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar
from zlib import crc32

from kangaroo.csi.requests import FOREIGN_PREFIX
from kangaroo.csi.share_records import PRIVATE_DIRECTORY, OnDelete
from kangaroo.csi.volume_id import token_of
from kangaroo.errors import InvalidRequest
from kangaroo.nas import volume as nas_volume
from kangaroo.nas.volume import NasVolume

PARAMETERS = (
    *("server", "path", "share", "volumeAs", "subDir", "vers", "options", "mode", "modeType"),
    *("mountPermissions", "archiveOnDelete", "onDelete"),
)
DEFAULT_PERMISSIONS = 0o777

_BY_LOWER_CASE = {name.lower(): name for name in PARAMETERS}
_PASSED_ON = ("vers", "options", "mode", "modeType")
_TEMPLATES = {
    "${pvc.metadata.name}": f"{FOREIGN_PREFIX}pvc/name",
    "${pvc.metadata.namespace}": f"{FOREIGN_PREFIX}pvc/namespace",
    "${pv.metadata.name}": f"{FOREIGN_PREFIX}pv/name",
}
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SERVER = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*)(?::(?P<path>/.*))?")
_COMPONENT_LIMIT_BYTES = 255  # NAME_MAX

_E = TypeVar("_E", bound=StrEnum)


class VolumeAs(StrEnum):
    """What a volume is: a directory of its own on the share, or the share itself."""

    SUBPATH = "subpath"
    SHAREPATH = "sharepath"


@dataclass(frozen=True, slots=True)
class Provisioning:
    """A volume to be made. `subdir` is relative to the share, empty for the share itself."""

    share: NasVolume
    volume_as: VolumeAs
    subdir: str
    permissions: int
    on_delete: OnDelete
    context: Mapping[str, str]


def parse(
    parameters: Mapping[str, str],
    name: str,
    source: tuple[str, str] | None = None,
    *,
    mount_options: Sequence[str] = (),
) -> Provisioning:
    """What the volume `name` becomes. The same name goes to the same share every time, and a volume
    that is made from another or a snapshot to the server and path `source` where that lies, if the
    class has it.

    `mount_options` are the class's, which its volumes are mounted with: the share is mounted in
    their version. Raises InvalidRequest naming the parameter or mountOptions.
    """
    own = _own(parameters)
    shares = _shares(own)
    server, base = shares[crc32(name.encode(errors="surrogatepass")) % len(shares)]
    if source in shares:
        server, base = source
    volume_as = _choice("volumeAs", own, VolumeAs, VolumeAs.SUBPATH)
    passed_on = {key: own[key] for key in _PASSED_ON if own.get(key)}
    if volume_as is VolumeAs.SHAREPATH:
        if own.get("subDir"):
            raise _refused("subDir", "has no meaning with volumeAs 'sharepath'")
        subdir = ""
    else:
        subdir = _subdir(own.get("subDir", ""), parameters, name)
    context = {"server": server, "path": f"{base.rstrip('/')}/{subdir}", **passed_on}
    # The share's own path is checked already.
    checked = _volume(context, mount_options, path_from="subDir")
    share = _volume({"server": server, "path": base, "vers": checked.version})
    return Provisioning(
        share=share,
        volume_as=volume_as,
        subdir=subdir,
        permissions=_permissions(own.get("mountPermissions", "")),
        on_delete=_on_delete(own),
        context={**context, "server": checked.server, "path": checked.path},
    )


def shares(parameters: Mapping[str, str], *, mount_options: Sequence[str] = ()) -> list[NasVolume]:
    """The shares that a class spreads its volumes over, in the version that `parse` finds. Raises
    InvalidRequest.
    """
    own = _own(parameters)
    said = {key: own[key] for key in ("vers", "options") if own.get(key)}
    found = []
    for server, base in _shares(own):
        where = {"server": server, "path": base}
        version = _volume({**where, **said}, mount_options).version
        found.append(_volume({**where, "vers": version}))
    return found


def _own(parameters: Mapping[str, str]) -> dict[str, str]:
    own: dict[str, str] = {}
    for key, value in parameters.items():
        if key.startswith(FOREIGN_PREFIX):
            continue
        known = _BY_LOWER_CASE.get(key.lower())
        if known is None:
            raise _refused(key, "unknown", hint=f"known are {', '.join(PARAMETERS)}")
        if known in own:
            raise _refused(key, f"{known} is given twice")
        own[known] = value
    return own


def _shares(own: Mapping[str, str]) -> list[tuple[str, str]]:
    base = own.get("path") or own.get("share", "")
    if own.get("path") and own.get("share") and own["path"] != own["share"]:
        raise _refused("share", f"{own['share']!r} contradicts path {own['path']!r}")
    found = []
    for entry in own.get("server", "").split(","):
        match = _SERVER.fullmatch(entry.strip())
        if match is None or not match["host"]:
            raise _refused("server", f"{entry!r} is not a server or server:/path")
        if match["path"] and base:
            raise _refused("server", f"{entry!r} has a path, and 'path' or 'share' is given too")
        volume = _volume({"server": match["host"], "path": match["path"] or base or "/"})
        found.append((volume.server, volume.path))
    if len(set(found)) != len(found):
        raise _refused("server", "a share is named twice")
    return found


def _subdir(template: str, parameters: Mapping[str, str], name: str) -> str:
    if not template:
        # A name that would be an odd directory is replaced by what it hashes to.
        return name if _SAFE_NAME.fullmatch(name) else token_of(name)
    text = template
    for variable, key in _TEMPLATES.items():
        if variable in text:
            if not parameters.get(key):
                raise _refused(
                    "subDir",
                    f"{variable} is not known",
                    hint="run the external-provisioner with --extra-create-metadata",
                )
            text = text.replace(variable, parameters[key])
    if "${" in text:
        raise _refused(
            "subDir",
            f"{template!r} has an unknown variable",
            hint=f"known: {', '.join(_TEMPLATES)}",
        )
    parts = text.split("/")
    if parts[0] == PRIVATE_DIRECTORY:
        raise _refused("subDir", f"{PRIVATE_DIRECTORY} is the driver's own")
    for part in parts:
        if part in ("", ".", ".."):
            raise _refused("subDir", f"{text!r} is not a plain relative path")
        if len(part.encode(errors="surrogatepass")) > _COMPONENT_LIMIT_BYTES:
            raise _refused(
                "subDir", f"{part[:20]!r}… is longer than {_COMPONENT_LIMIT_BYTES} bytes"
            )
    return text


def _permissions(text: str) -> int:
    if not re.fullmatch(r"[0-7]{0,4}", text):
        raise _refused("mountPermissions", f"{text!r} is not up to four octal digits")
    return int(text or "0", 8) or DEFAULT_PERMISSIONS


def _on_delete(own: Mapping[str, str]) -> OnDelete:
    archive = own.get("archiveOnDelete", "") or "true"
    if archive not in ("true", "false"):
        raise _refused("archiveOnDelete", f"{archive!r} is neither 'true' nor 'false'")
    default = OnDelete.ARCHIVE if archive == "true" else OnDelete.DELETE
    return _choice("onDelete", own, OnDelete, default)


def _choice(key: str, own: Mapping[str, str], kind: type[_E], default: _E) -> _E:
    text = own.get(key, "")
    if text and text not in set(kind):
        raise _refused(key, f"{text!r} is unknown", hint=f"known are {', '.join(kind)}")
    return kind(text) if text else default


def _volume(
    attributes: Mapping[str, str], mount_options: Sequence[str] = (), *, path_from: str = "path"
) -> NasVolume:
    try:
        return nas_volume.parse(attributes, mount_options)
    except InvalidRequest as error:
        _, of_attribute, key = error.field.partition("volumeAttributes.")
        if not of_attribute:
            raise
        raise _refused(
            path_from if key == "path" else key, error.reason, hint=error.hint
        ) from error


def _refused(key: str, reason: str, *, hint: str | None = None) -> InvalidRequest:
    return InvalidRequest(f"parameters.{key}", reason, hint=hint)
