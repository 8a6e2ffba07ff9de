"""The agent, as the runtime sees it: one async method per method of the agent protocol.

The guest is not trusted: an answer of the wrong shape is an error, and nothing it says becomes a
path on the node.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kangaroo.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    KangarooError,
    MountFailed,
    NotFound,
    Unavailable,
    Unsupported,
)
from kangaroo.wire.agent_protocol import SERVICE, Method, decode, encode, read_error_detail
from kangaroo.wire.aio import Client, RpcError
from kangaroo.wire.status import Code

Message = dict[str, Any]

# containerd asks for these of one container after the other, for the pids before it serves anybody:
# a guest that does not answer must not hold up the others.
_PIDS_S, _STATS_S = 2.0, 5.0
_POWER_OFF_S = 5.0
_TEXT_LIMIT = 4096  # of what a guest says is wrong: it goes to the API server
_LAST_CODE, _LAST_TIME_NS = 255, 2**63 - 1


@dataclass(frozen=True)
class ProcessExit:
    """How a process in the guest ended; `exit_code` is 128 + signal when it was killed."""

    exit_code: int
    exited_at_ns: int


@dataclass(frozen=True)
class VolumeFlush:
    """Whether the guest wrote everything of a NAS volume back before it went."""

    volume_id: str
    flushed: bool
    error: str | None


class AgentClient:
    """Calls on one control connection. Errors are ours; a lost guest is `Unavailable`."""

    def __init__(self, client: Client, *, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    @classmethod
    async def connect(cls, sock: socket.socket, *, timeout_s: float) -> AgentClient:
        """Take over the guest's control connection; `timeout_s` bounds calls that name no other
        bound.
        """
        return cls(await Client.from_socket(sock), timeout_s=timeout_s)

    async def aclose(self) -> None:
        """Close the connection. The agent then syncs and powers off."""
        await self._client.aclose()

    async def hello(
        self, *, protocol: int, sandbox_id: str, hostname: str, time_ns: int
    ) -> Message:
        """Introduce ourselves; `protocol`, `version`, `kernel`, `boot_ns` of the guest."""
        return await self._call(
            Method.HELLO,
            protocol=protocol,
            sandbox_id=sandbox_id,
            hostname=hostname,
            time_ns=time_ns,
        )

    async def configure_network(
        self, *, interfaces: list[Message], routes: list[Message], neighbours: list[Message]
    ) -> None:
        """Configure the guest's interface."""
        await self._call(
            Method.CONFIGURE_NETWORK, interfaces=interfaces, routes=routes, neighbours=neighbours
        )

    async def set_sysctls(self, sysctls: Mapping[str, str]) -> dict[str, str]:
        """Set kernel settings of the guest; which of them its kernel refused, and why."""
        answer = await self._call(Method.SET_SYSCTLS, sysctls=dict(sysctls))
        refused = answer.get("refused")
        if not isinstance(refused, dict):
            raise _malformed("refused", refused)
        return {name: str(why)[:_TEXT_LIMIT] for name, why in refused.items() if name in sysctls}

    async def read_clock(self) -> int:
        """The guest's wall clock, nanoseconds since the epoch."""
        return _integer(await self._call(Method.READ_CLOCK), "time_ns")

    async def adjust_clock(self, *, offset_ns: int, interval_s: int) -> None:
        """Put the guest's clock forward, or back when `offset_ns` is negative: at once when
        `interval_s` is 0, otherwise bit by bit, the call being repeated at that interval.
        """
        await self._call(Method.ADJUST_CLOCK, offset_ns=offset_ns, interval_s=interval_s)

    async def mount_nas(
        self,
        *,
        volume_id: str,
        source: str,
        fstype: str,
        flags: list[str],
        options: str,
        read_ahead_kib: int | None,
        timeout_s: float,
    ) -> Message:
        """Mount a volume, once; `mount_point` and `super_options`. Raises MountFailed."""
        try:
            return await self._call_within(
                timeout_s + 10,
                Method.MOUNT_NAS,
                volume_id=volume_id,
                source=source,
                fstype=fstype,
                flags=flags,
                options=options,
                read_ahead_kib=read_ahead_kib,
                timeout_s=timeout_s,
            )
        except _AgentFailureError as failure:
            # The message names source and options, too: once is enough.
            reason = failure.reason or failure.message
            raise MountFailed(
                source, options, reason, errno=failure.errno, hint=failure.hint
            ) from failure

    async def create_container(
        self, *, container_id: str, spec: Message, stdio: Message, volumes: list[Any]
    ) -> int:
        """Create a container; the guest's pid of its init."""
        answer = await self._call(
            Method.CREATE_CONTAINER,
            container_id=container_id,
            spec=spec,
            stdio=stdio,
            volumes=volumes,
        )
        return _integer(answer, "pid")

    async def start_container(self, *, container_id: str) -> None:
        """Let a created container run."""
        await self._call(Method.START_CONTAINER, container_id=container_id)

    async def exec_process(
        self, *, container_id: str, exec_id: str, process: Mapping[str, Any], stdio: Message
    ) -> int:
        """Run one more process in a container; its pid in the guest."""
        answer = await self._call(
            Method.EXEC_PROCESS,
            container_id=container_id,
            exec_id=exec_id,
            process=dict(process),
            stdio=stdio,
        )
        return _integer(answer, "pid")

    async def signal_process(
        self,
        *,
        container_id: str,
        exec_id: str,
        signal: int,
        all: bool = False,  # noqa: A002 - the protocol's name
    ) -> None:
        """Send a signal. Raises NotFound when the process has exited."""
        await self._call(
            Method.SIGNAL_PROCESS,
            container_id=container_id,
            exec_id=exec_id,
            signal=signal,
            all=all,
        )

    async def wait_process(self, *, container_id: str, exec_id: str) -> ProcessExit:
        """Wait, without a bound, until a process has exited."""
        answer = await self._call_within(
            None, Method.WAIT_PROCESS, container_id=container_id, exec_id=exec_id
        )
        code, time_ns = _integer(answer, "exit_code"), _integer(answer, "exited_at_ns")
        # Whatever a guest says, containerd has to be told of the exit.
        return ProcessExit(max(0, min(code, _LAST_CODE)), max(0, min(time_ns, _LAST_TIME_NS)))

    async def delete_process(self, *, container_id: str, exec_id: str) -> None:
        """Forget an exited process; deleting the init deletes the container."""
        await self._call(Method.DELETE_PROCESS, container_id=container_id, exec_id=exec_id)

    async def resize_pty(self, *, container_id: str, exec_id: str, rows: int, columns: int) -> None:
        """Set a terminal's size."""
        await self._call(
            Method.RESIZE_PTY,
            container_id=container_id,
            exec_id=exec_id,
            rows=rows,
            columns=columns,
        )

    async def update_container(self, *, container_id: str, resources: Mapping[str, Any]) -> None:
        """Change a container's limits; `resources` is OCI's, already fit for the guest."""
        await self._call(
            Method.UPDATE_CONTAINER, container_id=container_id, resources=dict(resources)
        )

    async def list_pids(self, *, container_id: str) -> list[int]:
        """The guest's pids of a container's processes."""
        answer = await self._call_within(_PIDS_S, Method.LIST_PIDS, container_id=container_id)
        pids = answer.get("pids")
        if not isinstance(pids, list) or not all(_is_integer(pid) for pid in pids):
            raise _malformed("pids", pids)
        return pids

    async def container_stats(self, *, container_id: str) -> Message:
        """The container's cgroup figures: `cpu`, `memory`, `pids`."""
        return await self._call_within(_STATS_S, Method.CONTAINER_STATS, container_id=container_id)

    async def volume_stats(self, *, volume_id: str, timeout_s: float) -> Message:
        """A NAS volume's statfs and mountstats."""
        return await self._call_within(
            timeout_s + 5, Method.VOLUME_STATS, volume_id=volume_id, timeout_s=timeout_s
        )

    async def forward_port(self, *, port: int, stdin: str, stdout: str) -> None:
        """Join a connection to a port of the pod with two streams. Raises Unavailable."""
        await self._call(Method.FORWARD_PORT, port=port, stdin=stdin, stdout=stdout)

    async def next_event(self) -> Message:
        """Wait, unbounded, for what happened in the guest: `type`, `container_id`."""
        return await self._call_within(None, Method.NEXT_EVENT)

    async def shutdown(self, *, timeout_s: float) -> tuple[VolumeFlush, ...]:
        """Stop containers, write back and unmount the NAS volumes; what became of each."""
        answer = await self._call_within(timeout_s + 10, Method.SHUTDOWN, timeout_s=timeout_s)
        volumes = answer.get("volumes")
        if not isinstance(volumes, list):
            raise _malformed("volumes", volumes)
        return tuple(_flush(volume) for volume in volumes)

    async def power_off(self) -> None:
        """Power the guest off; its connection goes at once or soon."""
        await self._call_within(_POWER_OFF_S, Method.POWER_OFF)

    async def _call(self, method: Method, **message: Any) -> Message:
        return await self._call_within(self._timeout_s, method, **message)

    async def _call_within(self, wait_s: float | None, method: Method, **message: Any) -> Message:
        """None waits for ever."""
        try:
            payload = await self._client.call(
                SERVICE, method.value, encode(message), timeout_s=wait_s
            )
            return decode(payload)
        except RpcError as error:
            raise _domain_error(method, error) from error
        except InvalidRequest as error:
            raise Unavailable(
                f"the guest's answer to {method.value} is malformed: {error}"
            ) from error


class _AgentFailureError(KangarooError):
    """The agent could not do it for a reason that no other class names."""

    def __init__(
        self, message: str, *, reason: str | None, errno: int | None, hint: str | None
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.errno = errno


_CLASSES: dict[int, type[KangarooError]] = {
    Code.NOT_FOUND: NotFound,
    Code.ALREADY_EXISTS: AlreadyExists,
    Code.FAILED_PRECONDITION: FailedPrecondition,
    Code.UNIMPLEMENTED: Unsupported,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.UNAVAILABLE: Unavailable,
}


def _domain_error(method: Method, error: RpcError) -> KangarooError:
    detail = read_error_detail(error.details) or {}
    hint = _text(detail, "hint")
    message = error.message[:_TEXT_LIMIT]
    if error.code == Code.INVALID_ARGUMENT:
        return InvalidRequest(method.value, message, hint=hint)
    number = detail.get("errno")
    if method is not Method.MOUNT_NAS or error.code == Code.UNAVAILABLE:
        kind = _CLASSES.get(error.code)
        if kind is not None:
            return kind(f"{method.value}: {message}", hint=hint)
    return _AgentFailureError(
        message,
        reason=_text(detail, "reason"),
        errno=number if _is_integer(number) else None,
        hint=hint,
    )


def _text(detail: Message, key: str) -> str | None:
    value = detail.get(key)
    return value[:_TEXT_LIMIT] if isinstance(value, str) else None


def _flush(volume: Any) -> VolumeFlush:
    if not isinstance(volume, dict) or not isinstance(volume.get("volume_id"), str):
        raise _malformed("volumes", volume)
    error = volume.get("error")
    return VolumeFlush(
        volume["volume_id"], volume.get("flushed") is True, None if error is None else str(error)
    )


def _integer(answer: Message, key: str) -> int:
    value = answer.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _malformed(key, value)
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _malformed(key: str, value: Any) -> Unavailable:
    return Unavailable(f"the guest's answer is malformed: {key} is {str(value)[:100]!r}")
