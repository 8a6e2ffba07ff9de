"""`kubectl port-forward` into the guest.

containerd serves it by dialling localhost in the pod's network namespace on the node (its CRI
plugin, sandbox_portforward_linux.go), where nothing of the guest listens. So every connection to
that namespace's loopback is redirected to one listener of the shim, which has the agent connect to
the same port in the guest and joins the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable

from kangaroo.errors import KangarooError
from kangaroo.linux.netns import run_in
from kangaroo.linux.process import run
from kangaroo.runtime.agent_client import AgentClient
from kangaroo.runtime.streams import StreamHub
from kangaroo.wire.aio import accept

_LOG = logging.getLogger(__name__)

_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h
_BUFFER_BYTES = 64 * 1024
_MAX_CONNECTIONS = 64
_NFT_TIMEOUT_S = 20
_RULES = """
table ip kangaroo {{
    chain output {{
        type nat hook output priority -100
        oifname "lo" ip protocol tcp redirect to :{port}
    }}
}}
"""

Ends = tuple[socket.socket, socket.socket]  # what the guest reads, what it writes
Connect = Callable[[int], Awaitable[Ends]]


async def serve(netns: str, connect: Connect, *, ready: asyncio.Event | None = None) -> None:
    """Serve the pod whose namespace is at `netns`, until cancelled; sets `ready` when it does.

    The rules go with the namespace. Raises CommandFailed, DeadlineExceeded, OSError when it cannot
    begin.
    """
    with await asyncio.to_thread(run_in, netns, _listen) as listener:
        rules = _RULES.format(port=listener.getsockname()[1])
        nft = ("nsenter", f"--net={netns}", "nft", "-f", "-")
        await run(nft, timeout_s=_NFT_TIMEOUT_S, input=rules)
        if ready is not None:
            ready.set()
        room = asyncio.Semaphore(_MAX_CONNECTIONS)
        async with asyncio.TaskGroup() as connections:
            while True:
                await room.acquire()
                client, _ = await accept(listener)
                task = connections.create_task(_forward(client, connect))
                task.add_done_callback(lambda _: room.release())


async def _forward(client: socket.socket, connect: Connect) -> None:
    with client:
        client.setblocking(False)
        try:
            reader, writer = await connect(_original_port(client))
        except (OSError, KangarooError) as error:
            _LOG.info("no forwarded connection error=%s", error)
            return
        with reader, writer:
            await _join((client, reader), (writer, client))


async def guest_port(agent: AgentClient, hub: StreamHub, port: int) -> Ends:
    """Connect to `port` in the guest. Raises Unavailable when nothing listens there."""
    streams = hub.issue(terminal=False, stdin=True, stdout=True, stderr=False)
    assert streams.stdin is not None
    assert streams.stdout is not None
    try:
        await agent.forward_port(port=port, stdin=streams.stdin.token, stdout=streams.stdout.token)
        return await streams.stdin, await streams.stdout
    except BaseException:
        streams.revoke()
        raise


def _listen() -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _original_port(client: socket.socket) -> int:
    """Where the client wanted to go before the redirection; struct sockaddr_in."""
    address = client.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
    (port,) = struct.unpack_from("!H", address, 2)
    return int(port)


async def _join(*directions: tuple[socket.socket, socket.socket]) -> None:
    """Copy each direction to its end."""
    async with asyncio.TaskGroup() as group:
        for source, sink in directions:
            group.create_task(_copy(source, sink))


async def _copy(source: socket.socket, sink: socket.socket) -> None:
    """Until end-of-file, which is passed on. A peer that is gone is an end too."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(source, _BUFFER_BYTES):
            await loop.sock_sendall(sink, data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
