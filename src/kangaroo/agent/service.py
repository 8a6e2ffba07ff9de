"""The agent protocol's methods (docs/agent-protocol.md); each answers with a dict that becomes
JSON.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import kangaroo
from kangaroo.agent import clock, log, network, port_forward
from kangaroo.agent import sysctls as sysctl_files
from kangaroo.agent.children import Children
from kangaroo.agent.containers import Containers
from kangaroo.agent.loop import Future, Loop
from kangaroo.agent.nas import Volumes
from kangaroo.agent.stdio import Dial
from kangaroo.errors import FailedPrecondition
from kangaroo.wire.agent_protocol import PROTOCOL_VERSION

CONTAINERS_DIRECTORY = "/run/kangaroo/containers"
_CLOCK_TOLERANCE_NS = 1_000_000_000
_KILL_TIMEOUT_S = 5.0

Answer = dict[str, Any]


class OutOfMemoryEvents:
    """Containers that had an OOM kill, each once until it is told: one that has them all the time
    keeps none of the others back.
    """

    def __init__(self) -> None:
        self._containers: dict[str, None] = {}  # in the order of their first
        self._waiters: list[Future] = []

    def add(self, container_id: str) -> None:
        self._containers[container_id] = None
        if self._waiters:
            self._waiters.pop(0).set()

    async def next(self) -> str:
        """The container to tell of next, once there is one."""
        if not self._containers:
            waiter = Future()
            self._waiters.append(waiter)
            await waiter
        container_id = next(iter(self._containers))
        del self._containers[container_id]
        return container_id


class Service:
    """Every method is named as in the protocol, in snake case, and takes what `requests.read` has
    of its request.
    """

    def __init__(
        self, loop: Loop, *, dial: Dial, power_off: Callable[[], None], boot_ns: int
    ) -> None:
        self._loop = loop
        self._dial = dial
        self._power_off = power_off
        self._boot_ns = boot_ns
        self._out_of_memory = OutOfMemoryEvents()
        self._children = Children(loop)
        self._volumes = Volumes(loop, self._children)
        self._containers = Containers(
            loop,
            self._children,
            self._volumes,
            dial=dial,
            directory=CONTAINERS_DIRECTORY,
            on_out_of_memory=self._out_of_memory.add,
        )
        self._greeted = False

    async def hello(self, *, protocol: int, sandbox_id: str, hostname: str, time_ns: int) -> Answer:
        if protocol != PROTOCOL_VERSION:
            raise FailedPrecondition(
                f"the runtime speaks agent protocol {protocol}, this guest {PROTOCOL_VERSION}",
                hint="install the guest image and the runtime of one version",
            )
        socket.sethostname(hostname)
        if abs(time.time_ns() - time_ns) > _CLOCK_TOLERANCE_NS:
            time.clock_settime_ns(time.CLOCK_REALTIME, time_ns)
        if not self._greeted:
            log.info("serving", sandbox=sandbox_id)
        self._greeted = True
        return {
            "protocol": PROTOCOL_VERSION,
            "version": kangaroo.__version__,
            "kernel": os.uname().release,
            "boot_ns": self._boot_ns,
        }

    async def configure_network(
        self, *, interfaces: list[Answer], routes: list[Answer], neighbours: list[Answer]
    ) -> Answer:
        await network.configure(
            self._children, interfaces=interfaces, routes=routes, neighbours=neighbours
        )
        return {}

    async def set_sysctls(self, *, sysctls: dict[str, str]) -> Answer:
        return {"refused": await sysctl_files.write(self._children, sysctls)}

    async def read_clock(self) -> Answer:
        return {"time_ns": time.time_ns()}

    async def adjust_clock(self, *, offset_ns: int, interval_s: int) -> Answer:
        if interval_s:
            clock.slew(offset_ns, interval_s)
        else:
            clock.step(offset_ns)
        return {}

    async def mount_nas(self, **request: Any) -> Answer:
        volume = await self._volumes.mount(**request)
        return {"mount_point": volume.mount_point, "super_options": volume.super_options}

    async def create_container(self, **request: Any) -> Answer:
        return {"pid": await self._containers.create(**request)}

    async def start_container(self, **request: Any) -> Answer:
        await self._containers.start(**request)
        return {}

    async def exec_process(self, **request: Any) -> Answer:
        return {"pid": await self._containers.execute(**request)}

    async def signal_process(
        self,
        *,
        container_id: str,
        exec_id: str,
        signal: int,
        all: bool,  # noqa: A002 - the protocol's name
    ) -> Answer:
        self._containers.signal(
            container_id=container_id, exec_id=exec_id, number=signal, everyone=all
        )
        return {}

    async def wait_process(self, *, container_id: str, exec_id: str) -> Answer:
        end = await self._containers.wait(container_id=container_id, exec_id=exec_id)
        return {"exit_code": end.code, "exited_at_ns": end.time_ns}

    async def delete_process(self, **request: Any) -> Answer:
        await self._containers.delete(**request)
        return {}

    async def resize_pty(self, **request: Any) -> Answer:
        self._containers.resize(**request)
        return {}

    async def update_container(self, **request: Any) -> Answer:
        await self._containers.update(**request)
        return {}

    async def list_pids(self, *, container_id: str) -> Answer:
        return {"pids": self._containers.cgroup(container_id).pids()}

    async def container_stats(self, *, container_id: str) -> Answer:
        return self._containers.cgroup(container_id).stats()

    async def volume_stats(self, *, volume_id: str, timeout_s: float) -> Answer:
        return await self._volumes.stats(volume_id=volume_id, timeout_s=timeout_s)

    async def forward_port(self, *, port: int, stdin: str, stdout: str) -> Answer:
        await port_forward.forward(self._loop, self._dial, port=port, stdin=stdin, stdout=stdout)
        return {}

    async def next_event(self) -> Answer:
        return {"type": "oom", "container_id": await self._out_of_memory.next()}

    async def shutdown(self, *, timeout_s: float) -> Answer:
        """Kill containers, then write back and unmount every volume, in `timeout_s` together. What
        containers changed on the host's shared tree is written back as they end. A repeat finds
        nothing left to do.
        """
        deadline = time.monotonic() + timeout_s
        await self._containers.kill_all(min(_KILL_TIMEOUT_S, timeout_s / 2))
        outcomes = await self._volumes.unmount_all(deadline - time.monotonic())
        return {"volumes": outcomes}

    async def power_off(self) -> Answer:
        log.info("power off")
        self._power_off()
        return {}
