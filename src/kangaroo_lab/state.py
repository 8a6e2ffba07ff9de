"""What is written down about a lab: its shape, and the processes that belong to it.

One JSON file, versioned, replaced atomically; a lock keeps two commands from changing a lab at the
same time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kangaroo.errors import FailedPrecondition
from kangaroo_lab.daemon import Daemon
from kangaroo_lab.network import Network

VERSION = 2
# Version 1 has no `node_root`.
_READ = (1, VERSION)
DEFAULT_MEMORY_MIB = 5120
DEFAULT_DIRECTORY = Path("/var/lib/kangaroo-lab")


def default_directory() -> Path:
    """`$KANGAROO_LAB`, or DEFAULT_DIRECTORY."""
    return Path(os.environ.get("KANGAROO_LAB") or DEFAULT_DIRECTORY)


@dataclass(frozen=True, slots=True)
class Shape:
    """What the lab is made of. `accelerator` is what the nodes run on: "tcg" or "kvm". Paths of
    artefacts are those that it came up with; an empty one is not known.
    """

    nodes: int = 1
    memory_mib: int = DEFAULT_MEMORY_MIB
    accelerator: str = "tcg"
    network: Network = field(default_factory=Network)
    host_tools: str = ""
    kubernetes: str = ""
    node_root: str = ""


@dataclass(slots=True)
class Store:
    """The state file in a lab's directory. Every change is on disk when a method returns."""

    directory: Path
    shape: Shape | None = None
    complete: bool = False
    daemons: dict[str, Daemon] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: Path) -> Store:
        """The state in `directory`; an empty one when there is none. Raises FailedPrecondition."""
        try:
            raw = json.loads((directory / "state.json").read_text())
        except FileNotFoundError:
            return cls(directory)
        if raw["version"] not in _READ:
            raise FailedPrecondition(
                f"{directory}: state version {raw['version']}, this is {VERSION}",
                hint="take the lab down with the version that made it",
            )
        daemons = {name: Daemon(**value) for name, value in raw["daemons"].items()}
        return cls(directory, _shape(raw["shape"]), raw["complete"], daemons)

    def save(self) -> None:
        document = {
            "version": VERSION,
            "complete": self.complete,
            "shape": None if self.shape is None else dataclasses.asdict(self.shape),
            "daemons": {name: dataclasses.asdict(one) for name, one in self.daemons.items()},
        }
        temporary = self.directory / "state.json.new"
        with temporary.open("w") as output:
            json.dump(document, output, indent=1)
            output.flush()
            os.fsync(output.fileno())
        temporary.rename(self.directory / "state.json")

    def remember_daemon(self, daemon: Daemon) -> None:
        self.daemons[daemon.name] = daemon
        self.save()

    def forget_daemon(self, name: str) -> None:
        if self.daemons.pop(name, None) is not None:
            self.save()

    def daemon(self, name: str) -> Daemon | None:
        return self.daemons.get(name)


@contextlib.contextmanager
def locked(
    directory: Path,
    name: str = "lock",
    *,
    wait: bool = False,
    refusal: str = "another command is changing this lab",
    hint: str | None = None,
) -> Iterator[None]:
    """Hold a lock of the lab. Raises FailedPrecondition, with `refusal`, when another process holds
    it, unless `wait`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / name).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise FailedPrecondition(f"{directory}: {refusal}", hint=hint) from error
        yield


def _shape(raw: dict[str, Any] | None) -> Shape | None:
    if raw is None:
        return None
    return Shape(**{**raw, "network": Network(**raw["network"])})
