"""Containers and their processes, run by crun."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from kangaroo.agent import log
from kangaroo.agent.cgroups import PARENT, Cgroup, OutOfMemory
from kangaroo.agent.children import Child, Children, Exit
from kangaroo.agent.crun import Crun, read_pid, remove_file, write_file
from kangaroo.agent.loop import PRIORITY, Future, Loop
from kangaroo.agent.nas import Volumes
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

BIND_TIMEOUT_S = 30.0
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
        self.out_of_memory: OutOfMemory | None = None
        self.started = False


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
    ) -> int:
        """Make the container up to the point where its program would run; the pid of its init.

        Raises AlreadyExists, NotFound for a volume or subpath, CommandFailed with crun's words.
        Nothing is left behind by a failure.
        """
        if container_id in self._containers:
            raise AlreadyExists(f"container {container_id} exists")
        container = Container(container_id, f"{self._directory}/{container_id}")
        self._containers[container_id] = container
        try:
            os.makedirs(container.directory, mode=0o700)
            await self._place_volumes(container, spec, volumes)
            await self._load_firewall(spec)
            spec.setdefault("linux", {})["cgroupsPath"] = f"/{PARENT}/{container_id}"
            spec["process"]["terminal"] = stdio["terminal"]
            write_file(f"{container.directory}/config.json", json.dumps(spec))
            command = ("create", f"--bundle={container.directory}")
            process = await self._launch(container, "", command, stdio)
        except BaseException:
            await self._remove(container)
            raise
        self._watch_memory(container)
        return process.pid

    async def _load_firewall(self, spec: dict[str, Any]) -> None:
        """For a container that may make rules: iptables of the older kind does not find its modules
        by itself, as it does everything else. A failure is logged.
        """
        if "CAP_NET_ADMIN" in spec["process"].get("capabilities", {}).get("bounding", ()):
            try:
                await self._children.run(_LOAD_FIREWALL, timeout_s=_LOAD_TIMEOUT_S)
            except (OSError, CommandFailed, DeadlineExceeded) as error:
                log.info("iptables is not loaded", error=error)

    async def start(self, *, container_id: str) -> None:
        """Run the program. A repeat is harmless."""
        container = self._find(container_id)
        if not container.started:
            log_file = f"{container.directory}/start.log"
            await self._crun.run("start", container_id, log_file=log_file)
            container.started = True

    async def execute(
        self, *, container_id: str, exec_id: str, process: dict[str, Any], stdio: dict[str, Any]
    ) -> int:
        """Run one more process in a running container; its pid."""
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
            started = await self._launch(container, exec_id, command, stdio)
        finally:
            remove_file(path)  # crun has read it
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

    async def delete(self, *, container_id: str, exec_id: str) -> None:
        """Forget a process that has exited; with the init goes the container."""
        process = self._process(container_id, exec_id)
        if process.running:
            raise FailedPrecondition(f"process {exec_id!r} of container {container_id} is running")
        container = self._find(container_id)
        if exec_id == "":
            await self._remove(container)
        else:
            del container.processes[exec_id]

    def resize(self, *, container_id: str, exec_id: str, rows: int, columns: int) -> None:
        """Set the terminal's size. After the exit it does nothing."""
        process = self._process(container_id, exec_id)
        if not process.streams.resize(rows, columns) and process.running:
            raise FailedPrecondition(f"process {exec_id!r} of {container_id} has no terminal")

    async def update(self, *, container_id: str, resources: dict[str, Any]) -> None:
        """Change the limits."""
        container = self._find(container_id)
        path = f"{container.directory}/resources.json"
        write_file(path, json.dumps(resources))
        log_file = f"{container.directory}/update.log"
        await self._crun.run("update", f"--resources={path}", container_id, log_file=log_file)

    def cgroup(self, container_id: str) -> Cgroup:
        """The container's cgroup. Raises NotFound."""
        return self._find(container_id).cgroup

    async def kill_all(self, timeout_s: float) -> None:
        """SIGKILL whatever runs and wait, `timeout_s` in all, for its end. What waits for a dead
        server does not end.
        """
        deadline = time.monotonic() + timeout_s
        containers = list(self._containers.values())
        for container in containers:
            try:
                container.cgroup.signal_all(9)
            except OSError as error:  # it is being deleted
                log.info("not killed", container=container.id, error=error)
        for container in containers:
            for process in list(container.processes.values()):
                await self._loop.within(process.exited, max(0.0, deadline - time.monotonic()))
            for place in container.volume_places:
                _unmount_place(place)
            container.volume_places.clear()

    async def _launch(
        self,
        container: Container,
        exec_id: str,
        command: tuple[str, ...],
        stdio: dict[str, Any],
    ) -> Process:
        """Run crun's `create` or `exec` and take over the process that it leaves behind."""
        name = exec_id or "init"
        pid_file = f"{container.directory}/{name}.pid"
        log_file = f"{container.directory}/{name}.log"
        streams = Streams(self._loop, self._dial, stdio)
        console: ConsoleSocket | None = None
        self._children.launch_begins()
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
            )
            streams.close_child_ends()
            if console is not None:
                streams.attach_terminal(console.receive())
            child = self._children.adopt(read_pid(pid_file))
        except BaseException:
            streams.abort()
            raise
        finally:
            if console is not None:
                console.close()
            # What every exec (a probe is one) left would fill the guest's memory.
            remove_file(pid_file)
            remove_file(log_file)
            self._children.launch_ends()
        process = container.processes[exec_id] = Process(child, streams)
        return process

    async def _place_volumes(
        self, container: Container, spec: dict[str, Any], volumes: list[dict[str, Any]]
    ) -> None:
        """Bind each volume's place privately and name it as the source of the spec's mount."""
        for number, volume in enumerate(volumes):
            destination = volume["destination"]
            mounts = [m for m in spec.get("mounts", ()) if m.get("destination") == destination]
            if len(mounts) != 1:
                raise InvalidRequest("volumes", f"the spec has no one mount at {destination!r}")
            place = f"{container.directory}/{_PLACES}/{number}"
            await self._volumes.bind(
                volume_id=volume["volume_id"],
                subpath=volume["subpath"],
                create=volume["create"],
                target=place,
                timeout_s=BIND_TIMEOUT_S,
            )
            container.volume_places.append(place)
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

    async def _remove(self, container: Container) -> None:
        """Delete what crun and we hold of a container, in whatever state it is."""
        self._unwatch_memory(container)
        if os.path.isdir(f"{self._directory}/crun/{container.id}"):
            log_file = f"{container.directory}/delete.log"
            await self._crun.run("delete", "--force", container.id, log_file=log_file)
        for place in container.volume_places:
            _unmount_place(place)
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
    try:
        if os.path.isdir(path):
            os.rmdir(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.info("a part of a bundle stays", path=path, error=error)


def _unmount_place(place: str) -> None:
    try:
        umount(place, UmountFlag.DETACH)
    except OSError as error:
        log.info("a volume's place stays", place=place, error=error)


def _shared(future: Future) -> Awaitable[Any]:
    """Several may wait for one exit."""
    own = Future()
    future.then(lambda: own.set(future.result()))
    return own
