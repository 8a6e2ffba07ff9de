"""A running machine: one QEMU process and its QMP connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kangaroo.errors import FailedPrecondition, Unavailable
from kangaroo.vmm.child import Child
from kangaroo.vmm.confinement import Confinement
from kangaroo.vmm.spec import Accelerator, MachineSpec, argv

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

_LOG = logging.getLogger(__name__)
_QMP_S = 10.0  # for one command: QEMU answers when its main loop turns

KVM_PATH = Path("/dev/kvm")


@dataclass(frozen=True)
class LaunchPaths:
    """Where a machine's QMP socket listens and where QEMU's own messages go."""

    qmp_socket: Path
    log: Path


class Machine:
    """One QEMU process under QMP. Made by `launch`; ended by the guest or by `kill`."""

    def __init__(self, child: Child, qmp: QMPClient) -> None:
        self._child = child
        self._qmp = qmp

    @classmethod
    async def launch(
        cls,
        spec: MachineSpec,
        *,
        paths: LaunchPaths,
        confinement: Confinement,
        timeout_s: float,
    ) -> Machine:
        """Start QEMU and wait until it answers QMP; the guest's processors run then.

        The caller keeps its descriptors and closes them afterwards. The QMP listener `spec.qmp_fd`
        must be closed by the caller once QEMU has it, and is bound to `paths.qmp_socket`.

        Raises FailedPrecondition (no KVM), CommandFailed (QEMU ended; carries argv, status, log),
        DeadlineExceeded.
        """
        if spec.accelerator is Accelerator.KVM:
            require_kvm()
        child = await Child.spawn(
            "qemu",
            argv(spec),
            confinement=confinement,
            log_path=paths.log,
            descriptors=spec.descriptors,
        )
        try:
            qmp = await child.until(
                _connect_qmp(spec.name, paths.qmp_socket),
                what="a QMP greeting",
                timeout_s=timeout_s,
            )
        except BaseException:
            await child.stop(grace_s=0)
            raise
        _LOG.info("machine started name=%s pid=%d", spec.name, child.pid)
        return cls(child, qmp)

    @property
    def pid(self) -> int:
        return self._child.pid

    async def wait(self) -> int:
        """Wait until QEMU has ended; its exit status, or minus the signal that killed it."""
        return await self._child.wait()

    def failure(self) -> Exception:
        """Why QEMU ended, once it has: argv, status and the tail of its log."""
        return self._child.failure()

    async def pause(self) -> None:
        """Stop the guest's processors. A paused machine is left as it is."""
        await self._execute("stop")

    async def resume(self) -> None:
        """Let the guest's processors run. A running machine is left as it is."""
        await self._execute("cont")

    async def finish(self, *, grace_s: float) -> int:
        """Wait for a guest that is powering itself off; kill QEMU when it is still there after
        `grace_s`.
        """
        status = await self._child.finish(grace_s=grace_s)
        await self._disconnect()
        return status

    async def kill(self) -> int:
        """End QEMU now. The guest is not told; a machine that has ended is fine."""
        status = await self._child.stop(grace_s=1)
        await self._disconnect()
        return status

    async def _execute(self, command: str) -> object:
        from qemu.qmp import QMPError  # noqa: PLC0415 - see _connect_qmp

        try:
            async with asyncio.timeout(_QMP_S):
                return await self._qmp.execute(command)
        except TimeoutError as error:
            raise Unavailable(f"QMP {command}: QEMU did not answer within {_QMP_S:g} s") from error
        except QMPError as error:
            raise Unavailable(f"QMP {command} failed: {error}") from error

    async def _disconnect(self) -> None:
        # The monitor's end of the connection died with QEMU; the client reports that as an error.
        with contextlib.suppress(Exception):
            await self._qmp.disconnect()


async def _connect_qmp(name: str, path: Path) -> QMPClient:
    # Imported while QEMU starts: what only plans or describes a machine does not pay for it.
    from qemu.qmp import QMPClient  # noqa: PLC0415

    client = QMPClient(name)
    await client.connect(str(path))
    return client


def guest_memory() -> int:
    """A new descriptor of memory for a guest; QEMU sizes it. Raises OSError."""
    return os.memfd_create("guest-memory", os.MFD_CLOEXEC)


def require_kvm(path: Path = KVM_PATH) -> None:
    """Raises FailedPrecondition when this node cannot run a KVM guest."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise FailedPrecondition(
            f"{path} cannot be opened: {error.strerror}",
            hint="a sandboxed pod needs KVM: enable virtualisation, load kvm_amd or kvm_intel",
        ) from error
