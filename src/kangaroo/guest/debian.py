"""Trees of Debian packages, by mmdebstrap, from the mirror that this machine's apt already uses."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from kangaroo.errors import FailedPrecondition
from kangaroo.linux.process import run_sync

SUITE = "trixie"
BOOTSTRAP_TIMEOUT_S = 1800.0


def mirror() -> str:
    """URI of the Debian archive that apt is configured with, without a trailing slash.

    `KANGAROO_DEBIAN_MIRROR` overrides it, for a machine whose apt knows no Debian archive.
    Raises FailedPrecondition when there is none.
    """
    if override := os.environ.get("KANGAROO_DEBIAN_MIRROR"):
        return override.rstrip("/")
    uri = _archive("debian")
    if uri is None:
        raise FailedPrecondition(
            "apt on this machine is configured with no Debian archive",
            hint="set KANGAROO_DEBIAN_MIRROR to the URI of one",
        )
    return uri


def security_mirror() -> str | None:
    """Likewise of Debian's security archive; `KANGAROO_DEBIAN_SECURITY_MIRROR` overrides it, and
    may be empty. None when there is none.
    """
    override = os.environ.get("KANGAROO_DEBIAN_SECURITY_MIRROR")
    return _archive("debian-security") if override is None else override.rstrip("/") or None


def _archive(name: str) -> str | None:
    """The URI of an archive that apt is configured with, by the last part of its path."""
    targets = _apt_output(
        "apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"
    )
    uris = (line.partition(" ")[0].rstrip("/") for line in targets.splitlines())
    return next((uri for uri in uris if urlsplit(uri).path.rpartition("/")[2] == name), None)


def bootstrap(
    target: Path,
    packages: Sequence[str],
    *,
    suite: str = SUITE,
    variant: str = "minbase",
    hooks: Sequence[str] = (),
    aptopts: Sequence[str] = (),
    security: bool = False,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = BOOTSTRAP_TIMEOUT_S,
) -> None:
    """Make a tree of `packages` and what they depend on at `target`.

    `target` is a directory, or a file name whose suffix tells mmdebstrap the format (`.tar`,
    `.ext2`, …). `variant` is mmdebstrap's: "extract" unpacks without running any package's scripts,
    "minbase" installs. `hooks` and `aptopts` are passed as `--customize-hook` and `--aptopt`.
    With `security` packages come from the security archive, too, where the machine knows one.
    `environment` is added to the child's. Raises CommandFailed, DeadlineExceeded.
    """
    if shutil.which("mmdebstrap") is None:
        raise FailedPrecondition("mmdebstrap is not installed", hint="apt-get install mmdebstrap")
    argv = [
        "mmdebstrap",
        f"--variant={variant}",
        f"--include={','.join(packages)}",
        *(f"--aptopt={option}" for option in (*_proxy_options(), *aptopts)),
        *(f"--customize-hook={hook}" for hook in hooks),
        suite,
        str(target),
        mirror(),
    ]
    if security and (archive := security_mirror()):
        argv.append(f"deb {archive} {suite}-security main")
    run_sync(argv, timeout_s=timeout_s, env={**os.environ, **(environment or {})})


def _proxy_options() -> list[str]:
    """mmdebstrap starts from an empty apt configuration; a proxy of the machine has to be carried
    over.
    """
    dump = _apt_output("apt-config", "dump", "Acquire::http::Proxy", "Acquire::https::Proxy")
    return [line for line in dump.splitlines() if not line.endswith('"";')]


def _apt_output(*argv: str) -> str:
    if shutil.which(argv[0]) is None:
        raise FailedPrecondition(f"{argv[0]} is not installed", hint="this needs a Debian machine")
    return run_sync(argv, timeout_s=60)
