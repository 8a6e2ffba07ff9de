"""Install what the machine lacks, before there is a virtual environment: standard library only.

`python3 -m kangaroo_lab.bootstrap python` makes `python3 -m venv` work;
`python3 -m kangaroo_lab.bootstrap lab` installs the Debian packages of the lab and checks the disk.
Both do nothing, quickly, when nothing is missing. Go is not among the packages: a machine without a
suitable one gets Debian's in a root of its own (see `gobuild`).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from kangaroo.errors import CommandFailed, FailedPrecondition, KangarooError
from kangaroo.linux.process import run_sync
from kangaroo_lab import cache
from kangaroo_lab.progress import Steps

OLDEST_PYTHON = (3, 11)
LAB_PACKAGES = (
    "bubblewrap",
    "ca-certificates",
    "cpio",  # an independent reader for the initrd that the guest image is tested with
    "debian-archive-keyring",
    "e2fsprogs",
    "git",
    "iproute2",
    "kmod",
    "mmdebstrap",
    "nftables",
    "openssh-client",
    "openssl",
    "procps",
    "xz-utils",
    "zstd",
)
# Roots, Kubernetes with Go's own cache, node disks and overlays.
DISK_NEEDED_GIB = 16
_KEYRINGS = Path("/usr/share/keyrings")
_APT_TIMEOUT_S = 900.0
# A machine that was just started installs its updates first.
_LOCK_TIMEOUT_S = 600
_LOCK_RETRY_S = 5.0


def python() -> None:
    """Make sure that this Python is new enough and can make virtual environments."""
    if sys.version_info < OLDEST_PYTHON:
        have = ".".join(map(str, sys.version_info[:2]))
        raise FailedPrecondition(f"Python 3.11 or newer is needed, this is {have}")
    if importlib.util.find_spec("ensurepip") is None:
        _install(["python3-venv"])


def lab() -> None:
    """Make sure that the lab's packages are installed and that its disk has room."""
    if needed := missing(LAB_PACKAGES):
        _install(needed)
    directory = cache.cache_dir()
    directory.mkdir(parents=True, exist_ok=True)
    free_gib = shutil.disk_usage(directory).free >> 30
    if free_gib < DISK_NEEDED_GIB and not any(directory.glob("kubernetes-*")):
        raise FailedPrecondition(
            f"{directory} has {free_gib} GiB free, the lab needs {DISK_NEEDED_GIB}",
            hint="set KANGAROO_CACHE to a directory with more room",
        )


def missing(packages: Sequence[str]) -> list[str]:
    """Those of `packages` that are not installed, or too old to know trixie's keys."""
    if shutil.which("dpkg-query") is None:
        raise FailedPrecondition("this is no Debian machine", hint="Debian 12 or 13 is supported")
    absent = [name for name in packages if not _installed(name)]
    keyring = "debian-archive-keyring"
    if keyring not in absent and not any(_KEYRINGS.glob("debian-archive-trixie-*")):
        absent.append(keyring)
    return absent


def _installed(package: str) -> bool:
    try:
        query = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}", package]
        return run_sync(query, timeout_s=60) == "installed"
    except CommandFailed:
        return False


def _install(packages: Sequence[str]) -> None:
    if os.geteuid() != 0:
        raise FailedPrecondition(
            f"missing: {' '.join(packages)}", hint="run as root, or install them with apt-get"
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    waiting = ["-o", f"DPkg::Lock::Timeout={_LOCK_TIMEOUT_S}"]
    options = ["--yes", "--quiet", "--no-install-recommends", *waiting]
    print(f"installing {' '.join(packages)}", file=sys.stderr)
    step = "install Debian packages"
    with Steps([step], logs=cache.cache_dir() / "logs").step(step):
        # A list that cannot be had (some third party's) matters only if a package is missing.
        try:
            _update(environment)
        except CommandFailed as error:
            print(f"warning: {error.brief}", file=sys.stderr)
        install = ["apt-get", "install", *options, *packages]
        run_sync(install, timeout_s=_LOCK_TIMEOUT_S + _APT_TIMEOUT_S, env=environment)


def _update(environment: Mapping[str, str]) -> None:
    """Read the archives' lists. For their lock apt has no option to wait, as it has for dpkg's."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            run_sync(["apt-get", "update", "--quiet"], timeout_s=_APT_TIMEOUT_S, env=environment)
            return
        except CommandFailed as error:
            if "/lists/lock" not in error.stderr or time.monotonic() > deadline:
                raise
        time.sleep(_LOCK_RETRY_S)


def main(arguments: Sequence[str]) -> int:
    """Run the parts named; the exit status."""
    parts = {"python": python, "lab": lab}
    try:
        for name in arguments:
            parts[name]()
    except KangarooError as error:
        print(f"error: {error.brief if error.shown else error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
