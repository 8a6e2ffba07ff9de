"""The agent as PID 1 of namespaces on this machine, in the guest image's own root, without a VM.

vsock is replaced by a unix socket; everything else is the code that runs in the guest: pseudo file
systems, crun, reaping, streams. The root is unpacked from the image, so its Python, crun and
libraries are tested too.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kangaroo.wire.agent_protocol import SERVICE, Method, decode, encode
from kangaroo.wire.connection import ClientConnection, ResponseReceived

_START = """
import os, socket
from kangaroo.agent import boot, log, main
from kangaroo.linux.mount import UmountFlag, umount
umount("/test/machine", UmountFlag.DETACH)
log.enable_debug()
boot.mount_pseudo_file_systems()
os.mkdir("/sys/fs/cgroup/kangaroo")
def dial():
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect("/test/agent.sock")
    return sock
main.serve(dial)
"""
_NAMESPACES = ("--pid", "--fork", "--kill-child", "--mount", "--uts", "--net", "--ipc", "--cgroup")
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9)}


class AgentError(Exception):
    """A call that failed: gRPC code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Agent:
    """The host's end. Calls are answered in any order; `call` waits for its own answer."""

    def __init__(
        self, listener: socket.socket, control: socket.socket, root: Path, pid: int
    ) -> None:
        self.root = root
        self.pid = pid
        """That of the machine."""
        self._listener = listener
        self._control = control
        self._connection = ClientConnection()
        self._answers: dict[int, ResponseReceived] = {}
        self._streams: list[socket.socket] = []

    @property
    def cgroup(self) -> Path:
        """That of all containers, on the machine."""
        _, _, own = Path(f"/proc/{self.pid}/cgroup").read_text().strip().rpartition("0::/")
        return Path(_cgroup2()) / own / "kangaroo"

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Nothing runs in any container meanwhile, as where all wait for a server."""
        freeze = self.cgroup / "cgroup.freeze"
        freeze.write_text("1")
        try:
            yield
        finally:
            freeze.write_text("0")

    def send(self, method: Method, *, wait_s: float = 0, **message: Any) -> int:
        """Start a call, of which it is told how long we wait (0: without end); its stream id."""
        timeout_ns = int(wait_s * 1e9)
        stream_id, data = self._connection.request(SERVICE, method, encode(message), timeout_ns)
        self._control.sendall(data)
        return stream_id

    def answer(self, stream_id: int) -> dict[str, Any]:
        """Wait for the answer of a call. Raises AgentError."""
        while stream_id not in self._answers:
            data = self._control.recv(1 << 16)
            if not data:
                raise ConnectionError("the agent closed the control connection")
            for response in self._connection.receive(data):
                self._answers[response.stream_id] = response
        response = self._answers.pop(stream_id)
        if response.status.code:
            raise AgentError(response.status.code, response.status.message)
        return decode(response.payload)

    def call(self, method: Method, **message: Any) -> dict[str, Any]:
        return self.answer(self.send(method, **message))

    def accept(self, count: int) -> dict[str, socket.socket]:
        """The next stdio streams, by token."""
        streams = {}
        for _ in range(count):
            sock, _ = self._listener.accept()
            self._streams.append(sock)
            sock.settimeout(30)
            token = b""
            while not token.endswith(b"\n"):
                token += sock.recv(1)
            streams[token.decode().strip()] = sock
        return streams

    def close(self) -> None:
        for sock in (*self._streams, self._control):
            sock.close()


class Streams:
    """The stdio of one process as the host sees it."""

    def __init__(self, *names: str, terminal: bool = False) -> None:
        self._tokens = {name: secrets.token_hex(16) for name in names}
        self.wire = {
            "terminal": terminal,
            **{name: self._tokens.get(name) for name in ("stdin", "stdout", "stderr")},
        }
        self._sockets: dict[str, socket.socket] = {}

    def accept(self, agent: Agent) -> None:
        by_token = agent.accept(len(self._tokens))
        self._sockets = {name: by_token[token] for name, token in self._tokens.items()}

    def __getitem__(self, name: str) -> socket.socket:
        return self._sockets[name]

    def read(self, name: str) -> bytes:
        """Everything up to end-of-file."""
        content = b""
        while data := self._sockets[name].recv(1 << 16):
            content += data
        return content

    def read_until(self, name: str, text: bytes) -> bytes:
        content = b""
        while text not in content:
            data = self._sockets[name].recv(1 << 16)
            if not data:
                raise EOFError(content)
            content += data
        return content


@contextlib.contextmanager
def running(root: Path, log: Path) -> Iterator[Agent]:
    """The agent in `root`, a private copy of the image's tree, until the block ends.

    Ends by closing the control connection, as a runtime that dies does, and checks that the agent
    ends by itself.
    """
    _prepare(root)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener, log.open("wb") as output:
        listener.bind(str(root / "test/agent.sock"))
        listener.listen()
        listener.settimeout(30)
        program = ["/usr/bin/python3", "-I", "-S", "-B", "-c", _START]
        # Not chroot, as crun's exec goes to the root of a namespace.
        enter = 'mount --bind "$0" "$0" && cd "$0" && pivot_root . test/machine && exec "$@"'
        argv = ["unshare", *_NAMESPACES, "sh", "-c", enter, str(root), *program]
        cgroup = Path(tempfile.mkdtemp(prefix="kangaroo-test-", dir=_cgroup2()))
        # A cgroup namespace begins where its first process is.
        join = f'echo $$ >{cgroup}/cgroup.procs && exec "$@"'
        process = subprocess.Popen(
            ["sh", "-c", join, "sh", *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            control, _ = listener.accept()
            control.settimeout(60)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            agent = Agent(listener, control, root, int(children))
            yield agent
            agent.close()
            process.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.wait(30)
            for group, _, _ in os.walk(cgroup, topdown=False):
                os.rmdir(group)


def container_root(root: Path, name: str) -> str:
    """A root of busybox for a container, as seen from inside."""
    place = root / "test" / name
    (place / "bin").mkdir(parents=True)
    for directory in ("dev", "proc", "sys", "tmp", "etc", "data"):
        (place / directory).mkdir()
    shutil.copy(root / "usr/bin/busybox", place / "bin/busybox")
    for applet in ("sh", "cat", "echo", "sleep", "ls", "mount", "stty", "true", "kill", "dd"):
        (place / "bin" / applet).symlink_to("busybox")
    return f"/test/{name}"


def spec(root: str, *arguments: str, **changes: Any) -> dict[str, Any]:
    """An OCI specification like the one that the runtime sends."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(arguments),
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": {"path": root, "readonly": False},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
            *changes.pop("mounts", []),
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}],
            "resources": {},
            **changes,
        },
    }


def _cgroup2() -> str:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, target, fstype, *_ = line.split()
        if fstype == "cgroup2":
            return target
    raise LookupError("no cgroup2 is mounted on this machine")


def _prepare(root: Path) -> None:
    for name, (major, minor) in _DEVICES.items():
        if not (root / "dev" / name).exists():
            os.mknod(root / "dev" / name, 0o20666, os.makedev(major, minor))
            (root / "dev" / name).chmod(0o666)
    if not (root / "dev/tty").exists():
        os.mknod(root / "dev/tty", 0o20666, os.makedev(5, 0))
    if not os.path.lexists(root / "dev/ptmx"):
        (root / "dev/ptmx").symlink_to("pts/ptmx")
    (root / "test/machine").mkdir(parents=True)
