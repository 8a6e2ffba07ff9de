"""Trees of Debian packages, by mmdebstrap, from the mirror that this machine's apt already uses."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from kangaroo.errors import FailedPrecondition
from kangaroo.linux.process import run_sync

SUITE = "trixie"
_BOOTSTRAP_TIMEOUT_S = 1800.0

_log = logging.getLogger(__name__)


def mirror() -> str:
    """URI of the Debian archive that apt is configured with, without a trailing slash.

    `KANGAROO_DEBIAN_MIRROR` overrides it, for a machine whose apt knows no Debian archive.
    Raises FailedPrecondition, with what apt has, when there is none.
    """
    if override := os.environ.get("KANGAROO_DEBIAN_MIRROR"):
        return override.rstrip("/")
    configured = _configured()
    uri = _archive("debian", configured)
    if uri is None:
        has = ", ".join(configured) or "no archive at all"
        raise FailedPrecondition(
            f"apt on this machine is configured with no Debian archive, but with {has}",
            hint="set KANGAROO_DEBIAN_MIRROR to the URI of one, which ends in /debian as a rule",
        )
    return uri


def security_mirror() -> str | None:
    """Likewise of Debian's security archive; `KANGAROO_DEBIAN_SECURITY_MIRROR` overrides it, and
    may be empty. None when there is none.
    """
    override = os.environ.get("KANGAROO_DEBIAN_SECURITY_MIRROR")
    if override is not None:
        return override.rstrip("/") or None
    return _archive("debian-security", _configured())


def _configured() -> list[str]:
    """The URIs of the archives that apt is configured with, whether it has their lists or not."""
    form = ["--no-release-info", "--format", "$(REPO_URI)", "Created-By: Packages"]
    return list(dict.fromkeys(_apt_output("apt-get", "indextargets", *form).splitlines()))


def _archive(name: str, configured: Sequence[str]) -> str | None:
    """The one of these archives whose path ends in `name`."""
    uris = (uri.rstrip("/") for each in configured for uri in _mirrors(each))
    return next((uri for uri in uris if urlsplit(uri).path.rpartition("/")[2] == name), None)


def _mirrors(uri: str) -> Iterator[str]:
    """Where an archive is; of one that apt has a local list of mirrors for, those in the list, as
    Debian's cloud images have it (apt-transport-mirror(1)).
    """
    parts = urlsplit(uri)
    if parts.scheme not in {"mirror+file", "mirror+copy"}:
        yield uri
        return
    try:
        text = Path(parts.path.rstrip("/")).read_text(errors="replace")
    except OSError as error:
        _log.warning("list of mirrors cannot be read uri=%s error=%s", uri, error)
        return
    for line in text.splitlines():
        if not line.startswith("#"):
            yield from line.split()[:1]


def bootstrap(
    target: Path,
    packages: Sequence[str],
    *,
    variant: str = "minbase",
    hooks: Sequence[str] = (),
    security: bool = False,
) -> None:
    """Make a tree of `packages` and what they depend on at `target`.

    `target` is a directory, or a file name whose suffix tells mmdebstrap the format (`.tar`,
    `.ext2`, …). `variant` is mmdebstrap's: "extract" unpacks without running any package's scripts,
    "minbase" installs. `hooks` are passed as `--customize-hook`. With `security` packages come from
    the security archive, too, where the machine knows one, and a warning is logged where it does
    not.

    Raises FailedPrecondition (no mmdebstrap, no archive), CommandFailed, DeadlineExceeded.
    """
    if shutil.which("mmdebstrap") is None:
        raise FailedPrecondition("mmdebstrap is not installed", hint="apt-get install mmdebstrap")
    argv = [
        "mmdebstrap",
        f"--variant={variant}",
        f"--include={','.join(packages)}",
        *(f"--aptopt={option}" for option in _proxy_options()),
        *(f"--customize-hook={hook}" for hook in hooks),
        SUITE,
        str(target),
        mirror(),
    ]
    if security:
        argv += _security()
    run_sync(argv, timeout_s=_BOOTSTRAP_TIMEOUT_S, env=os.environ)


def _security() -> list[str]:
    if archive := security_mirror():
        return [f"deb {archive} {SUITE}-security main"]
    _log.warning("no security updates: apt is configured with no archive of them suite=%s", SUITE)
    return []


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
