"""The tree that puts this project onto a node: library, entry scripts, units."""

from __future__ import annotations

import shutil
from pathlib import Path

import kangaroo
from kangaroo.linux.process import run_sync
from kangaroo_lab.enclosure import enclosed

_PACKAGE = Path(kangaroo.__file__).parent
CHECKOUT = _PACKAGE.parents[1]
_LIBRARY = "opt/kangaroo/lib"
_DEPLOYED = {
    "node/containerd-shim-kangaroo-v2": "usr/local/bin",
    "node/kangaroo": "opt/kangaroo/bin",
    "node/kangaroo-csi": "opt/kangaroo/bin",
    "systemd/kangaroo-csi.service": "etc/systemd/system",
    "systemd/kangaroo-sandboxes.service": "etc/systemd/system",
    "sysusers.d/kangaroo.conf": "etc/sysusers.d",
    "tmpfiles.d/kangaroo.conf": "etc/tmpfiles.d",
}
_COMPILE_TIMEOUT_S = 120


def install_project(root: Path, node_python: Path, *, host_tools: Path) -> None:
    """Put the project of this checkout under `root`, with the dependencies in `node_python`."""
    shutil.copytree(node_python, root / _LIBRARY, dirs_exist_ok=True, symlinks=True)
    install_code(root, host_tools=host_tools)


def install_code(root: Path, *, host_tools: Path) -> None:
    """Only what changes while one works on it: the package, entry scripts and units.

    All Python under `root` is compiled by the host tools' Python, which is the node's version: a
    first start of the driver that compiles for itself takes a minute on an emulated processor.
    """
    ignore = shutil.ignore_patterns("__pycache__")
    library = root / _LIBRARY
    shutil.copytree(_PACKAGE, library / "kangaroo", dirs_exist_ok=True, ignore=ignore)
    for source, directory in _DEPLOYED.items():
        target = root / directory / Path(source).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / "deploy" / source, target)
    on_path = root / "usr/local/bin/kangaroo"
    on_path.unlink(missing_ok=True)
    on_path.symlink_to("/opt/kangaroo/bin/kangaroo")
    compiler = ["python3", "-m", "compileall", "-q", "-j", "2", "/lib-to-compile"]
    # A dependency may carry files for another Python; they are not compiled, nor ever imported.
    command = enclosed(
        host_tools,
        ["sh", "-c", f"{' '.join(compiler)} || true"],
        binds={library: "/lib-to-compile"},
    )
    run_sync(command, timeout_s=_COMPILE_TIMEOUT_S)
