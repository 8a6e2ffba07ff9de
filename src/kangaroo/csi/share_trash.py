"""Directories of a share that are being deleted: `trash/TOKEN` in the driver's own directory.

A directory leaves its place at once, by a rename; its content goes after that. What a killed
process left of one is deleted by the next that deletes for the same token.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable

from kangaroo.csi.share_records import PRIVATE_DIRECTORY, Refused, private

_TRASH = f"{PRIVATE_DIRECTORY}/trash"
_ERROR_LIMIT = 1000
_CHUNK_BYTES = 65536


def throw(root: int, name: str, directory: int, token: str) -> None:
    """Move `name` of `directory` into the trash, if it is there."""
    with private(root, _TRASH) as trash, contextlib.suppress(FileNotFoundError):
        unused = f"{token}.{time.time_ns()}"
        os.rename(name, unused, src_dir_fd=directory, dst_dir_fd=trash)


def holds(root: int, token: str) -> bool:
    """Whether something was thrown away for `token` and is not yet deleted."""
    with private(root, _TRASH) as trash:
        return bool(_names(trash, token))


def empty(root: int, token: str, tell: Callable[[], None] = lambda: None) -> None:
    """Delete what was thrown away for `token`; `tell` is called while that goes on."""
    with private(root, _TRASH) as trash:
        for name in _names(trash, token):
            _delete_tree(name, trash, tell)


def _names(trash: int, token: str) -> list[str]:
    with os.scandir(trash) as entries:
        names = (entry.name for entry in entries)
        return [name for name in names if name == token or name.startswith(f"{token}.")]


def _delete_tree(name: str, directory: int, tell: Callable[[], None]) -> None:
    """`rm` goes down any depth by descriptors and follows no link; shutil.rmtree recurses."""
    command = ("rm", "--recursive", "--force", "--one-file-system", "--verbose", "--", f"./{name}")
    with subprocess.Popen(
        command,
        cwd=f"/proc/self/fd/{directory}",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C"},
    ) as rm:
        assert rm.stdout is not None
        said = b""
        while chunk := os.read(rm.stdout.fileno(), _CHUNK_BYTES):
            said = (said + chunk)[-_ERROR_LIMIT:]
            tell()
    if rm.returncode != 0:
        lines = said.decode(errors="replace").splitlines()
        why = " ".join(line for line in lines if line.startswith("rm: "))
        raise Refused(f"not all of it could be deleted: {why or said.decode(errors='replace')}")
