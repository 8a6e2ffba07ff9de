"""Where the files of one sandbox lie (ARCHITECTURE.md, "Layout on a node")."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SandboxPaths:
    """Names below a sandbox's state directory."""

    state_dir: Path

    @property
    def shared(self) -> Path:
        return self.state_dir / "shared"

    @property
    def qmp_socket(self) -> Path:
        return self.state_dir / "qmp.sock"

    @property
    def virtiofsd_socket(self) -> Path:
        return self.state_dir / "virtiofsd.sock"

    @property
    def console_log(self) -> Path:
        return self.state_dir / "console.log"

    @property
    def qemu_log(self) -> Path:
        return self.state_dir / "qemu.log"

    @property
    def virtiofsd_log(self) -> Path:
        return self.state_dir / "virtiofsd.log"
