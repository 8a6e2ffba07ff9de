"""What a sandbox asks of its machine, its guest and its node; each of them a fake."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kangaroo.errors import DeadlineExceeded, InvalidRequest, Unavailable
from kangaroo.runtime import oci, sandbox
from kangaroo.runtime.agent_client import VolumeFlush
from kangaroo.runtime.config import RuntimeConfig
from kangaroo.runtime.pod_events import Reason
from kangaroo.runtime.sandbox import Sandbox
from kangaroo.runtime.state import SandboxState, VolumeState

VOLUME = VolumeState("nas-1", "nas:/csi", "nfs4", (), (), None)
NAMESPACES = [{"type": kind, "path": f"/proc/1/ns/{kind}"} for kind in ("network", "ipc", "pid")]


async def hang() -> None:
    """What nobody answers here."""
    await asyncio.Event().wait()


class World:
    """Everything around a sandbox writes down, in order, what it was asked."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.told: list[Reason] = []
        self.spec: dict[str, Any] = {}
        self.refused: set[str] = set()
        self.late: set[str] = set()
        self.flags: tuple[str, ...] = ()

    def asked(self, what: str, answer: object = None) -> Callable[..., Awaitable[Any]]:
        async def ask(*_: object, **given: Any) -> object:
            self.done.append(what)
            self.spec = given.get("spec", self.spec)
            if what in self.refused:
                raise Unavailable(f"{what} is refused")
            if what in self.late:
                raise DeadlineExceeded(f"{what} took too long")
            return answer

        return ask

    def sandbox(self) -> Sandbox:
        host = SimpleNamespace(
            machine=SimpleNamespace(resume=self.asked("resume"), finish=self.asked("finish")),
            hub=object(),
            placement=SimpleNamespace(sandbox_id="s1"),
            config=RuntimeConfig(),
            state=SandboxState("s1", volumes=(VOLUME,)),
            shared=SimpleNamespace(
                mount_rootfs=lambda *_: None,
                bind=lambda *_, **__: self.asked("bind", oci.SharedBind(0, self.flags))(),
                remove=self.asked("remove"),
            ),
            add_container=lambda _: None,
            forget_container=lambda _: None,
            release=self.asked("release"),
        )
        agent = SimpleNamespace(
            read_clock=hang,
            create_container=self.asked("create", 7),
            signal_process=self.asked("signal"),
            wait_process=self.asked("wait"),
            delete_process=self.asked("delete"),
            shutdown=self.asked("shutdown", [VolumeFlush("nas-1", True, None)]),
            power_off=self.asked("power off"),
            aclose=self.asked("close"),
        )
        volumes = SimpleNamespace(place=self.asked("place", {}))
        events = SimpleNamespace(
            tell=lambda reason, _: self.told.append(reason), flush=self.asked("events")
        )
        return Sandbox(host, agent, volumes, events)  # type: ignore[arg-type]


END = ["resume", "shutdown", "power off", "finish", "close", "release", "events"]


def ended(world: World) -> None:
    async def body() -> None:
        await world.sandbox().shutdown()

    asyncio.run(body())


def test_a_guest_writes_back_before_it_is_powered_off() -> None:
    world = World()
    ended(world)
    assert world.done == END
    assert world.told == []


def test_a_guest_is_asked_to_write_back_also_when_qemu_does_not_answer() -> None:
    """As on an overloaded node: the agent has a connection of its own."""
    world = World()
    world.refused = {"resume"}
    ended(world)
    assert world.done == END
    assert world.told == []


def test_a_guest_that_does_not_answer_costs_its_volumes_by_name() -> None:
    world = World()
    world.refused = {"shutdown"}
    ended(world)
    assert world.done == END
    assert world.told == [Reason.NOT_FLUSHED]


def created(world: World, **mount: Any) -> int:
    data = {"type": "bind", "source": "/v", "destination": "/data", **mount}

    async def body() -> int:
        return await world.sandbox().create_container(
            container_id="c1",
            bundle=Path("/b"),
            spec={"process": {}, "mounts": [data], "linux": {"namespaces": NAMESPACES}},
            rootfs=(),
            stdio=SimpleNamespace(wire={}),  # type: ignore[arg-type]
        )

    return asyncio.run(body())


def test_a_container_that_the_guest_makes_too_late_is_taken_back() -> None:
    world = World()
    world.late = {"create", "signal"}
    world.refused = {"wait"}
    with pytest.raises(DeadlineExceeded, match="create"):
        created(world)
    assert world.done == ["place", "bind", "create", "signal", "wait", "delete", "remove"]


def test_a_container_that_the_guest_refuses_is_not_asked_for_again() -> None:
    world = World()
    world.refused = {"create"}
    with pytest.raises(Unavailable, match="create"):
        created(world)
    assert world.done == ["place", "bind", "create", "remove"]


def test_flags_of_the_nodes_mounts_are_those_of_the_containers() -> None:
    world = World()
    world.flags = ("nosuid", "noexec")
    assert created(world, options=["rbind", "rw"]) == 7
    assert world.spec["mounts"][0]["options"] == ["rbind", "rw", "nosuid", "noexec"]


class Kernel:
    """A guest's: takes what it has, in the order in which it is told."""

    def __init__(self, *refused: str) -> None:
        self.told: list[tuple[str, str]] = []
        self.refused = dict.fromkeys(refused, "No such file or directory")

    async def set_sysctls(self, sysctls: dict[str, str]) -> dict[str, str]:
        self.told += sysctls.items()
        return {name: why for name, why in self.refused.items() if name in sysctls}


def set_sysctls(kernel: Kernel, pods: dict[str, str]) -> None:
    nodes = {"net/ipv4/tcp_rmem": "1 2 3"}
    asyncio.run(sandbox._set_sysctls(kernel, nodes, pods))  # type: ignore[arg-type]


def test_a_pods_own_sysctls_come_after_the_nodes() -> None:
    kernel = Kernel()
    set_sysctls(kernel, {"net.ipv4.tcp_rmem": "4 5 6"})
    assert kernel.told == [("net/ipv4/tcp_rmem", "1 2 3"), ("net.ipv4.tcp_rmem", "4 5 6")]


def test_a_sysctl_that_the_guest_refuses_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"net\.x: the guest refuses '1': No such file"):
        set_sysctls(Kernel("net.x"), {"net.x": "1"})


def test_a_guest_can_be_without_what_only_the_node_has() -> None:
    set_sysctls(Kernel("net/ipv4/tcp_rmem"), {"net.x": "1"})
