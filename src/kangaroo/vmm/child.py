"""A long-running child process with a log file: QEMU or virtiofsd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import socket
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from kangaroo.errors import CommandFailed, DeadlineExceeded
from kangaroo.vmm.confinement import Confinement

_LOG = logging.getLogger(__name__)
_TAIL_BYTES = 2048
_KILL_S = 10.0  # how long one that was killed may take to die

Result = TypeVar("Result")


class Child:
    """One child process. Its output goes to `log_path`; its standard input is /dev/null."""

    def __init__(
        self,
        name: str,
        argv: tuple[str, ...],
        log_path: Path,
        process: asyncio.subprocess.Process,
    ) -> None:
        self.name = name
        self.argv = argv
        self.log_path = log_path
        self._process = process

    @classmethod
    async def spawn(
        cls,
        name: str,
        argv: tuple[str, ...],
        *,
        confinement: Confinement,
        log_path: Path,
        descriptors: tuple[int, ...] = (),
    ) -> Child:
        """Start `argv` in its own session. Raises OSError when it cannot be executed."""
        wrapped = confinement.wrap(argv)
        _LOG.debug("spawn name=%s argv=%s", name, shlex.join(wrapped))
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                *wrapped,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=descriptors,
                start_new_session=True,
            )
        finally:
            os.close(log)
        return cls(name, argv, log_path, process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit code, minus the signal that ended it, or None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait until it ends; any number of callers."""
        return await self._process.wait()

    async def until(self, ready: Awaitable[Result], *, what: str, timeout_s: float) -> Result:
        """Wait for `ready` while the child lives.

        Raises CommandFailed with the log's tail when the child ends first, DeadlineExceeded past
        `timeout_s`, and what `ready` raises.
        """
        readiness = asyncio.ensure_future(ready)
        exit_ = asyncio.ensure_future(self.wait())
        try:
            await asyncio.wait(
                {readiness, exit_}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            # Readiness often fails *because* the child has ended; the child's own words say more.
            if readiness.done() and not readiness.cancelled() and readiness.exception() is not None:
                await asyncio.wait({exit_}, timeout=1)
            if exit_.done():
                raise self.failure()
            if readiness.done():
                return readiness.result()
            raise DeadlineExceeded(
                f"{self.name}: {what} did not happen within {timeout_s:g} s", hint=self.log_tail()
            )
        finally:
            for future in (readiness, exit_):
                if not future.done():
                    future.cancel()
                    with contextlib.suppress(asyncio.CancelledError, Exception):
                        await future

    def failure(self) -> CommandFailed:
        """The error that says how the child ended, with the tail of its log."""
        return CommandFailed(self.argv, self.status or 0, self.log_tail())

    def log_tail(self) -> str:
        """The last part of its log, as text."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                return log.read().decode(errors="replace").strip()
        except OSError as error:
            return f"no log: {error}"

    async def stop(self, *, grace_s: float) -> int:
        """SIGTERM, and SIGKILL after `grace_s`. Returns the exit status; a child that has ended is
        fine.
        """
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            return await self.finish(grace_s=grace_s)
        return self._process.returncode

    async def finish(self, *, grace_s: float) -> int:
        """Wait for a child that is about to end by itself; SIGKILL it after `grace_s`.

        One that does not die either (its files are on a server that is gone) is left behind.
        """
        try:
            return await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            _LOG.warning("child does not end, killing it name=%s pid=%d", self.name, self.pid)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        try:
            return await asyncio.wait_for(self._process.wait(), _KILL_S)
        except TimeoutError:
            _LOG.error("child does not die, left behind name=%s pid=%d", self.name, self.pid)
            return -signal.SIGKILL


def private_listener(path: Path) -> socket.socket:
    """A listening unix socket for a child to inherit; only its owner may connect.

    Raises OSError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(1)
    except BaseException:
        sock.close()
        raise
    return sock
