"""From a NAS mount in the node's mount table to the same mount in a guest.

The kernel shows the options in force (fs/nfs/super.c, nfs_show_mount_options), which are nearly,
but not quite, the options that mount(2) takes (fs/nfs/fs_context.c). What belongs to the node alone
is dropped or rewritten; what the guest cannot keep up is refused; everything else is passed on,
also what is not known here, so that no option is lost on the way in silence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kangaroo.errors import InvalidRequest, Unsupported
from kangaroo.linux.mountinfo import MountEntry

NFS_FSTYPES = frozenset({"nfs", "nfs4"})

# Mount flags that the agent sets by mount(2)'s flags. `sync` is understood among the data, too.
_FLAGS = ("ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime")
# What else the kernel shows of a mount that asks nothing of the guest.
_DEFAULT_FLAGS = frozenset({"rw", "relatime"})
# namlen is asked from the server again; fsc needs a daemon of the node; seclabel and contexts are
# the node's LSM; relatime is the kernel's default; fatal_neterrors (Linux 6.15, always shown) is
# about containers whose network goes before their mounts, and the guest's kernel may not know it,
# nor rdirplus=force, of the same age, by which nothing else is read, only otherwise.
_DROPPED = frozenset(
    {"rw", "namlen", "fsc", "seclabel", "context", "fscontext", "defcontext", "rootcontext"}
    | {
        "relatime",
        "fatal_neterrors",
        "rdirplus",
        "clientaddr",
        "mountaddr",
        "mountport",
        "mountproto",
        "mountvers",
    }
    | {"addr", "vers", "nfsvers", "minorversion"}
) | frozenset(_FLAGS)


@dataclass(frozen=True, slots=True)
class GuestMount:
    """What the agent's MountNas needs, and what error messages name."""

    volume_id: str  # "nas-" and 16 hex digits: equal for equal mounts
    source: str  # "server:/path", as the node mounted it
    fstype: str  # "nfs" or "nfs4"
    flags: tuple[str, ...]
    options: str  # data of mount(2)
    server: str  # without brackets
    path: str
    version: str  # "3", "4.0", "4.1", "4.2"
    guest_address: str  # that the server will see


def is_nas(entry: MountEntry) -> bool:
    """Whether this mount is an NFS mount."""
    return entry.fstype in NFS_FSTYPES


def from_mount(entry: MountEntry, *, guest_addresses: Sequence[str]) -> GuestMount:
    """The guest's mount for a node's NFS mount (a bind of a sub-directory names it in `source`
    already).

    `guest_addresses` are the pod's; at the one of the server's family an NFSv4.0 server calls back.
    Raises InvalidRequest when the entry is not an NFS mount, Unsupported when its server, its
    security or its locks need a daemon or a device that the guest has not, or when it has a flag
    that containers of the guest could not be given.
    """
    if not is_nas(entry):
        raise InvalidRequest("mount", f"{entry.mount_point} is {entry.fstype}, not NFS")
    shown = _shown(entry)
    _refuse_unsupported(entry, shown)
    server, path = split_source(entry.source)
    version = _version(entry, shown)
    address = _address(entry, shown)
    _refuse_loopback(entry, address)
    guest_address = _same_family(address, guest_addresses)
    _refuse_lock_daemons(entry, version, shown)
    flags = tuple(flag for flag in _FLAGS if flag in entry.options or flag in shown)
    options = ",".join(
        [f"vers={version}"]
        + [_join(key, value) for key, value in shown.items() if _kept(key, value, shown)]
        + _negotiation(version, shown, guest_address)
        + [f"addr={address}"]
    )
    digest = hashlib.sha256(
        "\0".join((entry.source, entry.fstype, ",".join(flags), options)).encode(
            "utf-8", "surrogateescape"
        )
    )
    return GuestMount(
        volume_id=f"nas-{digest.hexdigest()[:16]}",
        source=entry.source,
        fstype=entry.fstype,
        flags=flags,
        options=options,
        server=server,
        path=path,
        version=version,
        guest_address=guest_address,
    )


def split_source(source: str) -> tuple[str, str]:
    """Server (without brackets) and path of "server:/path", as the kernel splits it. Raises
    InvalidRequest.
    """
    if source.startswith("["):
        server, bracket, rest = source[1:].partition("]")
        if bracket and rest.startswith(":"):
            return server, rest[1:] or "/"
    else:
        server, colon, path = source.partition(":")
        if colon and server:
            return server, path or "/"
    raise InvalidRequest("mount source", f"{source!r} is not server:/path")


def _shown(entry: MountEntry) -> dict[str, str | None]:
    """Options of the file system as key → value, None for a flag; the later of two wins, as in the
    kernel.
    """
    shown: dict[str, str | None] = {}
    for option in entry.super_options:
        key, equals, value = option.partition("=")
        shown.pop(key, None)
        shown[key] = value if equals else None
    return shown


def _refuse_unsupported(entry: MountEntry, shown: dict[str, str | None]) -> None:
    security = shown.get("sec") or "sys"
    if security not in ("sys", "null", "none"):
        raise Unsupported(
            f"{entry.source}: sec={security} in the guest",
            hint="the guest has no Kerberos credentials; mount with sec=sys or without passthrough",
        )
    if (shown.get("xprtsec") or "none") != "none":
        raise Unsupported(
            f"{entry.source}: xprtsec={shown['xprtsec']} in the guest",
            hint="the guest has no TLS handshake daemon; mount without passthrough",
        )
    if (shown.get("proto") or "tcp").startswith("rdma"):
        raise Unsupported(
            f"{entry.source}: proto={shown['proto']} in the guest",
            hint="the guest has no RDMA device; mount with proto=tcp or without passthrough",
        )

    for flag in entry.options:
        if flag not in _DEFAULT_FLAGS and flag not in _FLAGS:
            raise Unsupported(
                f"{entry.source}: the mount flag {flag} in the guest",
                hint=f"mount without {flag} or without passthrough",
            )


def _refuse_loopback(entry: MountEntry, address: str) -> None:
    """A helper on the node (stunnel of efs-utils, aznfs) takes the NAS's requests there. The
    guest's own loopback is another: whoever of the pod listened would be taken for the NAS.
    """
    if address == "::1" or address.removeprefix("::ffff:").startswith("127."):
        raise Unsupported(
            f"{entry.source}: the server's address {address} in the guest",
            hint="that is the node's loopback, where a helper of the node forwards to the server,"
            " and the guest has a loopback of its own; mount without passthrough",
        )


def _refuse_lock_daemons(entry: MountEntry, version: str, shown: Mapping[str, str | None]) -> None:
    """Version 3 has its locks in a protocol beside (NLM). Its server remembers a client's locks
    until the client, started again, tells it so (rpc.statd, sm-notify), which a guest never is: the
    locks of a guest that was killed would stay for good, and fall to the next pod with its address.
    """
    if version == "3" and "nolock" not in shown and shown.get("local_lock") != "all":
        raise Unsupported(
            f"{entry.source}: locks of NFS version 3 in the guest",
            hint="mount with nolock, which keeps locks within the guest, or with version 4, whose"
            " locks hold across guests and nodes",
        )


def _same_family(server: str, addresses: Sequence[str]) -> str:
    """The first of the guest's addresses that the server at `server` can see."""
    same = (one for one in addresses if (":" in one) == (":" in server))
    return next(same, "::" if ":" in server else "0.0.0.0")


def _version(entry: MountEntry, shown: dict[str, str | None]) -> str:
    version = shown.get("vers") or shown.get("nfsvers")
    if not version:
        raise InvalidRequest("mount", f"{entry.source}: the mount table shows no NFS version")
    if version == "4":  # kernels that show the minor version apart
        return f"4.{shown.get('minorversion') or '0'}"
    return version


def _kept(key: str, value: str | None, shown: dict[str, str | None]) -> bool:
    if key == "local_lock":  # shown always; what follows from lock and nolock goes without saying
        return value != ("all" if "nolock" in shown else "none")
    if key == "sec":
        return value != "unknown"
    return key not in _DROPPED


def _negotiation(version: str, shown: dict[str, str | None], guest_address: str) -> list[str]:
    """The options that mount.nfs finds out on the node: for v4 the callback address, for v3 where
    mountd is.

    mountd is asked over TCP. The port that the node found is kept when it is a TCP port, which
    saves a question to rpcbind and works where rpcbind is closed; a UDP port would be the wrong
    one.
    """
    if version != "3":
        return [f"clientaddr={guest_address}"]
    protocol = shown.get("mountproto") or ""
    family6 = (shown.get("proto") or "").endswith("6")
    options = [f"mountproto={'tcp6' if family6 else 'tcp'}"]
    if shown.get("mountvers"):
        options.append(f"mountvers={shown['mountvers']}")
    if protocol.startswith("tcp") and shown.get("mountport"):
        options.append(f"mountport={shown['mountport']}")
    address = shown.get("mountaddr")
    if address and address not in ("unspecified", shown.get("addr")):
        options.append(f"mountaddr={address}")
    return options


def _address(entry: MountEntry, shown: dict[str, str | None]) -> str:
    address = shown.get("addr")
    if not address:
        raise InvalidRequest("mount", f"{entry.source}: the mount table shows no server address")
    return address


def _join(key: str, value: str | None) -> str:
    return key if value is None else f"{key}={value}"
