"""Containers and their processes, run by crun."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from kangaroo.agent import log
from kangaroo.agent.cgroups import PARENT, Cgroup, OutOfMemory
from kangaroo.agent.children import Child, Children, Exit
from kangaroo.agent.crun import Crun, read_pid, remove_file, write_file
from kangaroo.agent.loop import PRIORITY, Future, Loop
from kangaroo.agent.nas import Volumes
from kangaroo.agent.shared import SharedVolumes
from kangaroo.agent.stdio import ConsoleSocket, Dial, Streams
from kangaroo.errors import (
    AlreadyExists,
    CommandFailed,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
)
from kangaroo.linux.mount import UmountFlag, umount
from kangaroo.wire.agent_protocol import SHARED_VOLUMES

BIND_TIMEOUT_S = 30.0
_CLEAN_UP_S = 10.0
_PLACES = "volumes"
_LOAD_FIREWALL = ("/sbin/modprobe", "--all", "--quiet", "ip_tables", "ip6_tables")
_LOAD_TIMEOUT_S = 10.0


class Process:
    """A process of a container and its streams."""

    def __init__(self, child: Child, streams: Streams) -> None:
        self.pid = child.pid
        self.exited: Future = child.exited
        self.streams = streams
        self.exited.then(streams.finish)

    @property
    def running(self) -> bool:
        return not self.exited.done


class Container:
    """One container; `processes` by exec id, "" is the init."""

    def __init__(self, container_id: str, directory: str) -> None:
        self.id = container_id
        self.directory = directory
        self.cgroup = Cgroup(container_id)
        self.processes: dict[str, Process] = {}
        self.volume_places: list[str] = []
        self.shared_volumes: list[str] = []
        self.out_of_memory: OutOfMemory | None = None
        self.started = False
        self.given_up = False  # somebody asked to delete it while it was made
        self.shares_processes = False


class Containers:
    """All containers of the guest, in bundles below `directory`."""

    def __init__(
        self,
        loop: Loop,
        children: Children,
        volumes: Volumes,
        *,
        dial: Dial,
        directory: str,
        on_out_of_memory: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._children = children
        self._volumes = volumes
        self._dial = dial
        self._directory = directory
        self._on_out_of_memory = on_out_of_memory
        self._shared = SharedVolumes(children)
        self._crun = Crun(children, f"{directory}/crun")
        self._containers: dict[str, Container] = {}
        self._terminals = itertools.count()

    async def create(
        self,
        *,
        container_id: str,
        spec: dict[str, Any],
        stdio: dict[str, Any],
        volumes: list[dict[str, Any]],
        timeout_s: float,
    ) -> int:
        """Make the container up to the point where its program would run; the pid of its init.

        Raises AlreadyExists, NotFound for a volume or subpath, CommandFailed with crun's words,
        DeadlineExceeded, FailedPrecondition when it was deleted meanwhile. Nothing is left behind
        by a failure.
        """
        if container_id in self._containers:
            raise AlreadyExists(f"container {container_id} exists")
        container = Container(container_id, f"{self._directory}/{container_id}")
        self._containers[container_id] = container
        deadline = time.monotonic() + timeout_s
        try:
            os.makedirs(container.directory, mode=0o700)
            await self._hold_shared(container, spec, deadline)
            await self._place_volumes(container, spec, volumes, deadline)
            await self._load_firewall(spec, deadline)
            linux = spec.setdefault("linux", {})
            linux["cgroupsPath"] = f"/{PARENT}/{container_id}"
            container.shares_processes = not _has_namespace(linux, "pid")
            spec["process"]["terminal"] = stdio["terminal"]
            write_file(f"{container.directory}/config.json", json.dumps(spec))
            command = ("create", f"--bundle={container.directory}")
            process = await self._launch(container, "", command, stdio, _left_s(deadline))
            if container.given_up:
                raise FailedPrecondition(f"container {container_id} was deleted while it was made")
        except BaseException:
            await self._undo(container)
            raise
        self._watch_memory(container)
        process.exited.then(lambda: _follow_init(container))
        return process.pid

    async def _undo(self, container: Container) -> None:
        """Take away what was made of a container. Why it was not made is what is told: a failure
        here is logged.
        """
        _kill(container.cgroup)
        try:
            await self._remove(container, _CLEAN_UP_S / 2)
            if not await container.cgroup.emptied(self._loop, _CLEAN_UP_S / 2):
                raise DeadlineExceeded("its processes do not end")
            if os.path.isdir(container.cgroup.path):  # of a crun that was killed
                os.rmdir(container.cgroup.path)
        except Exception as error:
            log.info("a container is not removed", container=container.id, error=error)
        finally:
            self._containers.pop(container.id, None)

    async def _load_firewall(self, spec: dict[str, Any], deadline: float) -> None:
        """For a container that may make rules: iptables of the older kind does not find its modules
        by itself, as it does everything else. A failure is logged.
        """
        if "CAP_NET_ADMIN" in spec["process"].get("capabilities", {}).get("bounding", ()):
            try:
                timeout_s = min(_LOAD_TIMEOUT_S, _left_s(deadline))
                await self._children.run(_LOAD_FIREWALL, timeout_s=timeout_s)
            except (OSError, CommandFailed, DeadlineExceeded) as error:
                log.info("iptables is not loaded", error=error)

    async def start(self, *, container_id: str, timeout_s: float) -> None:
        """Run the program. A repeat is harmless."""
        container = self._find(container_id)
        if not container.started:
            log_file = f"{container.directory}/start.log"
            await self._crun.run("start", container_id, log_file=log_file, timeout_s=timeout_s)
            container.started = True

    async def execute(
        self,
        *,
        container_id: str,
        exec_id: str,
        process: dict[str, Any],
        stdio: dict[str, Any],
        timeout_s: float,
    ) -> int:
        """Run one more process in a running container; its pid. What has not begun to run within
        `timeout_s` never will.
        """
        container = self._find(container_id)
        if exec_id in container.processes:
            raise AlreadyExists(f"process {exec_id} of container {container_id} exists")
        if not container.processes[""].running:
            raise FailedPrecondition(f"container {container_id} is not running")
        process["terminal"] = stdio["terminal"]
        path = f"{container.directory}/{exec_id}.process.json"
        write_file(path, json.dumps(process))
        command = ("exec", "--detach", f"--process={path}")
        try:
            started = await self._launch(container, exec_id, command, stdio, timeout_s)
        finally:
            remove_file(path)  # crun has read it
        _follow_init(container)  # which may have ended meanwhile
        return started.pid

    async def wait(self, *, container_id: str, exec_id: str) -> Exit:
        """The end of a process."""
        end: Exit = await _shared(self._process(container_id, exec_id).exited)
        return end

    def signal(self, *, container_id: str, exec_id: str, number: int, everyone: bool) -> None:
        """Send a signal, to all of the container when `everyone`. Raises NotFound when nobody is
        left.
        """
        process = self._process(container_id, exec_id)
        if everyone and exec_id == "":
            if not self._find(container_id).cgroup.signal_all(number):
                raise NotFound(f"container {container_id} has no process")
            return
        if not process.running:
            raise NotFound(f"process {exec_id!r} of container {container_id} has exited")
        os.kill(process.pid, number)

    async def delete(self, *, container_id: str, exec_id: str, timeout_s: float) -> None:
        """Forget a process that has exited; with the init goes the container. One that is being
        made is not there yet, and will not be.
        """
        container = self._find(container_id)
        if exec_id == "" and "" not in container.processes:
            container.given_up = True
        process = self._process(container_id, exec_id)
        if process.running:
            raise FailedPrecondition(f"process {exec_id!r} of container {container_id} is running")
        if exec_id == "":
            await self._remove(container, timeout_s)
        else:
            del container.processes[exec_id]

    def resize(self, *, container_id: str, exec_id: str, rows: int, columns: int) -> None:
        """Set the terminal's size. After the exit it does nothing."""
        process = self._process(container_id, exec_id)
        if not process.streams.resize(rows, columns) and process.running:
            raise FailedPrecondition(f"process {exec_id!r} of {container_id} has no terminal")

    async def update(
        self, *, container_id: str, resources: dict[str, Any], timeout_s: float
    ) -> None:
        """Change the limits."""
        container = self._find(container_id)
        path = f"{container.directory}/resources.json"
        write_file(path, json.dumps(resources))
        log_file = f"{container.directory}/update.log"
        await self._crun.run(
            "update",
            f"--resources={path}",
            container_id,
            log_file=log_file,
            timeout_s=timeout_s,
        )

    def cgroup(self, container_id: str) -> Cgroup:
        """The container's cgroup. Raises NotFound."""
        return self._find(container_id).cgroup

    async def kill_all(self, timeout_s: float) -> None:
        """SIGKILL whatever runs and wait, `timeout_s` in all, for its end. What waits for a dead
        server does not end.
        """
        deadline = time.monotonic() + timeout_s
        everybody = Cgroup()
        _kill(everybody)
        containers = list(self._containers.values())
        for container in containers:
            for process in list(container.processes.values()):
                await self._loop.within(process.exited, _left_s(deadline))
        await everybody.emptied(self._loop, _left_s(deadline))
        for container in containers:
            _unmount_places(container)

    async def _launch(
        self,
        container: Container,
        exec_id: str,
        command: tuple[str, ...],
        stdio: dict[str, Any],
        timeout_s: float,
    ) -> Process:
        """Run crun's `create` or `exec` and take over the process that it leaves behind."""
        name = exec_id or "init"
        pid_file = f"{container.directory}/{name}.pid"
        log_file = f"{container.directory}/{name}.log"
        streams = Streams(self._loop, self._dial, stdio)
        console: ConsoleSocket | None = None
        launch = self._children.launch_begins()
        try:
            if streams.terminal:
                # Both ids in the path would exceed what a socket address holds.
                console = ConsoleSocket(f"{self._directory}/tty-{next(self._terminals)}.sock")
                command = (*command, f"--console-socket={console.path}")
            await self._crun.run(
                *command,
                f"--pid-file={pid_file}",
                container.id,
                log_file=log_file,
                stdio=streams.child_descriptors(),
                timeout_s=timeout_s,
            )
            streams.close_child_ends()
            if console is not None:
                streams.attach_terminal(console.receive())
            child = self._children.adopt(read_pid(pid_file), launch)
        except BaseException:
            streams.abort()
            raise
        finally:
            if console is not None:
                console.close()
            # What every exec (a probe is one) left would fill the guest's memory.
            remove_file(pid_file)
            remove_file(log_file)
            self._children.launch_ends(launch)
        process = container.processes[exec_id] = Process(child, streams)
        return process

    async def _hold_shared(
        self, container: Container, spec: dict[str, Any], deadline: float
    ) -> None:
        sources = (mount.get("source", "") for mount in spec.get("mounts", ()))
        held = container.shared_volumes = [
            source for source in sources if source.startswith(f"{SHARED_VOLUMES}/")
        ]
        await self._shared.hold(held, min(BIND_TIMEOUT_S, _left_s(deadline)))

    async def _place_volumes(
        self,
        container: Container,
        spec: dict[str, Any],
        volumes: list[dict[str, Any]],
        deadline: float,
    ) -> None:
        """Bind each volume's place privately and name it as the source of the spec's mount."""
        for number, volume in enumerate(volumes):
            destination = volume["destination"]
            mounts = [m for m in spec.get("mounts", ()) if m.get("destination") == destination]
            if len(mounts) != 1:
                raise InvalidRequest("volumes", f"the spec has no one mount at {destination!r}")
            place = f"{container.directory}/{_PLACES}/{number}"
            container.volume_places.append(place)  # also where the bind is too late to be told
            await self._volumes.bind(
                volume_id=volume["volume_id"],
                subpath=volume["subpath"],
                create=volume["create"],
                target=place,
                timeout_s=min(BIND_TIMEOUT_S, _left_s(deadline)),
            )
            mounts[0]["source"] = place
            flags = self._volumes.flags(volume["volume_id"])
            mounts[0]["options"] = with_flags(mounts[0].get("options", ()), flags)

    def _watch_memory(self, container: Container) -> None:
        try:
            watched = container.out_of_memory = OutOfMemory(container.cgroup)
        except OSError as error:
            log.info("no OOM events", container=container.id, error=error)
            return
        self._loop.watch(watched.fd, PRIORITY, lambda: self._check_memory(container))
        container.processes[""].exited.then(lambda: self._check_memory(container))

    def _check_memory(self, container: Container) -> None:
        if container.out_of_memory is None:
            return
        try:
            happened = container.out_of_memory.happened()
        except OSError:  # the cgroup is gone, and would be reported as ready for ever
            self._unwatch_memory(container)
            return
        if happened:
            log.info("out of memory", container=container.id)
            self._on_out_of_memory(container.id)

    def _unwatch_memory(self, container: Container) -> None:
        if container.out_of_memory is not None:
            self._loop.unwatch(container.out_of_memory.fd)
            container.out_of_memory.close()
            container.out_of_memory = None

    async def _remove(self, container: Container, timeout_s: float) -> None:
        """Delete what crun and we hold of a container, in whatever state it is."""
        self._unwatch_memory(container)
        _unmount_places(container)
        if os.path.isdir(f"{self._directory}/crun/{container.id}"):
            log_file = f"{container.directory}/delete.log"
            await self._crun.run(
                "delete", "--force", container.id, log_file=log_file, timeout_s=timeout_s
            )
        released, container.shared_volumes = container.shared_volumes, []
        await self._shared.release(released, _CLEAN_UP_S)
        _remove_bundle(container.directory)
        self._containers.pop(container.id, None)

    def _find(self, container_id: str) -> Container:
        container = self._containers.get(container_id)
        if container is None:
            raise NotFound(f"there is no container {container_id}")
        return container

    def _process(self, container_id: str, exec_id: str) -> Process:
        process = self._find(container_id).processes.get(exec_id)
        if process is None:
            raise NotFound(f"container {container_id} has no process {exec_id!r}")
        return process


def _remove_bundle(directory: str) -> None:
    """Remove a bundle's own files and places, one by one, never what lies beneath a place: were a
    volume still bound there, a recursive removal would delete the user's data.
    """
    for parent in (f"{directory}/{_PLACES}", directory):
        for name in _listed(parent):
            _remove_entry(f"{parent}/{name}")
    _remove_entry(directory)


def with_flags(options: Iterable[str], flags: Iterable[str]) -> list[str]:
    """The options of a bind of a volume that is mounted with `flags`.

    crun mounts a bind anew with the options that it is given, and what is not among them is lost:
    `noexec` of a volume would not hold in a container.
    """
    added = tuple(flags)
    kept = [option for option in options if option not in added]
    if "ro" in added:
        kept = [option for option in kept if option != "rw"]
    return [*kept, *added]


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _remove_entry(path: str) -> None:
    """Without a look at it, which would be a look at the volume where one is still bound."""
    try:
        try:
            os.rmdir(path)
        except NotADirectoryError:
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.info("a part of a bundle stays", path=path, error=error)


def _unmount_places(container: Container) -> None:
    while container.volume_places:
        place = container.volume_places.pop()
        try:
            umount(place, UmountFlag.DETACH)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):  # it was never bound
                log.info("a volume's place stays", place=place, error=error)


def _follow_init(container: Container) -> None:
    """When the init has ended all others end, too. In a pid namespace of the container's own the
    kernel sees to that (pid_namespaces(7)).
    """
    if container.shares_processes and not container.processes[""].running:
        _kill(container.cgroup)


def _kill(cgroup: Cgroup) -> None:
    try:
        cgroup.signal_all(signal.SIGKILL)
    except OSError as error:  # it is being deleted
        log.info("not killed", cgroup=cgroup.path, error=error)


def _has_namespace(linux: dict[str, Any], kind: str) -> bool:
    """Whether the container gets a namespace of its own of this kind."""
    namespaces = linux.get("namespaces", ())
    return any(entry["type"] == kind and not entry.get("path") for entry in namespaces)


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _shared(future: Future) -> Awaitable[Any]:
    """Several may wait for one exit."""
    own = Future()
    future.then(lambda: own.set(future.result()))
    return own
