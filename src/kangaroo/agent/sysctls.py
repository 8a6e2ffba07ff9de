"""Kernel settings of the guest, written when its network is there and modules can be loaded."""

from __future__ import annotations

import os

from kangaroo.agent.children import Children
from kangaroo.errors import CommandFailed, DeadlineExceeded

_PROC_SYS = "/proc/sys"
# Settings that are there once their module is, of which nobody asks the kernel by name.
_OF_CONNTRACK = "net/netfilter/nf_conntrack_"
_LOAD_CONNTRACK = ("/sbin/modprobe", "--quiet", "nf_conntrack")
_TIMEOUT_S = 10.0


async def write(children: Children, sysctls: dict[str, str]) -> dict[str, str]:
    """Set each; which of them the kernel refused, and why."""
    if any(path(name).startswith(_OF_CONNTRACK) for name in sysctls):
        try:
            await children.run(_LOAD_CONNTRACK, timeout_s=_TIMEOUT_S)
        except (OSError, CommandFailed, DeadlineExceeded):
            pass  # what is not there then is refused by its name
    # By a child: a value may have the kernel load a module.
    refused: dict[str, str] = await children.call(
        lambda: _written(sysctls), what="sysctls", timeout_s=_TIMEOUT_S
    )
    return refused


def path(name: str) -> str:
    """The file beneath /proc/sys. Where the first separator is a dot, dots separate, and a slash
    stands for a dot in a name (sysctl.d(5)).
    """
    first = next((character for character in name if character in "./"), "/")
    return name if first == "/" else name.translate(str.maketrans("./", "/."))


def _written(sysctls: dict[str, str]) -> dict[str, str]:
    refused = {}
    for name, value in sysctls.items():
        try:
            with open(f"{_PROC_SYS}/{path(name)}", "w") as file:
                file.write(value)
        except OSError as error:
            refused[name] = os.strerror(error.errno or 0)
    return refused
