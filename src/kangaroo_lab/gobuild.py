"""Build static Go programs from a module of this package's data, with the machine's Go or Debian's.

A machine's Go that is too old for a module fetches the toolchain it needs by itself (Go 1.21 and
later do). Without even that, Debian trixie's Go runs from a root of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache as once
from pathlib import Path

from kangaroo.guest import debian
from kangaroo.linux.process import run_sync
from kangaroo_lab import cache, data
from kangaroo_lab.enclosure import enclosed

OLDEST_GO = (1, 21)
_BUILD_TIMEOUT_S = 3600.0
# The names and the authorities that the machine itself goes by.
_MACHINE = (Path("/etc/resolv.conf"), Path("/etc/hosts"), Path("/etc/ssl"))
_GO_PACKAGES = ("ca-certificates", "golang-go", "git")
# Static and stripped, from what go.sum has. What the linker strips need not be made: a tenth of the
# time.
_FLAGS = ("-mod=readonly", "-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false")
_LINKER_FLAGS = ("-s", "-w")


def build(
    module: str, packages: Sequence[str], output: Path, *, stamps: Sequence[str] = ()
) -> None:
    """Build `packages` of the data module into `output`, static and stripped.

    `stamps` are the linker's `-X` values. go.sum decides what is fetched and it is never changed.
    Raises CommandFailed, DeadlineExceeded.
    """
    ldflags = " ".join([*_LINKER_FLAGS, *(f"-X {stamp}" for stamp in stamps)])
    arguments = ["build", *_FLAGS, "-ldflags", ldflags, "-o", f"{output}/", *packages]
    _run(module, arguments, output)


def fetched(module: str, dependency: str) -> Path:
    """The files of a module that the data module requires, in Go's own cache: not to be changed.

    Raises CommandFailed, DeadlineExceeded.
    """
    with tempfile.TemporaryDirectory() as output:
        _run(module, ["mod", "download", dependency], Path(output))
        form = ["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", dependency]
        return Path(_run(module, form, Path(output)).strip())


def recipe(module: str) -> str:
    """Hash of the data module's files and of how they are built."""
    root = data.path(module)
    files = cache.digest_files(root, (path for path in root.rglob("*") if path.is_file()))
    return cache.digest(files, *_FLAGS, *_LINKER_FLAGS)


def version(module: str, dependency: str) -> str:
    """The version of `dependency` that the data module's go.mod requires, such as v1.2.3."""
    for line in (data.path(module) / "go.mod").read_text().splitlines():
        words = line.removeprefix("require").split()
        if words[:1] == [dependency]:
            return words[1]
    raise LookupError(f"{module}/go.mod does not require {dependency}")


def suitable(version: str) -> bool:
    """Whether `go version`'s answer is of a Go that can fetch newer ones by itself."""
    match = re.search(r"\bgo(\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) >= OLDEST_GO


@once
def machine_go() -> str | None:
    """Path of the machine's Go, if it is suitable."""
    found = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin")
    if found and suitable(run_sync([found, "version"], timeout_s=60)):
        return found
    return None


def go_root() -> Path:
    """A root of Debian's Go, for a machine that has none. Built once."""

    def make(work: Path) -> None:
        debian.bootstrap(work / "root", _GO_PACKAGES)

    inputs = cache.digest(cache.REFRESH, debian.SUITE, *_GO_PACKAGES)
    return cache.artefact("go-tools", inputs, make) / "root"


def _run(module: str, arguments: list[str], output: Path) -> str:
    source = data.path(module)
    argv = _go(arguments, output=output, source=source)
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "auto",
        "GOFLAGS": "",
        "GOWORK": "off",
    }
    return run_sync(["nice", *argv], timeout_s=_BUILD_TIMEOUT_S, env=environment, cwd=source)


def _go(arguments: list[str], *, output: Path, source: Path) -> list[str]:
    """The command that runs Go with `arguments` in the current directory."""
    if found := machine_go():
        return [found, *arguments]
    home = cache.cache_dir() / "go"
    home.mkdir(parents=True, exist_ok=True)
    inside = ["env", f"GOPATH={home}/path", f"GOCACHE={home}/build", "PATH=/usr/bin", "go"]
    return enclosed(
        go_root(),
        [*inside, "-C", str(source), *arguments],
        binds={path: str(path) for path in (output, home)},
        read_only={path: str(path) for path in (source, *_MACHINE) if path.exists()},
    )
