"""Where a sandbox's shim keeps what `start` and `delete` must find without importing the rest.

The directory is `RuntimeConfig.state_root / <sandbox id>`; `start` does not pay for the
configuration's parser unless the file mentions `state_root`.
"""

from __future__ import annotations

from kangaroo.errors import InvalidRequest
from kangaroo.wire.node_protocol import SANDBOXES_DIRECTORY

LOG_NAME = "shim.log"
PID_NAME = "shim.pid"
ADDRESS_SCHEME = "unix://"

_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def state_root(config: str) -> str:
    """The directory of all sandboxes' state, from the configuration file (which may be absent).

    Raises InvalidRequest when the file cannot be read.
    """
    try:
        with open(config, "rb") as file:
            if b"state_root" not in file.read():
                return SANDBOXES_DIRECTORY
    except FileNotFoundError:
        return SANDBOXES_DIRECTORY
    from pathlib import Path

    from kangaroo.runtime.config import load

    return str(load(Path(config)).state_root)


def check_id(name: str) -> str:
    """Return an id that is safe as one path component. Raises InvalidRequest otherwise."""
    if not name or len(name) > 76 or name[0] in ".-" or not _ID_CHARACTERS.issuperset(name):
        raise InvalidRequest("id", f"{name!r} is not a valid container id")
    return name
