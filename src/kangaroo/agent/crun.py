"""The crun program: argv, and its errors in words."""

from __future__ import annotations

import json
import os

from kangaroo.agent.children import Children
from kangaroo.errors import CommandFailed

_CRUN = "/usr/bin/crun"


class Crun:
    """Runs crun with its state below `state_directory` and cgroups made by itself."""

    def __init__(self, children: Children, state_directory: str) -> None:
        self._children = children
        self._state_directory = state_directory

    async def run(
        self,
        command: str,
        *arguments: str,
        log_file: str,
        timeout_s: float,
        stdio: tuple[int, int, int] | None = None,
    ) -> None:
        """Run one command; `stdio` is what a container process inherits.

        Raises CommandFailed with crun's own message, DeadlineExceeded.
        """
        argv = (
            _CRUN,
            f"--root={self._state_directory}",
            "--cgroup-manager=cgroupfs",
            f"--log=file:{log_file}",
            "--log-format=json",
            command,
            *arguments,
        )
        remove_file(log_file)
        if stdio is None:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            try:
                child = self._children.spawn(argv, stdio=(null, null, null))
            finally:
                os.close(null)
        else:
            child = self._children.spawn(argv, stdio=stdio)
        end = await self._children.wait(child, ("crun", command), timeout_s)
        if end.code != 0:
            raise CommandFailed(("crun " + command,), end.code, _messages(log_file))


def write_file(path: str, content: str) -> None:
    with open(path, "w") as file:
        file.write(content)


def read_pid(path: str) -> int:
    with open(path) as file:
        return int(file.read())


def _messages(log_file: str) -> str:
    """The errors that crun logged, one JSON object to a line."""
    try:
        with open(log_file, errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    return "; ".join(filter(None, (_message(line) for line in lines)))


def _message(line: str) -> str:
    try:
        record = json.loads(line)
        return str(record["msg"])
    except (ValueError, KeyError, TypeError):
        return line


def remove_file(path: str) -> None:
    """Remove a file; one that is not there is fine."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
