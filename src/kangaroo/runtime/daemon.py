"""`daemon`: the shim itself, one per pod, from the first Create to Shutdown.

It serves the Task API on the socket that `start` made and left as descriptor 3, and ends when
containerd asks, or on SIGTERM; in either case the sandbox ends first, durably. It ends, too, when
containerd has no connection to it while it answers others: then it gave up, in `start` or when it
restarted, and will not ask. With a configuration that is refused it serves all the same: the pod's
Create fails with the reason, which is where its owner looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kangaroo.errors import KangarooError
from kangaroo.runtime import log_files, paths, shim_log
from kangaroo.runtime.background import Background
from kangaroo.runtime.boot_slot import boot_slot, processors
from kangaroo.runtime.config import LogLevel, RuntimeConfig, load
from kangaroo.runtime.events import EventPublisher
from kangaroo.runtime.options import ShimOptions
from kangaroo.runtime.pod import Pod
from kangaroo.runtime.sandbox import Sandbox
from kangaroo.runtime.sandbox_paths import SandboxPaths
from kangaroo.runtime.start import LISTENER_FD, own_command
from kangaroo.runtime.sweep import keep_clean
from kangaroo.runtime.task_service import TaskService
from kangaroo.runtime.volume_service import VolumeService
from kangaroo.wire.aio import Server
from kangaroo.wire.node_protocol import SOCKET_NAME, STATE_NAME

_LOG = logging.getLogger(__name__)
_FLUSH_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 1.0
_LOOK_S = 60.0  # containerd connects as soon as `start` has answered


def run(options: ShimOptions) -> int:
    """Serve until told to end; return the exit status."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    shim_log.configure(options.sandbox_id, debug=options.debug, bundle=".")
    os.chdir("/")  # the bundle is containerd's to remove
    config: RuntimeConfig | KangarooError
    try:
        config = load(Path(options.config))
    except KangarooError as error:
        _LOG.error("configuration refused error=%s", error)
        config = error
    else:
        if config.log_level is LogLevel.DEBUG:
            logging.getLogger().setLevel(logging.DEBUG)
    listener = socket.socket(fileno=LISTENER_FD)
    asyncio.run(_serve(options, config, listener))
    return 0


async def _serve(
    options: ShimOptions, config: RuntimeConfig | KangarooError, listener: socket.socket
) -> None:
    directory = Path(listener.getsockname()).parent  # where `start` put the socket
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)

    async def boot(*, sandbox_id: str, spec: dict[str, Any]) -> Sandbox:
        if isinstance(config, KangarooError):
            raise config
        async with boot_slot(config.state_root.parent, processors()):
            return await Sandbox.boot(sandbox_id=sandbox_id, spec=spec, config=config)

    background = Background()
    containerd = os.environ.get("TTRPC_ADDRESS", "")
    publisher = EventPublisher(containerd, options.namespace)
    pod = Pod(boot, publisher.publish, background)
    service = TaskService(pod, background, ending.set)
    server = Server({**service.handlers(), **VolumeService(pod).handlers()})
    serving = background.spawn(server.serve(listener), name="serve")
    background.spawn(_forgotten(server, pod, containerd, ending), name="forgotten")
    background.spawn(publisher.run(), name="events")
    files = SandboxPaths(directory)
    logs = (directory / paths.LOG_NAME, files.qemu_log, files.virtiofsd_log)
    background.spawn(log_files.keep_bounded(*logs), name="log-files")
    background.spawn(keep_clean(directory.parent, _delete_command(options)), name="sweep")
    _LOG.info("serving sandbox=%s namespace=%s", options.sandbox_id, options.namespace)

    await ending.wait()
    await pod.close()
    await publisher.flush(_FLUSH_TIMEOUT_S)
    await server.wait_idle(_ANSWER_TIMEOUT_S)
    serving.cancel()
    await background.aclose()
    _remove(directory)
    _LOG.info("ended")


async def _forgotten(server: Server, pod: Pod, containerd: str, ending: asyncio.Event) -> None:
    """End when containerd does not know of this shim. It connects to those it knows before it
    answers anybody, and stays connected; the `delete` that it runs for one that it gives up is
    killed after five seconds, and not repeated. While it is away, a pod lives on without it.
    """
    while True:
        await asyncio.sleep(_LOOK_S)  # nothing tells; others (the CSI driver) come and go
        if (pod.idle or await _answers(containerd)) and not server.connected:
            break
    _LOG.error("containerd does not know of this shim, ending")
    ending.set()


async def _answers(address: str) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(address)
    except OSError:
        return False
    writer.close()
    return True


def _delete_command(options: ShimOptions) -> Callable[[str, Path], Sequence[str]]:
    """argv of `delete` for a sandbox by its id and state directory, which stands for the bundle
    that is gone.
    """
    command = own_command(options)
    return lambda sandbox_id, directory: [
        *command,
        "-id",
        sandbox_id,
        "-bundle",
        str(directory),
        "delete",
    ]


def _remove(directory: Path) -> None:
    """Forget the sandbox, unless something of it could not be released: then `delete` needs the
    record.
    """
    if (directory / STATE_NAME).exists():
        _LOG.error("the sandbox's state is kept for a later cleanup directory=%s", directory)
        with contextlib.suppress(FileNotFoundError):
            (directory / SOCKET_NAME).unlink()
        return
    shutil.rmtree(directory, ignore_errors=True)
