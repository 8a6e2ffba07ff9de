"""The event publisher against an event service that is away, slow to come, refuses, or dies."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kangaroo.runtime import events
from kangaroo.runtime.events import EventPublisher
from kangaroo.wire.aio import RpcError, Server
from kangaroo.wire.gen import event_service_pb2
from kangaroo.wire.gen.task_events_pb2 import TaskOOM
from kangaroo.wire.status import Code


class EventService:
    """containerd's side; `refuse` names containers whose events it refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.received: list[str] = []
        self.refuse: set[str] = set()

    async def forward(self, payload: bytes) -> bytes:
        envelope = event_service_pb2.ForwardRequest.FromString(payload).envelope
        assert (envelope.topic, envelope.namespace) == ("/tasks/oom", "ns")
        assert envelope.event.type_url == "containerd.events.TaskOOM"
        assert envelope.timestamp.seconds > 0
        name = TaskOOM.FromString(envelope.event.value).container_id
        if name in self.refuse:
            raise RpcError(Code.INVALID_ARGUMENT, "no")
        self.received.append(name)
        return b""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()
        server = Server({events.SERVICE: {"Forward": self.forward}})
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(server.serve(listener))
            try:
                yield
            finally:
                serving.cancel()


@asynccontextmanager
async def publishing(service: EventService) -> AsyncIterator[EventPublisher]:
    publisher = EventPublisher(f"unix://{service.path}", "ns")
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(publisher.run())
        try:
            yield publisher
        finally:
            running.cancel()


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EventService:
    monkeypatch.setattr(events, "_RETRY_FIRST_S", 0.001)
    return EventService(tmp_path / "events.sock")


def test_events_wait_in_order_for_a_containerd_that_is_away(service: EventService) -> None:
    async def main() -> None:
        async with publishing(service) as publisher:
            for name in "abc":
                publisher.publish(TaskOOM(container_id=name))
            async with service.serving():
                assert await publisher.flush(10)
            publisher.publish(TaskOOM(container_id="d"))
            async with service.serving():  # it has restarted: the old connection is dead
                assert await publisher.flush(10)

    asyncio.run(main())
    assert service.received == ["a", "b", "c", "d"]


def test_a_refused_event_does_not_hold_up_the_others(service: EventService) -> None:
    async def main() -> None:
        service.refuse = {"bad"}
        async with publishing(service) as publisher, service.serving():
            for name in ("bad", "good"):
                publisher.publish(TaskOOM(container_id=name))
            assert await publisher.flush(10)

    asyncio.run(main())
    assert service.received == ["good"]


def test_the_oldest_gives_way_when_the_queue_is_full(
    service: EventService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_QUEUED", 2)

    async def main() -> None:
        publisher = EventPublisher(str(service.path), "ns")
        for name in "abc":
            publisher.publish(TaskOOM(container_id=name))
        assert not await publisher.flush(0)
        async with asyncio.TaskGroup() as tasks, service.serving():
            running = tasks.create_task(publisher.run())
            assert await publisher.flush(10)
            running.cancel()

    asyncio.run(main())
    assert service.received == ["b", "c"]


def test_without_an_address_there_is_nothing_to_do() -> None:
    async def main() -> None:
        publisher = EventPublisher("", "ns")
        publisher.publish(TaskOOM(container_id="a"))
        assert await publisher.flush(0)

    asyncio.run(main())
