"""The agent's life: boot, dial the host, serve, shut down, power off."""

from __future__ import annotations

import gc
import os
import signal
import socket
import time
from typing import Any

from kangaroo.agent import boot, log
from kangaroo.agent.control import Control, handlers_of
from kangaroo.agent.loop import Loop
from kangaroo.agent.service import Service
from kangaroo.agent.stdio import Dial
from kangaroo.errors import InvalidRequest, KangarooError
from kangaroo.linux import libc
from kangaroo.wire.agent_protocol import DEBUG_KEY, PORT_KEY

_DIAL_TIMEOUT_S = 10.0
_LAST_SHUTDOWN_TIMEOUT_S = 60.0
_RB_POWER_OFF = 0x4321FEDC  # linux/reboot.h


def main() -> None:
    """Never returns: PID 1 that ends is a kernel panic."""
    # What is imported stays; the collector need not look at it again.
    gc.freeze()
    gc.enable()
    try:
        boot.mount_pseudo_file_systems()
        parameters = boot.command_line()
        if parameters.get(DEBUG_KEY) == "1":
            log.enable_debug()
        boot.load_modules()
        boot.enable_controllers()
        boot.raise_limits()
        boot.mount_shared()
        serve(_dialer(_port(parameters)))
    except KangarooError as error:
        log.info("cannot serve", error=error)
    except BaseException as error:
        log.exception("the agent failed", error)
    _power_off()


def serve(dial: Dial) -> None:
    """Serve one control connection until it closes or PowerOff is called; returns when all is
    unmounted.
    """
    # The kernel keeps signals without a handler from PID 1; for SIGINT Python has one, which would
    # end it. A container in the guest's own process namespace may send it. Ignored it would be by
    # every container's process, too.
    signal.signal(signal.SIGINT, lambda *_: None)
    # Who has all the ids of a process may set its limits, without any capability (prlimit(2)); two
    # groups nobody has. A program that is executed is of one again.
    os.setresgid(0, 0, 1)
    loop = Loop()
    powering_off = False

    def power_off() -> None:
        nonlocal powering_off
        powering_off = True
        # After this turn of the loop the answer to PowerOff is queued.
        loop.call_later(0, last_words)

    def last_words() -> None:
        control.flush()
        loop.stop()

    def on_closed() -> None:
        if not powering_off:
            loop.spawn(close_down())

    async def close_down() -> None:
        try:
            await service.shutdown(timeout_s=_LAST_SHUTDOWN_TIMEOUT_S)
        finally:
            loop.stop()

    service = Service(loop, dial=dial, power_off=power_off, boot_ns=time.monotonic_ns())
    control = Control(loop, dial(), handlers_of(service), on_closed)
    log.info("ready", monotonic_ms=time.monotonic_ns() // 1_000_000)
    loop.run()


def _port(parameters: dict[str, str]) -> int:
    try:
        return int(parameters[PORT_KEY])
    except (KeyError, ValueError) as error:
        raise InvalidRequest(PORT_KEY, "the kernel command line names no port") from error


def _dialer(port: int) -> Dial:
    def dial() -> socket.socket:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(_DIAL_TIMEOUT_S)
        address: Any = (socket.VMADDR_CID_HOST, port)
        sock.connect(address)
        return sock

    return dial


def _power_off() -> None:
    """Without sync(2), which would wait for a NAS that is gone; all else is written back by now."""
    try:
        libc.call("reboot", _RB_POWER_OFF)
    except OSError as error:
        log.info("the machine does not power off", error=error.strerror)
