"""`start`: print the address of the pod's shim, and make that shim when the pod has none yet.

containerd runs this in the bundle and reads standard output and error as the address, so nothing
else may be written and the daemon inherits neither. Budgeted: importing this costs `json` and
`socket`, no more.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys

from kangaroo.errors import FailedPrecondition
from kangaroo.runtime import paths
from kangaroo.runtime.options import DEFAULT_CONFIG_PATH, ShimOptions, config_path
from kangaroo.runtime.spec_read import MEMBER, grouping, read_spec
from kangaroo.wire.node_protocol import SOCKET_NAME

LISTENER_FD = 3
_BACKLOG = 128


def start(options: ShimOptions, task_options: bytes) -> str:
    """Return the address of the shim that serves this bundle, the current directory, and write it
    to `address`.

    A repeat finds the living shim and returns its address. Raises FailedPrecondition when a
    container's sandbox does not run, OSError when the state directory or the socket cannot be made.
    """
    kind, sandbox_id = grouping(read_spec("."), options.sandbox_id)
    config = _config(options, task_options)
    directory = f"{paths.state_root(config)}/{sandbox_id}"
    path = f"{directory}/{SOCKET_NAME}"
    if not _answers(path):
        if kind == MEMBER:
            raise FailedPrecondition(
                f"container {options.sandbox_id}: its sandbox {sandbox_id} is not running"
            )
        options.sandbox_id, options.config = sandbox_id, config
        _launch(options, directory, path)
    address = f"{paths.ADDRESS_SCHEME}{path}"
    _write_address(address)
    return address


def _config(options: ShimOptions, task_options: bytes) -> str:
    if options.config != DEFAULT_CONFIG_PATH:
        return options.config
    return config_path(task_options) or options.config


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def _launch(options: ShimOptions, directory: str, path: str) -> None:
    lock = _hold(directory, options.sandbox_id)
    try:
        if os.path.lexists(path):
            os.unlink(path)  # of a shim that is dead
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(_BACKLOG)
            pid = _spawn(daemon_argv(options), listener.fileno(), f"{directory}/{paths.LOG_NAME}")
        with open(f"{directory}/{paths.PID_NAME}", "w") as file:
            file.write(f"{pid}\n")
    finally:
        os.close(lock)


def _hold(directory: str, sandbox_id: str) -> int:
    """Make the state directory and keep cleaners away from it until the descriptor is closed.

    Raises FailedPrecondition while one still cleans up after an earlier sandbox of this id.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise FailedPrecondition(f"sandbox {sandbox_id} is still being cleaned up") from error
    return descriptor


def _spawn(argv: list[str], listener: int, log: str) -> int:
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        argv[0],
        argv,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, listener, LISTENER_FD),
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def daemon_argv(options: ShimOptions) -> list[str]:
    """The command that runs the daemon."""
    return [*own_command(options), "-id", options.sandbox_id, "daemon"]


def own_command(options: ShimOptions) -> list[str]:
    """This interpreter, its flags and this script, with the arguments that are the same for all of
    its commands.
    """
    interpreter = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])]
    flags = [
        "-namespace",
        options.namespace,
        "-address",
        options.address,
        "-config",
        options.config,
    ]
    flags += ["-debug"] if options.debug else []
    return [sys.executable, *interpreter[1:], *flags]


def _write_address(address: str) -> None:
    temporary = f".address.{os.getpid()}"
    with open(temporary, "w") as file:
        file.write(address)
    os.replace(temporary, "address")
