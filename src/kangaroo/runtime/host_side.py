"""Everything of a sandbox that lives on the node: state directory, control group, tap, shared
directory, virtiofsd, vsock, QEMU. Acquired in order by `start`, released in reverse by `release`,
whatever was acquired.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kangaroo.errors import FailedPrecondition, InvalidRequest, KangarooError
from kangaroo.linux import cgroup, vsock
from kangaroo.runtime import port_forward, virtiofsd
from kangaroo.runtime import state as state_file
from kangaroo.runtime.config import RuntimeConfig
from kangaroo.runtime.pod_events import PodName
from kangaroo.runtime.recovery import remove_cgroup, remove_directory
from kangaroo.runtime.sandbox_paths import SandboxPaths
from kangaroo.runtime.shared_dir import SharedDirectory
from kangaroo.runtime.sizing import MachineSize
from kangaroo.runtime.state import ProcessIdentity, SandboxState
from kangaroo.runtime.streams import StreamHub
from kangaroo.vmm.child import Child, private_listener
from kangaroo.vmm.confinement import Confinement, NewScope
from kangaroo.vmm.console import Console
from kangaroo.vmm.machine import LaunchPaths, Machine, guest_memory
from kangaroo.vmm.spec import (
    KERNEL_PARAMETERS,
    GuestImage,
    MachineSpec,
    NetworkDevice,
    VirtiofsDevice,
    VsockDevice,
)
from kangaroo.wire.agent_protocol import DEBUG_KEY, PORT_KEY, VIRTIOFS_TAG

if TYPE_CHECKING:
    from kangaroo.net.apply import PodNetwork

_LOG = logging.getLogger(__name__)

_VHOST_NET_PATH = "/dev/vhost-net"
_CGROUP_TIMEOUT_S = 5.0
_OOM_SCORE_MOST = 1000
_SCOPE_TIMEOUT_S = 30.0
_VIRTIOFSD_GRACE_S = 5.0


@dataclass(frozen=True)
class Placement:
    """Where on the node the sandbox runs, and how large."""

    sandbox_id: str
    size: MachineSize
    netns: str | None
    cgroups_path: str | None
    pod: PodName | None
    kernel_parameters: tuple[str, ...] = ()


def _first_confinement(group: cgroup.Scope | Path, ready_fd: int) -> Confinement:
    """How the first process gets into the group: it makes the scope, or joins what we make."""
    if isinstance(group, Path):
        cgroup.create(group)
        return Confinement(cgroup=group)
    return Confinement(new_scope=NewScope(group.slice_name, group.name, ready_fd))


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    return reader, writer


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


class HostSide:
    """The node's side of one sandbox."""

    def __init__(self, placement: Placement, config: RuntimeConfig) -> None:
        self.placement = placement
        self.config = config
        self.paths = SandboxPaths(config.state_root / placement.sandbox_id)
        self.shared = SharedDirectory(self.paths.shared)
        pod = placement.pod
        self.state = SandboxState(
            placement.sandbox_id,
            pod_uid=pod.uid if pod else None,
            pod_namespace=pod.namespace if pod else None,
            pod_name=pod.name if pod else None,
        )
        self.network: PodNetwork | None = None
        self.hub: StreamHub | None = None
        self.machine: Machine | None = None
        self.console: Console | None = None
        self._virtiofsd: Child | None = None
        self._forwarding: asyncio.Task[None] | None = None
        self._cgroup: Path | None = None
        self._oom_score = _OOM_SCORE_MOST
        self._released = False

    def save(self, state: SandboxState) -> None:
        """Replace the state, in memory and on disk. Raises OSError, and FailedPrecondition once
        `release` takes the directory away: nothing may be acquired any more.
        """
        if self._released:
            raise FailedPrecondition(f"sandbox {self.placement.sandbox_id} is gone")
        state_file.save(self.paths.state_dir, state)
        self.state = state

    def add_container(self, container_id: str) -> None:
        """Record a container before anything of it is there. Raises as `save`."""
        self.save(self.state.with_container(container_id))

    def forget_container(self, container_id: str) -> None:
        """Take a container out of the record. Idempotent, also while `release` takes the record
        away. Raises OSError.
        """
        if container_id in self.state.containers and not self._released:
            self.save(self.state.without_container(container_id))

    async def start(self) -> None:
        """Acquire everything; QEMU runs afterwards. On error the caller calls `release`.

        Raises FailedPrecondition, CommandFailed, DeadlineExceeded, OSError.
        """
        self.paths.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        group = self._group()
        self._cgroup = group if isinstance(group, Path) else group.path
        self.save(dataclasses.replace(self.state, cgroup=str(self._cgroup)))
        network = asyncio.create_task(self._connect_network())
        try:
            self.shared.prepare()
            # Descriptors that QEMU inherits; our copies are closed once it has them.
            with contextlib.ExitStack() as descriptors:
                reader, writer = _pipe(descriptors)
                confinement = _first_confinement(group, writer)
                virtiofs = await self._start_virtiofsd(descriptors, confinement)
                vsock_device = self._listen_vsock(descriptors)
                await asyncio.shield(network)
                if confinement.new_scope is not None:
                    await self._wait_for_scope(reader)
                await self._launch(descriptors, virtiofs, vsock_device)
        finally:
            # Also on an error elsewhere: a tap that the thread is about to make must be known to
            # `release`.
            await asyncio.wait({network})
            if (error := network.exception()) is not None:
                _LOG.debug("network not connected error=%s", error)

    def set_oom_score(self, score: int) -> None:
        """When the node runs out of memory, the kernel ends QEMU and virtiofsd as kubelet wants a
        container ended (oom_score_adj, proc_pid_oom_score_adj(5)): the most precious of those
        that were said. Until the first they have containerd's own, as a pause container has.
        """
        self._oom_score = min(score, self._oom_score)
        assert self._cgroup is not None
        try:
            for pid in (self._cgroup / "cgroup.procs").read_text().split():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                    Path(f"/proc/{pid}/oom_score_adj").write_text(str(self._oom_score))
        except OSError as error:
            _LOG.warning("oom_score_adj not set error=%s", error)

    def forward_ports(self, connect: port_forward.Connect) -> None:
        """Serve `kubectl port-forward` from now on. In the background: the pod does not wait for
        it, and does without where the node has no nft.
        """
        netns = self.placement.netns
        if netns is not None:
            serving = _warning_only(port_forward.serve(netns, connect))
            self._forwarding = asyncio.create_task(serving, name="port-forward")

    async def release(self) -> None:
        """Kill what runs and take everything away. Idempotent; carries on past errors and logs
        them.
        """
        if self._forwarding is not None:
            self._forwarding.cancel()
            await asyncio.wait({self._forwarding})
        if self.machine is not None:
            with _carrying_on("QEMU"):
                await self.machine.kill()
        if self.console is not None:
            with _carrying_on("console"):
                self.console.close()
        if self.hub is not None:
            with _carrying_on("vsock"):
                await self.hub.aclose()
        if self._virtiofsd is not None:
            with _carrying_on("virtiofsd"):
                await self._virtiofsd.finish(grace_s=_VIRTIOFSD_GRACE_S)
        if self.network is not None:
            with _carrying_on("network"):
                self.network.close()
        if self._cgroup is not None:
            await asyncio.to_thread(remove_cgroup, self._cgroup, _CGROUP_TIMEOUT_S)
        self._released = True
        with _carrying_on("shared directory"):
            await asyncio.to_thread(self.shared.destroy)
        await asyncio.to_thread(remove_directory, self.paths.state_dir)

    async def wait_virtiofsd(self) -> int:
        """Wait until virtiofsd has ended; its exit status."""
        assert self._virtiofsd is not None
        return await self._virtiofsd.wait()

    async def _connect_network(self) -> None:
        if self.placement.netns is None:
            return
        # Netlink is the most expensive import of the runtime, and only this thread waits for it.
        netns = self.placement.netns

        def connect() -> PodNetwork | None:
            from kangaroo.net import apply

            return apply.connect(netns)

        self.network = await asyncio.to_thread(connect)

    def _group(self) -> cgroup.Scope | Path:
        path = self.placement.cgroups_path or f"/kangaroo/{self.placement.sandbox_id}"
        try:
            return cgroup.parse(path)
        except ValueError as error:
            raise InvalidRequest("linux.cgroupsPath", str(error)) from error

    async def _start_virtiofsd(
        self, stack: contextlib.ExitStack, confinement: Confinement
    ) -> socket.socket:
        self._virtiofsd, connection = await virtiofsd.start(
            self.config.virtiofsd,
            shared=self.paths.shared,
            xattr=self.config.virtiofs_xattr,
            socket_path=self.paths.virtiofsd_socket,
            log=self.paths.virtiofsd_log,
            confinement=confinement,
        )
        stack.enter_context(connection)
        identity = ProcessIdentity.of(self._virtiofsd.pid)
        self.save(dataclasses.replace(self.state, virtiofsd=identity))
        return connection

    async def _wait_for_scope(self, reader: int) -> None:
        """Wait until virtiofsd is in the scope that it makes; QEMU joins it there."""
        assert self._virtiofsd is not None
        await self._virtiofsd.until(
            _readable(reader), what="entering its systemd scope", timeout_s=_SCOPE_TIMEOUT_S
        )

    def _listen_vsock(self, stack: contextlib.ExitStack) -> VsockDevice:
        try:
            fd, cid = vsock.open_guest_cid()
            stack.callback(os.close, fd)
            listener = vsock.listen()
        except OSError as error:
            raise FailedPrecondition(
                f"vsock is not usable on this node: {error}",
                hint="load the kernel module vhost_vsock",
            ) from error
        self.hub = StreamHub(listener, is_guest=lambda peer: peer[0] == cid)
        self._port = listener.getsockname()[1]
        return VsockDevice(cid=cid, vhost_fd=fd)

    async def _launch(
        self, stack: contextlib.ExitStack, virtiofs: socket.socket, vsock_device: VsockDevice
    ) -> None:
        self.console = Console(self.paths.console_log)
        stack.callback(self.console.release_write_end)
        listener = stack.enter_context(private_listener(self.paths.qmp_socket))
        memory = guest_memory()
        stack.callback(os.close, memory)
        spec = MachineSpec(
            name=f"kangaroo-{self.placement.sandbox_id}",
            qemu=self.config.qemu,
            accelerator=self.config.accelerator,
            image=GuestImage(self.config.kernel, self.config.initrd, self.config.rootfs),
            memory_fd=memory,
            memory_mib=self.placement.size.memory_mib,
            vcpus=self.placement.size.vcpus,
            qmp_fd=listener.fileno(),
            console_fd=self.console.write_fd,
            command_line=self._command_line(),
            virtiofs=VirtiofsDevice(VIRTIOFS_TAG, virtiofs.fileno()),
            vsock=vsock_device,
            network=self._network_device(stack),
        )
        self.machine = await Machine.launch(
            spec,
            paths=LaunchPaths(self.paths.qmp_socket, self.paths.qemu_log),
            confinement=self._confinement(vsock_device.cid),
            timeout_s=self.config.boot_timeout_s,
        )
        identity = ProcessIdentity.of(self.machine.pid)
        self.save(dataclasses.replace(self.state, qemu=identity))

    def _command_line(self) -> tuple[str, ...]:
        debug = (f"{DEBUG_KEY}=1",) if self.config.guest_debug else ("quiet",)
        root = ("console=ttyS0", "root=/dev/vda", "ro", "rootfstype=erofs", "panic=-1")
        return (
            *root,
            *KERNEL_PARAMETERS,
            *debug,
            f"{PORT_KEY}={self._port}",
            *self.placement.kernel_parameters,
        )

    def _network_device(self, stack: contextlib.ExitStack) -> NetworkDevice | None:
        if self.network is None:
            return None
        vhost_fd = None
        # Without vhost-net QEMU moves the packets itself: slower, not different.
        with contextlib.suppress(OSError):
            vhost_fd = os.open(_VHOST_NET_PATH, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, vhost_fd)
        mac = self.network.plan.guest.interfaces[0].mac
        return NetworkDevice(mac=mac, tap_fd=self.network.tap_fd, vhost_fd=vhost_fd)

    def _confinement(self, cid: int) -> Confinement:
        netns = self.placement.netns
        credentials = self.config.credentials()
        if credentials is not None:
            # A user of its own, as unique as the context id: who breaks out into one QEMU must not
            # read another's memory.
            credentials = dataclasses.replace(credentials, uid=cid)
        return Confinement(
            cgroup=self._cgroup,
            netns=Path(netns) if netns is not None else None,
            credentials=credentials,
        )


@contextlib.contextmanager
def _carrying_on(what: str) -> Iterator[None]:
    """What cannot be released is said, and the rest is released all the same."""
    try:
        yield
    except (KangarooError, OSError) as error:
        _LOG.error("not released what=%s error=%s", what, error)


async def _warning_only(serving: Coroutine[None, None, None]) -> None:
    try:
        await serving
    except (OSError, KangarooError) as error:
        _LOG.warning("kubectl port-forward will not reach this pod error=%s", error)
