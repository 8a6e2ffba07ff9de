"""The tree that puts this project onto a node: library, entry scripts, units, configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

import kangaroo

_PACKAGE = Path(kangaroo.__file__).parent
CHECKOUT = _PACKAGE.parents[1]
_LIBRARY = "opt/kangaroo/lib"

# The shim and the driver start python without site and user directories: `lib` is all they see.
_SCRIPT = """#!/usr/bin/python3 -I{flags}
import sys

sys.path.insert(0, "/opt/kangaroo/lib")

from {module} import main

sys.exit(main())
"""
_SCRIPTS = {
    "opt/kangaroo/bin/kangaroo": ("kangaroo.cli.main", ""),
    "opt/kangaroo/bin/kangaroo-csi": ("kangaroo.csi.main", ""),
    "usr/local/bin/containerd-shim-kangaroo-v2": ("kangaroo.runtime.shim", "S"),
}


def install_project(root: Path, node_python: Path) -> None:
    """Put the project of this checkout under `root`, with the dependencies in `node_python`."""
    library = root / _LIBRARY
    shutil.copytree(node_python, library, dirs_exist_ok=True, symlinks=True)
    install_code(root)


def install_code(root: Path) -> None:
    """Only what changes while one works on it: the package, entry scripts, units and configuration."""
    ignore = shutil.ignore_patterns("__pycache__")
    target = root / _LIBRARY / "kangaroo"
    shutil.copytree(_PACKAGE, target, dirs_exist_ok=True, ignore=ignore)
    for path, (module, flags) in _SCRIPTS.items():
        script = root / path
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(_SCRIPT.format(module=module, flags=flags))
        script.chmod(0o755)
    deploy = CHECKOUT / "deploy"
    for source, place in (("systemd", "etc/systemd/system"), ("etc", "etc/kangaroo")):
        if (deploy / source).is_dir():
            shutil.copytree(deploy / source, root / place, dirs_exist_ok=True)
