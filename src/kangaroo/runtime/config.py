"""The runtime's configuration: one frozen object, read once from TOML. Unknown keys are refused."""

from __future__ import annotations

import dataclasses
import grp
import pwd
import tomllib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from kangaroo.errors import FailedPrecondition, InvalidRequest
from kangaroo.guest import manifest
from kangaroo.runtime.options import DEFAULT_CONFIG_PATH
from kangaroo.vmm.confinement import Credentials
from kangaroo.vmm.spec import Accelerator
from kangaroo.wire.node_protocol import SANDBOXES_DIRECTORY

DEFAULT_PATH = Path(DEFAULT_CONFIG_PATH)


class LogLevel(Enum):
    """How much a shim logs."""

    DEBUG = "debug"
    INFO = "info"


@dataclass(frozen=True)
class RuntimeConfig:
    """Every key is optional in the file. Sizes and times carry their unit in the name."""

    guest_image: Path = manifest.DEFAULT_DIRECTORY
    state_root: Path = Path(SANDBOXES_DIRECTORY)
    kubelet_root: Path = Path("/var/lib/kubelet")
    qemu: Path = Path("/usr/bin/qemu-system-x86_64")
    virtiofsd: Path = Path("/usr/libexec/virtiofsd")
    accelerator: Accelerator = Accelerator.KVM
    user: str = "kangaroo"  # whose group QEMU has; a name or a number

    memory_mib: int = 256  # the guest's own, on top of the pod's
    unlimited_pod_memory_mib: int = 1024  # on top, for a pod without a memory limit
    max_memory_mib: int = 65536
    vcpus: int = 1  # for a pod without a CPU limit
    max_vcpus: int = 16

    virtiofs_xattr: bool = True  # extended attributes, and so capabilities of files

    boot_timeout_s: float = 120.0
    call_timeout_s: float = 60.0
    guest_silence_timeout_s: float = 600.0  # then a guest that does not answer is ended
    nas_mount_timeout_s: float = 60.0
    unmount_timeout_s: float = 20.0
    shutdown_timeout_s: float = 60.0
    power_off_timeout_s: float = 20.0

    events_kubeconfig: Path | None = None  # who posts events on pods; None: nobody

    guest_debug: bool = False
    log_level: LogLevel = LogLevel.INFO

    @property
    def kernel(self) -> Path:
        return self.guest_image / manifest.KERNEL

    @property
    def initrd(self) -> Path:
        return self.guest_image / manifest.INITRD

    @property
    def rootfs(self) -> Path:
        return self.guest_image / manifest.ROOT

    def credentials(self) -> Credentials | None:
        """Whose group QEMU has, and the group that owns /dev/kvm; None for root.

        Raises FailedPrecondition when the user does not exist.
        """
        uid, gid = _user(self.user)
        if uid == 0:
            return None
        return Credentials(uid, gid, _kvm_groups() if self.accelerator is Accelerator.KVM else ())

    def require_guest_image(self) -> None:
        """Raises FailedPrecondition naming what is missing of the guest image."""
        for path in (self.kernel, self.initrd, self.rootfs):
            if not path.is_file():
                raise FailedPrecondition(
                    f"guest image: {path} does not exist",
                    hint="build it with `kangaroo guest build` or set guest_image",
                )


def load(path: Path = DEFAULT_PATH) -> RuntimeConfig:
    """Read the file; none at the default path means all defaults. Raises InvalidRequest naming file
    and key.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        if isinstance(error, FileNotFoundError) and path == DEFAULT_PATH:
            return RuntimeConfig()
        raise InvalidRequest(str(path), str(error)) from error
    return parse(document, str(path))


def parse(document: dict[str, Any], origin: str) -> RuntimeConfig:
    """The configuration of a document; `origin` names it in errors. Raises InvalidRequest."""
    fields = {field.name: field for field in dataclasses.fields(RuntimeConfig)}
    values = {}
    for key, value in document.items():
        if key not in fields:
            raise InvalidRequest(f"{origin}: {key}", "there is no such key")
        values[key] = _convert(f"{origin}: {key}", value, fields[key].default)
    return RuntimeConfig(**values)


def _convert(field: str, value: Any, default: Any) -> Any:
    """As the type of `default`. bool is not an int here, and sizes and times are positive."""
    if isinstance(default, bool):
        return _expect(field, value, bool, "true or false")
    if isinstance(default, Enum):
        return _member(field, value, type(default))
    if isinstance(default, Path) or default is None:  # None: a path that may be absent
        path = Path(_expect(field, value, str, "a path"))
        if not path.is_absolute():
            raise InvalidRequest(field, f"{value!r} is not an absolute path")
        return path
    if isinstance(default, str):
        return _expect(field, value, str, "a string")
    return _positive(field, value, type(default))


def _positive(field: str, value: Any, kind: type[int | float]) -> int | float:
    accepted = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, accepted) or not value > 0:
        raise InvalidRequest(field, f"{value!r} is not a positive {kind.__name__}")
    return kind(value)


def _expect(field: str, value: Any, kind: type, description: str) -> Any:
    if not isinstance(value, kind):
        raise InvalidRequest(field, f"{value!r} is not {description}")
    return value


def _member(field: str, value: Any, kind: type[Enum]) -> Enum:
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(item.value for item in kind)
        raise InvalidRequest(field, f"{value!r} is none of {allowed}") from None


def _user(user: str) -> tuple[int, int]:
    if user.isdecimal():
        return int(user), int(user)
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise FailedPrecondition(
            f"the user {user!r} whose group QEMU is to have does not exist on this node",
            hint="create it as a system user, or set `user` in the runtime's configuration",
        ) from None
    return entry.pw_uid, entry.pw_gid


def _kvm_groups() -> tuple[int, ...]:
    try:
        return (Path("/dev/kvm").stat().st_gid,)
    except OSError:
        pass
    try:
        return (grp.getgrnam("kvm").gr_gid,)
    except KeyError:
        return ()
