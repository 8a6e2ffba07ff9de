"""`delete`: leave nothing of a container whose shim containerd has lost, and say so with a
DeleteResponse.

containerd runs this after a crash of the shim and also after every normal delete: closing a
container's connection is all it takes. So a living shim is never disturbed for a container of its
pod; one that is asked for as a whole is told to end, which it does durably; and only what no shim
looks after is cleaned up here. After a `start` that failed, and for a shim that died before
containerd had connected, containerd runs nothing: a later shim does (`kangaroo.runtime.sweep`).
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

from kangaroo.errors import KangarooError
from kangaroo.linux import pidfd
from kangaroo.runtime import paths
from kangaroo.runtime.options import ShimOptions
from kangaroo.wire.protobuf import encode_bytes, encode_int

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

KILLED = 128 + 9
_LOG_TAIL_BYTES = 2000
_BUDGET_S = 2.5  # containerd gives `delete` 5 s, and starts several at once
_FLUSH_TIMEOUT_S = 90.0  # the agent gives up after 60 s


def delete(options: ShimOptions) -> bytes:
    """Return the encoded DeleteResponse. Idempotent. Raises KangarooError or OSError when something
    was left.
    """
    deadline = _process_start() + _BUDGET_S
    bundle = options.bundle or os.getcwd()
    directory = _sandbox_directory(bundle, options)
    # A container of a pod leaves the cleanup to its sandbox: containerd deletes that one too.
    if os.path.basename(directory) == options.sandbox_id and os.path.isdir(directory):
        _end(directory, options.config, deadline)
    _unmount(f"{bundle}/rootfs")
    return response(pid=0, status=KILLED, exited_at_ns=time.time_ns())


def response(*, pid: int, status: int, exited_at_ns: int) -> bytes:
    """containerd.task.v2.DeleteResponse {pid = 1, exit_status = 2, exited_at = 3 {seconds = 1,
    nanos = 2}}.
    """
    seconds, nanos = divmod(exited_at_ns, 1_000_000_000)
    exited_at = encode_int(1, seconds) + encode_int(2, nanos)
    return encode_int(1, pid) + encode_int(2, status) + encode_bytes(3, exited_at)


def _process_start() -> float:
    """When containerd started this process, on the monotonic clock: on a busy node that is long
    ago.
    """
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - age_s


def _sandbox_directory(bundle: str, options: ShimOptions) -> str:
    """The state directory of the bundle's sandbox: where `start` put the shim's socket."""
    try:
        with open(f"{bundle}/address") as file:
            return os.path.dirname(file.read().strip().removeprefix(paths.ADDRESS_SCHEME))
    except FileNotFoundError:  # `start` failed early
        return f"{paths.state_root(options.config)}/{paths.check_id(options.sandbox_id)}"


def _end(directory: str, config: str, deadline: float) -> None:
    """Ask a living shim to end, which it does durably; clean up what no shim looks after."""
    daemon = open_daemon(directory)
    if daemon is None:
        _clean_up(directory, config, deadline)
        return
    from signal import SIGTERM, pidfd_send_signal

    try:
        pidfd_send_signal(daemon, SIGTERM)
        pidfd.ended(daemon, deadline - time.monotonic())
    except ProcessLookupError:
        pass
    finally:
        os.close(daemon)


def open_daemon(directory: str) -> int | None:
    """A pidfd of the living shim of a state directory, or None. The pid file alone would not do:
    pids are used again, so the command is compared.
    """
    try:
        with open(f"{directory}/{paths.PID_NAME}") as file:
            pid = int(file.read())
        descriptor = os.pidfd_open(pid)
    except (FileNotFoundError, NotADirectoryError, ValueError, ProcessLookupError):
        return None
    if not _is_daemon(pid, os.path.basename(directory)) or pidfd.ended(descriptor):
        os.close(descriptor)
        return None
    return descriptor


def _is_daemon(pid: int, sandbox_id: str) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().endswith(b"\0-id\0%s\0daemon\0" % sandbox_id.encode())
    except (FileNotFoundError, ProcessLookupError):
        return False


def _clean_up(directory: str, config: str, deadline: float) -> None:
    """Clean up in a process of its own, and wait for it until `deadline`.

    A guest that lost its shim first writes its NAS volumes back, which may take longer than
    containerd waits; the cleaner goes on then. It holds a lock on the directory: a second one ends
    at once, and `start` refuses.
    """
    _show_log(f"{directory}/{paths.LOG_NAME}")
    sys.stderr.flush()
    cleaner = os.fork()
    if cleaner == 0:
        _run_cleaner(directory, config)
    descriptor = os.pidfd_open(cleaner)
    if not pidfd.ended(descriptor, deadline - time.monotonic()):
        sys.stderr.write(f"{directory}: the guest still writes back, the cleanup goes on\n")
    os.close(descriptor)


def _run_cleaner(directory: str, config: str) -> None:
    """The child's whole life. containerd waits for its pipes, so it keeps none of them."""
    status = 1
    try:
        os.setsid()
        with open(os.devnull, "r+b") as null, open(f"{directory}/{paths.LOG_NAME}", "ab") as log:
            for target, source in ((0, null), (1, log), (2, log)):
                os.dup2(source.fileno(), target)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        from pathlib import Path

        from kangaroo.runtime.recovery import cleanup

        kubeconfig = _events_kubeconfig(Path(config))
        cleanup(Path(directory), flush_s=_FLUSH_TIMEOUT_S, events_kubeconfig=kubeconfig)
        status = 0
    except BlockingIOError:
        status = 0  # another one is at it
    except BaseException as error:
        sys.stderr.write(f"cleanup failed: {error!r}\n")
        sys.stderr.flush()
    finally:
        os._exit(status)


def _events_kubeconfig(config: Path) -> Path | None:
    """Whoever posts events on pods; nobody when the configuration is refused."""
    from kangaroo.runtime.config import load

    try:
        return load(config).events_kubeconfig
    except KangarooError:
        return None


def _show_log(path: str) -> None:
    """A shim that died took its words along; containerd logs what `delete` says."""
    try:
        with open(path, "rb") as log:
            tail = log.read()[-_LOG_TAIL_BYTES:]
    except FileNotFoundError:
        return
    sys.stderr.write(f"the shim's last words: {tail.decode(errors='replace')}\n")


def _unmount(path: str) -> None:
    with open("/proc/self/mountinfo") as file:
        points = [line.split(" ", 5)[4] for line in file]
    for _ in range(points.count(path)):
        from kangaroo.linux.mount import UmountFlag, umount

        umount(path, UmountFlag.DETACH)
