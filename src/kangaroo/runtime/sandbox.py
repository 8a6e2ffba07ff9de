"""A pod's sandbox: a machine with an agent in it, and the containers that run there.

The shim calls this; what the Task API needs beyond (processes, events, stdio relays) it does with
`agent` and `streams()`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from kangaroo.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    KangarooError,
    NotFound,
    Unavailable,
)
from kangaroo.linux import cgroup
from kangaroo.nas import client_identity
from kangaroo.nas import passthrough as nas_passthrough
from kangaroo.nas.passthrough import PassthroughPolicy
from kangaroo.net.plan import GuestNetwork
from kangaroo.runtime import admission, guest_clock, node_settings, oci, port_forward
from kangaroo.runtime.agent_client import AgentClient
from kangaroo.runtime.config import RuntimeConfig
from kangaroo.runtime.host_side import HostSide, Placement
from kangaroo.runtime.node_mounts import NodeMounts
from kangaroo.runtime.passthrough import Passthrough, PodVolumes
from kangaroo.runtime.pod_events import PodEvents, PodName, Reason, not_flushed
from kangaroo.runtime.shared_dir import RootfsMount
from kangaroo.runtime.sizing import machine_size
from kangaroo.runtime.streams import StreamHub, StreamSet
from kangaroo.vmm.machine import require_kvm
from kangaroo.vmm.spec import Accelerator
from kangaroo.wire.agent_protocol import PROTOCOL_VERSION

_LOG = logging.getLogger(__name__)

_TAKE_BACK_S = 5.0


class Sandbox:
    """One running sandbox. Made by `boot`; every method may be called again."""

    def __init__(
        self, host: HostSide, agent: AgentClient, volumes: Passthrough, events: PodEvents
    ) -> None:
        assert host.machine is not None
        assert host.hub is not None
        self.agent = agent
        self._host = host
        self._machine = host.machine
        self._hub = host.hub
        self._volumes = volumes
        self._events = events
        self._shutdown: asyncio.Task[None] | None = None
        self._clock = self._keep_clock()

    @property
    def id(self) -> str:
        return self._host.placement.sandbox_id

    @property
    def pid(self) -> int:
        """QEMU's pid on the node."""
        return self._machine.pid

    def streams(self) -> StreamHub:
        """Where the guest's stdio streams arrive."""
        return self._hub

    @classmethod
    async def boot(
        cls,
        *,
        sandbox_id: str,
        spec: Mapping[str, Any],
        config: RuntimeConfig,
    ) -> Sandbox:
        """Start a sandbox for the pod of `spec`; its guest is configured, and has the pod's NAS
        volumes, when this returns.

        On error, cancellation included, everything is torn down. Raises InvalidRequest
        (annotations, sysctls), Unsupported (what a sandbox refuses), MountFailed,
        FailedPrecondition (the node lacks something), CommandFailed, DeadlineExceeded, Unavailable.
        """
        placement, policy = _plan(sandbox_id, spec, config)
        sysctls = oci.sysctls(spec)
        host = HostSide(placement, config)
        events = PodEvents(placement.pod, config.events_kubeconfig)
        try:
            await host.start()
            agent = await _connect_agent(host)
            network = host.network.plan.guest if host.network else GuestNetwork()
            await _introduce(agent, sandbox_id, str(spec.get("hostname") or sandbox_id[:12]))
            if network.interfaces:
                await agent.configure_network(**_network_message(network))
            if network.sysctls or sysctls:
                await _set_sysctls(agent, dict(network.sysctls), sysctls)
            volumes = _passthrough(host, agent, policy, network, events)
            await volumes.prepare()
        except BaseException:
            await host.release()
            await events.flush()
            raise
        hub = host.hub
        assert hub is not None
        host.forward_ports(lambda port: port_forward.guest_port(agent, hub, port))
        return cls(host, agent, volumes, events)

    async def create_container(
        self,
        *,
        container_id: str,
        bundle: Path,
        spec: Mapping[str, Any],
        rootfs: Sequence[RootfsMount],
        stdio: StreamSet,
    ) -> int:
        """Create a container in the guest; the pid of its init there.

        Its NAS volumes are in the guest when this returns (passthrough.Passthrough.place). On error
        nothing of the container is left; a NAS volume that the guest has mounted stays there for
        the next try.
        """
        admission.check_container(spec)
        self._host.add_container(container_id)
        if (score := oci.oom_score(spec)) is not None:
            self._host.set_oom_score(score)
        try:
            shared = self._host.shared
            await asyncio.to_thread(
                shared.mount_rootfs, container_id, rootfs or (_bundle_rootfs(bundle, spec),)
            )
            places = await self._place_binds(container_id, spec)
            return await self.agent.create_container(
                container_id=container_id,
                spec=oci.guest_spec(
                    spec,
                    container_id=container_id,
                    sandbox_id=self.id,
                    places=places,
                ),
                stdio=stdio.wire,
                volumes=oci.volumes(spec, places),
            )
        except BaseException as error:
            if isinstance(error, DeadlineExceeded):
                await _take_back(self.agent, container_id)
            await self.remove_container(container_id)
            raise

    async def remove_container(self, container_id: str) -> None:
        """Unmount the container's root and binds on the node. Idempotent, also while the sandbox
        ends, which takes them with it.
        """
        await self._host.shared.remove(container_id)
        self._host.forget_container(container_id)

    async def wait_exit(self) -> int:
        """Wait until QEMU has ended; its exit status.

        When virtiofsd ends first, the containers have lost their roots: the sandbox is shut down.
        """
        machine = asyncio.ensure_future(self._machine.wait())
        files = asyncio.ensure_future(self._host.wait_virtiofsd())
        try:
            await asyncio.wait({machine, files}, return_when=asyncio.FIRST_COMPLETED)
            if not machine.done() and self._shutdown is None:
                _LOG.error("virtiofsd ended, so the sandbox does status=%d", files.result())
                await self.shutdown()
            return await machine
        finally:
            machine.cancel()
            files.cancel()

    async def pause(self) -> None:
        """Stop the whole machine, and with it the guest's clock."""
        await self._machine.pause()
        self._clock.cancel()

    async def resume(self) -> None:
        """Let the machine run again, with its clock set."""
        await self._machine.resume()
        self._clock.cancel()
        self._clock = self._keep_clock()

    async def volume_stats(self, path: str, timeout_s: float) -> dict[str, Any]:
        """What the guest says of the NAS volume whose placeholder stands at `path`. Raises
        NotFound, and what the guest's failure is.
        """
        for placeholder in self._host.state.placeholders:
            if placeholder.path == path:
                return await self.agent.volume_stats(
                    volume_id=placeholder.volume_id, timeout_s=timeout_s
                )
        raise NotFound(f"no NAS volume of {path} is in this sandbox's guest")

    async def shutdown(self) -> None:
        """Durable end: the guest stops containers, writes NAS volumes back, powers off; only then
        is it killed.

        Every resource on the node is gone afterwards. Idempotent, also while one runs; a caller's
        cancellation does not stop it.
        """
        if self._shutdown is None:
            self._shutdown = asyncio.create_task(self._end(), name="sandbox-shutdown")
        await asyncio.shield(self._shutdown)

    async def _place_binds(
        self, container_id: str, spec: Mapping[str, Any]
    ) -> dict[int, oci.BindPlace]:
        binds = oci.binds(spec, self.id)
        places: dict[int, oci.BindPlace] = dict(await self._volumes.place(binds))
        for bind in binds:
            if bind.index in places:
                continue
            places[bind.index] = await self._host.shared.bind(
                container_id,
                bind.source,
                read_only=bind.read_only,
                timeout_s=self._host.config.unmount_timeout_s,
            )
        return places

    def _keep_clock(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._watch_clock(), name="guest-clock")

    async def _watch_clock(self) -> None:
        """The one call that every guest has to answer all the time tells whether it still does."""
        limit_s = self._host.config.guest_silence_timeout_s
        if await guest_clock.keep(self.agent, silence_limit_s=limit_s):
            _LOG.error("guest does not answer, so the sandbox ends sandbox=%s", self.id)
            await self.shutdown()

    async def _end(self) -> None:
        self._clock.cancel()
        try:
            await self._flush()
            # The guest may be gone before its answer has left.
            with contextlib.suppress(KangarooError):
                await self.agent.power_off()
            await self._machine.finish(grace_s=self._host.config.power_off_timeout_s)
            await self.agent.aclose()
        finally:
            await self._host.release()
        await self._events.flush()
        _LOG.info("sandbox gone sandbox=%s", self.id)

    async def _flush(self) -> None:
        """Have the guest write its NAS volumes back; say by volume what could not be."""
        try:
            await self._machine.resume()
        except KangarooError as error:  # the guest may run and answer all the same: ask it
            _LOG.warning("machine not resumed sandbox=%s error=%s", self.id, error)
        try:
            flushed = await self.agent.shutdown(timeout_s=self._host.config.shutdown_timeout_s)
        except KangarooError as error:
            _LOG.error("guest did not flush sandbox=%s error=%s", self.id, error)
            for recorded in self._host.state.volumes:
                self._not_flushed(recorded.source, "the guest does not answer")
            return
        sources = {volume.volume_id: volume.source for volume in self._host.state.volumes}
        for volume in flushed:
            if not volume.flushed:
                self._not_flushed(sources.get(volume.volume_id, "unknown"), str(volume.error))

    def _not_flushed(self, source: str, error: str) -> None:
        _LOG.error("NAS volume not flushed sandbox=%s source=%s error=%s", self.id, source, error)
        self._events.tell(Reason.NOT_FLUSHED, not_flushed(source, error))


def _plan(
    sandbox_id: str, spec: Mapping[str, Any], config: RuntimeConfig
) -> tuple[Placement, PassthroughPolicy]:
    """Everything that can be refused before anything is made."""
    annotations = spec.get("annotations") or {}
    policy = nas_passthrough.policy(annotations)
    admission.check_sandbox(spec)
    pod = PodName.of(annotations)
    cgroups_path = (spec.get("linux") or {}).get("cgroupsPath")
    identity = client_identity.kernel_parameter(pod.uid if pod else None, sandbox_id)
    size = machine_size(
        annotations,
        config,
        memory_bounded=cgroup.memory_bounded(cgroups_path),
        group_bytes=cgroup.memory_limit(cgroups_path),
    )
    if size.missing_mib:
        _LOG.warning(
            "machine is smaller than the pod's limits ask sandbox=%s memory_mib=%d missing_mib=%d:"
            " raise the RuntimeClass's overhead.podFixed.memory, or max_memory_mib",
            *(sandbox_id, size.memory_mib, size.missing_mib),
        )
    placement = Placement(
        sandbox_id=sandbox_id,
        size=size,
        netns=admission.network_namespace(spec),
        cgroups_path=cgroups_path,
        pod=pod,
        kernel_parameters=(identity, *node_settings.kernel_parameters()),
    )
    config.require_guest_image()
    config.credentials()
    if config.accelerator is Accelerator.KVM:
        require_kvm()
    return placement, policy


async def _connect_agent(host: HostSide) -> AgentClient:
    """Wait for the guest's first connection while QEMU lives; errors carry its console."""
    assert host.machine is not None
    assert host.hub is not None
    timeout_s = host.config.boot_timeout_s
    control = asyncio.ensure_future(host.hub.control())
    ended = asyncio.ensure_future(host.machine.wait())
    try:
        await asyncio.wait({control, ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if control.done():
            return await AgentClient.connect(control.result(), timeout_s=host.config.call_timeout_s)
        if ended.done():
            raise Unavailable(
                f"the guest ended before its agent was there: {host.machine.failure()}",
                hint=f"console: {_console_tail(host)}",
            )
        raise Unavailable(
            f"the guest did not connect within {timeout_s:g} s",
            hint=f"console: {_console_tail(host)}",
        )
    finally:
        control.cancel()
        ended.cancel()
        await asyncio.gather(control, ended, return_exceptions=True)


async def _set_sysctls(agent: AgentClient, nodes: dict[str, str], pods: dict[str, str]) -> None:
    """Set what the pod's namespace has on the node, and over that what the pod asks for. Raises
    InvalidRequest naming one of the pod's that the guest's kernel refuses.
    """
    for name, why in (await agent.set_sysctls(nodes | pods)).items():
        if name in pods:
            raise InvalidRequest(f"sysctl {name}", f"the guest refuses {pods[name]!r}: {why}")
        _LOG.warning("guest has not the node's sysctl %s=%s: %s", name, nodes[name], why)


async def _take_back(agent: AgentClient, container_id: str) -> None:
    """End a container that a guest which did not answer in time has made, or makes yet."""
    init = {"container_id": container_id, "exec_id": ""}
    for call in (
        partial(agent.signal_process, **init, signal=signal.SIGKILL, all=True),
        partial(agent.wait_process, **init),
        partial(agent.delete_process, **init),
    ):
        with contextlib.suppress(KangarooError, TimeoutError):
            async with asyncio.timeout(_TAKE_BACK_S):
                await call()


async def _introduce(agent: AgentClient, sandbox_id: str, hostname: str) -> None:
    answer = await agent.hello(
        protocol=PROTOCOL_VERSION,
        sandbox_id=sandbox_id,
        hostname=hostname,
        time_ns=time.time_ns(),
    )
    if answer.get("protocol") != PROTOCOL_VERSION:
        raise FailedPrecondition(
            f"the guest speaks protocol {answer.get('protocol')!r}, not {PROTOCOL_VERSION}",
            hint="the guest image and the runtime must be of the same release",
        )
    _LOG.info(
        "guest is up version=%s kernel=%s boot_ns=%s",
        answer.get("version"),
        answer.get("kernel"),
        answer.get("boot_ns"),
    )


def _network_message(network: GuestNetwork) -> dict[str, list[dict[str, Any]]]:
    return {
        "interfaces": [asdict(interface) for interface in network.interfaces],
        "routes": [asdict(route) for route in network.routes],
        "neighbours": [asdict(neighbour) for neighbour in network.neighbours],
    }


def _passthrough(
    host: HostSide,
    agent: AgentClient,
    policy: PassthroughPolicy,
    network: GuestNetwork,
    events: PodEvents,
) -> Passthrough:
    config = host.config
    # Without a pod there is no kubelet directory, and nothing below it to take over.
    pod = host.placement.pod
    pod_directory = config.kubelet_root.resolve() / "pods" / (pod.uid if pod else "none")
    return Passthrough(
        policy=policy,
        pod=PodVolumes(pod_directory, network.addresses),
        agent=agent,
        state=lambda: host.state,
        save=host.save,
        mount_timeout_s=config.nas_mount_timeout_s,
        node=NodeMounts(unmount_timeout_s=config.unmount_timeout_s),
        tell=events.tell,
    )


def _bundle_rootfs(bundle: Path, spec: Mapping[str, Any]) -> RootfsMount:
    path = (spec.get("root") or {}).get("path") or "rootfs"
    return RootfsMount("bind", str(bundle / path), "", ("rbind", "rw"))


def _console_tail(host: HostSide) -> str:
    return host.console.tail() if host.console is not None else "none"
