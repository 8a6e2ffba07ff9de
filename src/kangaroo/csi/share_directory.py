"""A directory on a share, made for a volume that names one which is not there. Part of what
`share_worker` does; standard library and `kangaroo.linux` only.
"""

from __future__ import annotations

import os

from kangaroo.linux.openat2 import ensure_directory_beneath, open_beneath


def ensure(root: int, path: str, permissions: int) -> bool:
    """Make what is missing of `path` beneath `root`, with `permissions`; whether anything was.

    No symbolic link is followed. Raises OSError.
    """
    try:
        os.close(open_beneath(root, path, os.O_PATH | os.O_DIRECTORY, follow=False))
        return False
    except FileNotFoundError:
        os.close(ensure_directory_beneath(root, path, permissions, follow=False))
        return True
