"""NFS mount options as text: check them, merge them by what each is about."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kangaroo.errors import InvalidRequest

_KEY = re.compile(r"[a-z][a-z0-9_]*(\.[0-9])?")
_VALUE = re.compile(r"[!-+\--~]+")  # printable ASCII without space and comma
_VERSION_FLAG = re.compile(r"v[2-4](\.[0-9])?")

# Options of mount(8) that would do something else than mount one NFS file system, now, on the
# target.
_REFUSED = {
    "bg": "a mount in the background would look mounted before it is",
    "addr": "the address is found from the server's name",
    "mountaddr": "the address is found from the server's name",
    "mounthost": "the address is found from the server's name",
    "clientaddr": "the address is the node's or the guest's own",
    "helper": "helpers are not run",
    "uhelper": "helpers are not run",
} | dict.fromkeys(
    (
        *("bind", "rbind", "move", "remount", "loop", "user", "users", "owner", "group"),
        *("shared", "rshared", "slave", "rslave"),
        *("private", "rprivate", "unbindable", "runbindable"),
    ),
    "not an option of an NFS mount",
)

_GROUPS = {
    "nfsvers": "vers",
    "minorversion": "minorversion",
    "tcp": "proto",
    "udp": "proto",
    "rdma": "proto",
    "rw": "ro",
    "hard": "soft",
    "softerr": "soft",
    "async": "sync",
}
_NEGATABLE = frozenset(
    (
        *("ac", "acl", "atime", "cto", "dev", "diratime", "exec", "fsc", "lock", "migration"),
        *("posix", "rdirplus", "resvport", "sharecache", "suid"),
    )
)


def parse(text: str, field: str) -> tuple[str, ...]:
    """The options of a comma list. Blanks around a comma are forgiven. Raises InvalidRequest naming
    `field`.
    """
    options = tuple(option.strip(" ") for option in text.split(",")) if text.strip(" ") else ()
    for option in options:
        check(option, field)
    return options


def check(option: str, field: str) -> None:
    """Refuse what is no option of an NFS mount by its form; whether the kernel knows it, the kernel
    says.
    """
    key, equals, value = option.partition("=")
    if not _KEY.fullmatch(key) or (equals and not _VALUE.fullmatch(value)):
        raise InvalidRequest(field, f"{option!r} is not an NFS mount option")
    if key in _REFUSED:
        raise InvalidRequest(field, f"option {option!r} is refused: {_REFUSED[key]}")
    # These are understood here, so the kernel would not see what is wrong with them.
    if equals and (key in ("ro", "rw") or _VERSION_FLAG.fullmatch(key)):
        raise InvalidRequest(field, f"option {option!r} is refused: {key!r} takes no value")
    if option == "minorversion":
        raise InvalidRequest(field, f"option {option!r} is refused: it has no value")


def key_of(option: str) -> str:
    """What an option is about: `nolock` and `lock` are one, as are `hard`, `soft` and `softerr`."""
    key = option.partition("=")[0]
    if _VERSION_FLAG.fullmatch(key):
        return "vers"
    if key.startswith("no") and key[2:] in _NEGATABLE:
        return key[2:]
    return _GROUPS.get(key, key)


def merge(base: Iterable[str], override: Iterable[str]) -> tuple[str, ...]:
    """`base` with every option that `override` is also about replaced; within each, the later one
    wins.
    """
    merged: dict[str, str] = {}
    for option in (*base, *override):
        key = key_of(option)
        merged.pop(key, None)
        merged[key] = option
    return tuple(merged.values())


def version_of(option: str) -> str | None:
    """The NFS version that an option asks for, as written; None when it is about something else."""
    key, _, value = option.partition("=")
    if key in ("vers", "nfsvers"):
        return value
    return key[1:] if _VERSION_FLAG.fullmatch(key) else None
