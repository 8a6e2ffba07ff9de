"""`kangaroo-csi`: the CSI driver's process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from kangaroo import __version__
from kangaroo.csi import config as configuration
from kangaroo.csi import orphans, sunrpc
from kangaroo.csi.server import serving
from kangaroo.errors import KangarooError

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Exit status 2 for a configuration that cannot be used, 1 when
    what it names cannot be had.
    """
    parser = argparse.ArgumentParser(prog="kangaroo-csi", description="NAS volumes for Kubernetes.")
    parser.add_argument("--config", type=Path, default=configuration.DEFAULT_PATH, metavar="FILE")
    parser.add_argument("--version", action="version", version=__version__)
    arguments = parser.parse_args(argv)
    try:
        config = configuration.load(arguments.config)
    except KangarooError as error:
        print(f"kangaroo-csi: {error}", file=sys.stderr)
        return 2
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=config.log_level.upper(), handlers=(handler,))
    if group := orphans.service_group():
        orphans.end(group)
    try:
        asyncio.run(_serve(config))
    except KangarooError as error:
        print(f"kangaroo-csi: {error}", file=sys.stderr)
        return 1
    return 0


class OneLine(logging.Formatter):
    """An event is a line, whatever a request put into it. Tracebacks follow theirs as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        if text.isprintable():
            return text
        return "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode()
            for character in text
        )


async def _serve(config: configuration.Config) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    # Before anything can be mounted: a connection keeps the slots that it was made with.
    await sunrpc.raise_slot_table(config.sunrpc_tcp_slot_table_entries)
    async with serving(config):
        _log.info("ready driver=%s node=%s", config.driver_name, config.effective_node_id)
        _notify_systemd("READY=1")
        await stopped.wait()
        _log.info("stopping driver=%s", config.driver_name)


def _notify_systemd(state: str) -> None:
    """Tell a service manager that asks for it (sd_notify(3)); nothing otherwise."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.send(state.encode())


if __name__ == "__main__":
    sys.exit(main())
