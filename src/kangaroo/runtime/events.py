"""Task events to containerd, in order, over ttrpc to `$TTRPC_ADDRESS`.

`publish` never blocks and never fails: events wait in a bounded queue while containerd restarts.
One sender keeps the order; it repeats an event until containerd has it or refuses it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from google.protobuf.message import Message

from kangaroo.wire.aio import Client, RpcError
from kangaroo.wire.gen import event_service_pb2, task_events_pb2
from kangaroo.wire.status import Code

_LOG = logging.getLogger(__name__)

SERVICE = "containerd.services.events.ttrpc.v1.Events"
MAX_QUEUED = 2048
_CALL_TIMEOUT_S = 5.0
_RETRY_FIRST_S = 0.1
_RETRY_MAX_S = 2.0

_TOPICS: dict[type[Message], str] = {
    task_events_pb2.TaskCreate: "/tasks/create",
    task_events_pb2.TaskStart: "/tasks/start",
    task_events_pb2.TaskExit: "/tasks/exit",
    task_events_pb2.TaskDelete: "/tasks/delete",
    task_events_pb2.TaskOOM: "/tasks/oom",
    task_events_pb2.TaskExecAdded: "/tasks/exec-added",
    task_events_pb2.TaskExecStarted: "/tasks/exec-started",
    task_events_pb2.TaskPaused: "/tasks/paused",
    task_events_pb2.TaskResumed: "/tasks/resumed",
}


class EventPublisher:
    """One containerd's event service. An empty `address` (no containerd) drops every event."""

    def __init__(self, address: str, namespace: str) -> None:
        self._address = address.removeprefix("unix://")
        self._namespace = namespace
        self._queue: deque[bytes] = deque()
        self._queued = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._client: Client | None = None

    def publish(self, event: Message) -> None:
        """Queue an event with the present time. The oldest gives way when the queue is full."""
        if not self._address:
            return
        request = event_service_pb2.ForwardRequest()
        request.envelope.timestamp.GetCurrentTime()
        request.envelope.namespace = self._namespace
        request.envelope.topic = _TOPICS[type(event)]
        request.envelope.event.type_url = event.DESCRIPTOR.full_name
        request.envelope.event.value = event.SerializeToString()
        if len(self._queue) >= MAX_QUEUED:
            self._queue.popleft()
            _LOG.error("event lost, the queue is full limit=%d", MAX_QUEUED)
        self._queue.append(request.SerializeToString())
        self._empty.clear()
        self._queued.set()

    async def run(self) -> None:
        """Send until cancelled."""
        try:
            while True:
                await self._queued.wait()
                await self._send_queued()
                self._queued.clear()
                self._empty.set()
        finally:
            await self._disconnect()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything is sent; False when `timeout_s` was not enough."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            _LOG.error("events left unsent count=%d", len(self._queue))
            return False
        return True

    async def _send_queued(self) -> None:
        delay_s = _RETRY_FIRST_S
        while self._queue:
            request = self._queue[0]
            if await self._try_send(request):
                delay_s = _RETRY_FIRST_S
                if self._queue and self._queue[0] is request:
                    self._queue.popleft()
            else:
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _RETRY_MAX_S)

    async def _try_send(self, request: bytes) -> bool:
        """True when the event needs no further try: containerd has it, or never will."""
        try:
            if self._client is None:
                self._client = await Client.connect_unix(self._address)
            await self._client.call(SERVICE, "Forward", request, timeout_s=_CALL_TIMEOUT_S)
        except OSError as error:
            _LOG.warning("containerd cannot be reached error=%s", error)
            return False
        except RpcError as error:
            if error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                _LOG.warning("event not sent yet error=%s", error)
                await self._disconnect()
                return False
            _LOG.error("containerd refused an event error=%s", error)
        return True

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
