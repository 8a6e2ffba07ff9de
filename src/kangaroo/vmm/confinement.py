"""What a helper process (QEMU, virtiofsd) may be: its user, network namespace and control group.

Everything is entered by small programs that exec the next, in front of the real one: Python code
between fork and exec is not safe in a process with threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# deploy/systemd
ENDING_UNIT = "kangaroo-sandboxes.service"


@dataclass(frozen=True)
class Credentials:
    """Numeric ids to drop to. All capabilities go with them."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class NewScope:
    """A systemd scope that the process makes and is the first in. A line is written to `ready_fd`,
    which must be inherited, once it is there.
    """

    slice_name: str
    name: str
    ready_fd: int


@dataclass(frozen=True)
class Confinement:
    """Each part is optional; None leaves that part as the caller's. `cgroup` exists already."""

    cgroup: Path | None = None
    new_scope: NewScope | None = None
    netns: Path | None = None
    credentials: Credentials | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the process must inherit to be confined."""
        return () if self.new_scope is None else (self.new_scope.ready_fd,)

    def wrap(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        """`argv` behind the programs that confine it; the pid stays the same through all of them.
        Pure.
        """
        return (*self._scope(), *self._cgroup(), *self._netns(), *self._credentials(), *argv)

    def _scope(self) -> tuple[str, ...]:
        if self.new_scope is None:
            return ()
        return (
            *("systemd-run", "--scope", "--quiet", "--collect"),
            f"--slice={self.new_scope.slice_name}",
            f"--unit={self.new_scope.name}",
            "--description=Sandbox of a pod",
            # Delegated, so that systemd keeps the controllers of the slices above.
            "--property=Delegate=yes",
            # A shutdown of the node stops the slice, and with it the scope. Stopped are units in
            # the reverse order of their start: first the unit that has guests write back.
            *("--property=DefaultDependencies=no", f"--property=Before={ENDING_UNIT}"),
            *("--", "/bin/sh", "-ec", 'echo >"/proc/self/fd/$1"; shift; exec "$@"', "in-scope"),
            str(self.new_scope.ready_fd),
        )

    def _cgroup(self) -> tuple[str, ...]:
        if self.cgroup is None:
            return ()
        # Joining before exec means that no child and no page of the program is accounted elsewhere.
        script = 'echo 0 > "$1/cgroup.procs"; shift; exec "$@"'
        return ("/bin/sh", "-ec", script, "join-cgroup", str(self.cgroup))

    def _netns(self) -> tuple[str, ...]:
        return () if self.netns is None else ("nsenter", f"--net={self.netns}")

    def _credentials(self) -> tuple[str, ...]:
        if self.credentials is None:
            return ()
        ids = self.credentials
        groups = (
            f"--groups={','.join(str(group) for group in ids.groups)}"
            if ids.groups
            else "--clear-groups"
        )
        return (
            "setpriv",
            f"--reuid={ids.uid}",
            f"--regid={ids.gid}",
            groups,
            "--bounding-set=-all",
            "--inh-caps=-all",
            "--no-new-privs",
        )
