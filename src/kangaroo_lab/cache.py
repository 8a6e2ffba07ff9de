"""What was built, kept outside the checkout and named by the hash of what it was built from.

An artefact is a directory `<cache>/<name>-<hash>/`. It is built in a temporary directory beside it
and renamed, so one that exists is complete. A lock per name keeps two processes from building the
same twice. The last few versions of a name stay, because a running lab may use the one before.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kangaroo.linux import mount, mountinfo

Build = Callable[[Path], None]

KEPT_VERSIONS = 3
_HASH_DIGITS = 16
# A change here makes every artefact anew.
_FORMAT = "1"
# Count up to take newer packages from Debian's mirror with the same recipes: part of the inputs of
# whatever holds packages.
REFRESH = "1"


def cache_dir() -> Path:
    """`$KANGAROO_CACHE`, or `kangaroo` under `$XDG_CACHE_HOME` or `~/.cache`."""
    if explicit := os.environ.get("KANGAROO_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kangaroo"


def digest(*parts: str | bytes) -> str:
    """Hash of `parts`, in their order; their boundaries count."""
    state = hashlib.sha256(_FORMAT.encode())
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()[:_HASH_DIGITS]


def digest_files(root: Path, files: Iterable[Path]) -> str:
    """Hash of the contents and the names, relative to `root`, of `files`."""
    parts: list[str | bytes] = []
    for path in sorted(files):
        parts += [str(path.relative_to(root)), path.read_bytes()]
    return digest(*parts)


def lookup(name: str, inputs: str) -> Path | None:
    """The artefact, if it was built."""
    path = cache_dir() / f"{name}-{inputs}"
    return path if path.is_dir() else None


def artefact(name: str, inputs: str, build: Build) -> Path:
    """The directory of artefact `name` made from `inputs` (a `digest`), built if it is absent.

    `build` gets an empty directory and fills it; whatever it raises passes through, and nothing is
    kept then. Waits while another process builds an artefact of this name.
    """
    path = cache_dir() / f"{name}-{inputs}"
    with _locked(name):
        if not path.is_dir():
            with _workspace(name) as work:
                build(work)
                work.chmod(0o755)
                work.rename(path)
        os.utime(path)
        _prune(name)
    return path


def touch(path: Path) -> None:
    """Have the artefact that `path` is, or lies in, count as newly used. Others are left alone."""
    with contextlib.suppress(ValueError, FileNotFoundError):
        name, *_ = path.relative_to(cache_dir()).parts
        os.utime(cache_dir() / name)


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    locks = cache_dir() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / name).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _workspace(name: str) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache_dir()))
    try:
        yield work
    finally:
        _remove(work)


def _remove(tree: Path) -> None:
    """Remove a directory and all that is in it. What a killed build left mounted there (mmdebstrap
    the machine's /dev/shm, /sys and /proc) is not in it.
    """
    mounted = [
        entry.mount_point
        for entry in mountinfo.read()
        if Path(entry.mount_point).is_relative_to(tree.resolve())
    ]
    for point in mounted:
        mount.make_private(point)  # or the machine loses what is mounted in its own
    for point in reversed(mounted):
        mount.umount(point, mount.UmountFlag.DETACH)
    shutil.rmtree(tree, ignore_errors=True)


def _prune(name: str) -> None:
    """Remove all but the newest versions, and what killed builds of this name left behind."""
    versions = [
        path
        for path in cache_dir().glob(f"{name}-*")
        if len(path.name) == len(name) + 1 + _HASH_DIGITS
    ]
    versions.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    stale = versions[KEPT_VERSIONS:] + list(cache_dir().glob(f".{name}-????????"))
    for path in stale:
        _remove(path)
