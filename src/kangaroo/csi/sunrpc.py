"""How many requests the node's NFS client keeps room for on a TCP connection.

A connection is made with `tcp_slot_table_entries` slots. What goes beyond allocates a slot for each
request and frees it after the reply, up to `tcp_max_slot_table_entries`, and may have to wait where
memory is short (net/sunrpc/xprt.c, xprt_alloc_slot). What is set counts for connections that are
made after it (net/sunrpc/xprtsock.c).
"""

from __future__ import annotations

import logging
from pathlib import Path

from kangaroo.errors import KangarooError
from kangaroo.linux import process

_log = logging.getLogger(__name__)

FEWEST, MOST = 2, 65536  # RPC_MIN_SLOT_TABLE, RPC_MAX_SLOT_TABLE_LIMIT

_SETTING = Path("/proc/sys/sunrpc/tcp_slot_table_entries")
_LOAD = ("modprobe", "sunrpc")
_LOAD_TIMEOUT_S = 10.0


async def raise_slot_table(entries: int, setting: Path = _SETTING) -> None:
    """See that new connections have at least `entries` slots; 0 leaves the node alone.

    Loads the module, which is there only after a first mount. A node that lets this not be done
    still mounts, so failures are logged and nothing is raised. Repeating it is fine.
    """
    if not entries:
        return
    try:
        if not setting.exists():
            await process.run(_LOAD, timeout_s=_LOAD_TIMEOUT_S)
        before = int(setting.read_text())
        if before < entries:
            setting.write_text(f"{entries}\n")
            _log.info("slot table raised tcp_slot_table_entries=%d before=%d", entries, before)
    except (KangarooError, OSError, ValueError) as error:
        _log.warning("slot table not raised tcp_slot_table_entries=%d: %s", entries, error)
