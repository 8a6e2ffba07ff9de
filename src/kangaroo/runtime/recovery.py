"""Clean up a sandbox whose shim is gone, from its state directory alone. Synchronous: `delete` runs
it.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from kangaroo.errors import FailedPrecondition, NotFound
from kangaroo.linux import cgroup, mountinfo, pidfd
from kangaroo.runtime import state as state_file
from kangaroo.runtime.sandbox_paths import SandboxPaths
from kangaroo.runtime.shared_dir import SharedDirectory
from kangaroo.runtime.state import ProcessIdentity, SandboxState

_LOG = logging.getLogger(__name__)

_CGROUP_TIMEOUT_S = 2.0


def cleanup(state_dir: Path, *, flush_s: float, events_kubeconfig: Path | None = None) -> None:
    """End the sandbox's processes and take its mounts, control group and files away. Idempotent.

    A guest that lost its shim writes its NAS volumes back and powers off by itself; it gets
    `flush_s` for that. What was not written back is said in the log, and with `events_kubeconfig`
    on the pod. A directory that does not exist is fine.
    """
    if not state_dir.is_dir():
        return
    state = None
    flushed = True
    try:
        state = state_file.load(state_dir)
    except (NotFound, FailedPrecondition) as error:
        _LOG.warning(
            "no usable state, only mounts are cleaned up path=%s error=%s", state_dir, error
        )
    else:
        _finish_placeholders(state)  # at once: the pod's next sandbox does not wait for this guest
        flushed = _end_processes(state, flush_s)
    SharedDirectory(SandboxPaths(state_dir).shared).destroy()
    remove_directory(state_dir)
    if state is not None and not flushed and events_kubeconfig is not None:
        _tell(state, events_kubeconfig, flush_s)


def remove_directory(state_dir: Path) -> None:
    """Delete the state directory. Refuses, with a warning, while anything is mounted in it.
    Idempotent.
    """
    prefix = f"{state_dir}/"
    mounted = [e.mount_point for e in mountinfo.read() if e.mount_point.startswith(prefix)]
    if mounted:
        _LOG.warning("state directory stays, mounts are left in it mounts=%s", mounted)
        return
    shutil.rmtree(state_dir, ignore_errors=True)


def remove_cgroup(path: Path, timeout_s: float) -> None:
    """End what is in the control group, and remove it. What stays after `timeout_s` is logged."""
    try:
        cgroup.kill(path)
        cgroup.remove(path, timeout_s=timeout_s)
    except OSError as error:
        _LOG.warning("cgroup stays path=%s error=%s", path, error)


def _end_processes(state: SandboxState, flush_s: float) -> bool:
    """Whether the guest ended by itself, which it does when all is written back."""
    flushed = True
    if state.qemu is not None:
        flushed = _wait_gone(state.qemu, flush_s)
        if not flushed:
            volumes = ",".join(volume.source for volume in state.volumes) or "none"
            _LOG.warning("guest did not power off, killing it unflushed_volumes=%s", volumes)
        state.qemu.kill()
    if state.virtiofsd is not None:
        state.virtiofsd.kill()
    if state.cgroup is not None:
        remove_cgroup(Path(state.cgroup), _CGROUP_TIMEOUT_S)
    return flushed


def _tell(state: SandboxState, kubeconfig: Path, flush_s: float) -> None:
    """Say on the pod which volumes were not written back."""
    if not (state.pod_namespace and state.pod_name and state.pod_uid):
        return
    from kangaroo.runtime.pod_events import PodName, Reason, not_flushed, post

    pod = PodName(state.pod_namespace, state.pod_name, state.pod_uid)
    error = f"the guest lost its shim and did not power off within {flush_s:g} s"
    messages = [not_flushed(volume.source, error) for volume in state.volumes]
    if messages:
        post(pod, kubeconfig, Reason.NOT_FLUSHED, messages)


def _wait_gone(process: ProcessIdentity, timeout_s: float) -> bool:
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        return not process.alive() or pidfd.ended(descriptor, timeout_s)
    finally:
        os.close(descriptor)


def _finish_placeholders(state: SandboxState) -> None:
    """A crash between the node's unmount and the placeholder leaves a bare directory, into which
    the pod's next sandbox would write. The state names it: put the placeholder there now.
    """
    from kangaroo.runtime.placeholder import put_placeholder

    records = {volume.volume_id: volume for volume in state.volumes}
    entries = mountinfo.read()
    for unfinished in state.placeholders:
        record = records.get(unfinished.volume_id)
        if unfinished.device or record is None or mountinfo.at(unfinished.path, entries):
            continue
        try:
            put_placeholder(unfinished.path, record)
        except OSError as error:
            _LOG.warning("placeholder is missing path=%s error=%s", unfinished.path, error)
