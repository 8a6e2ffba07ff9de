"""Run a program of another root through bubblewrap, without writing into that root.

The root is the host tools' tree. Its /usr is bound read-only; its /etc is put together from its own
files and from those a caller gives, because a minimal root lacks some (/etc/services, /etc/mtab)
and a cached tree is never changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

_LINKS = ("bin", "sbin", "lib", "lib64")


def enclosed(
    root: Path,
    argv: Sequence[str],
    *,
    binds: Mapping[Path, str] | None = None,
    read_only: Mapping[Path, str] | None = None,
) -> list[str]:
    """argv that runs `argv` with `root` as its /; `binds` maps the machine's paths to paths inside.

    /dev and /proc are the machine's, the network namespace the caller's. Files in `read_only` that
    lie under /etc replace the root's own. All capabilities are kept: the caller is root and the
    program is trusted; this is a change of root, not a sandbox.
    """
    read_only = read_only or {}
    command = ["bwrap", "--cap-add", "ALL", "--ro-bind", str(root / "usr"), "/usr"]
    for link in _LINKS:
        command += ["--symlink", f"usr/{link}", f"/{link}"]
    command += _etc(root, hidden=set(read_only.values()))
    command += ["--dev-bind", "/dev", "/dev", "--proc", "/proc", "--ro-bind", "/sys", "/sys"]
    for directory in ("/run", "/tmp"):
        command += ["--tmpfs", directory]
    command += ["--dir", "/var"]
    for source, target in (binds or {}).items():
        command += ["--bind", str(source), target]
    for source, target in read_only.items():
        command += ["--ro-bind", str(source), target]
    return [*command, "--", *argv]


def _etc(root: Path, *, hidden: set[str]) -> list[str]:
    command = ["--dir", "/etc"]
    for entry in sorted((root / "etc").iterdir()):
        inside = f"/etc/{entry.name}"
        if inside in hidden or entry.name == "mtab":
            continue
        if entry.is_symlink():
            command += ["--symlink", str(entry.readlink()), inside]
        else:
            command += ["--ro-bind", str(entry), inside]
    return [*command, "--symlink", "/proc/self/mounts", "/etc/mtab"]
