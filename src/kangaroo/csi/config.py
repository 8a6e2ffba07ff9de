"""Configuration of `kangaroo-csi`: one frozen value, parsed once. Every key is optional."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import socket
import tomllib
from dataclasses import dataclass
from pathlib import Path

from kangaroo.csi import shares, sunrpc
from kangaroo.errors import InvalidRequest
from kangaroo.wire.node_protocol import SANDBOXES_DIRECTORY

DEFAULT_PATH = Path("/etc/kangaroo/csi.toml")
DEFAULT_DRIVER_NAME = "nasplugin.csi.alibabacloud.com"

# GetPluginInfo in the CSI specification: domain-name notation, at most 63 characters.
_DRIVER_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
_PATHS = (
    *("endpoint", "kubelet_plugins_dir", "kubelet_registry_dir", "kubelet_pods_dir"),
    *("work_dir", "sandboxes_dir"),
)
# A path of HTTP that needs no escaping.
_METRICS_PATH = re.compile(r"/[A-Za-z0-9._~/-]{0,255}")
_LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Config:
    """See docs/operations.md. Kubelet gives a call two minutes; its timeouts stay below that."""

    driver_name: str = DEFAULT_DRIVER_NAME
    node_id: str = ""  # the host name when empty
    endpoint: str = ""  # <kubelet_plugins_dir>/<driver_name>/csi.sock when empty
    kubelet_plugins_dir: str = "/var/lib/kubelet/plugins"
    kubelet_registry_dir: str = "/var/lib/kubelet/plugins_registry"
    kubelet_pods_dir: str = "/var/lib/kubelet/pods"
    register: bool = True  # false where a registrar sidecar does it
    mount_timeout_s: float = 60.0
    mode_timeout_s: float = 25.0  # a publish as a whole stays below 120 s
    unmount_timeout_s: float = 15.0  # then it is forced, which takes seconds
    probe_timeout_s: float = 5.0
    operation_timeout_s: float = 100.0  # of the Controller service on a share, mount and all
    copy_stall_timeout_s: float = 120.0  # of a snapshot's or clone's copy that gets nowhere
    shares: tuple[str, ...] = ()  # SERVER:/PATH[,OPTIONS], whose volumes and snapshots are listed
    work_dir: str = "/run/kangaroo/csi"
    sandboxes_dir: str = SANDBOXES_DIRECTORY  # the runtime's state_root
    metrics_address: str = ""  # "127.0.0.1:9809", "[::]:9809"; no metrics when empty
    metrics_path: str = "/metrics"
    create_missing_directories: bool = True
    ephemeral_volumes: bool = False  # volumes that a pod describes itself
    sunrpc_tcp_slot_table_entries: int = 128  # 0 leaves the node's setting alone
    log_level: str = "info"

    def __post_init__(self) -> None:
        if not _DRIVER_NAME.fullmatch(self.driver_name):
            raise InvalidRequest("driver_name", f"{self.driver_name!r} is not a CSI driver name")
        if self.log_level not in _LOG_LEVELS:
            raise InvalidRequest("log_level", f"{self.log_level!r} is not in {_LOG_LEVELS}")
        for name in ("mount", "mode", "unmount", "probe", "operation", "copy_stall"):
            key = f"{name}_timeout_s"
            if not 0 < getattr(self, key) <= 3600:
                raise InvalidRequest(key, "not between 0 and 3600 seconds")
        slots = self.sunrpc_tcp_slot_table_entries
        if slots and not sunrpc.FEWEST <= slots <= sunrpc.MOST:
            raise InvalidRequest(
                "sunrpc_tcp_slot_table_entries",
                f"neither 0 nor between {sunrpc.FEWEST} and {sunrpc.MOST}",
            )
        for key in _PATHS:
            value = getattr(self, key)
            if value and not value.startswith("/"):
                raise InvalidRequest(key, f"{value!r} is not an absolute path")
        if self.metrics_address:
            _listen_address(self.metrics_address)
        if not _METRICS_PATH.fullmatch(self.metrics_path):
            raise InvalidRequest("metrics_path", f"{self.metrics_path!r} is not a path of a URL")
        shares.check(self.shares)

    @property
    def socket_path(self) -> Path:
        """Where the CSI services listen."""
        if self.endpoint:
            return Path(self.endpoint)
        return Path(self.kubelet_plugins_dir) / self.driver_name / "csi.sock"

    @property
    def registration_path(self) -> Path:
        """Where kubelet's plugin watcher finds the driver."""
        return Path(self.kubelet_registry_dir) / f"{self.driver_name}-reg.sock"

    @property
    def metrics_listen(self) -> tuple[str, int]:
        """The address and the port of the metrics, when there are any."""
        return _listen_address(self.metrics_address)

    @property
    def effective_node_id(self) -> str:
        """The node's id for kubelet."""
        return self.node_id or socket.gethostname()


def _listen_address(value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
        number = int(port) if port.isdecimal() and port.isascii() else 0
    except ValueError:
        address, number = None, 0
    bracketed = host.startswith("[") and host.endswith("]")
    if address is None or not 0 < number < 65536 or bracketed != (address.version == 6):
        raise InvalidRequest(
            "metrics_address",
            f"{value!r} is not an IP address and a port",
            hint="such as 127.0.0.1:9809, [::1]:9809, or [::]:9809 for all addresses",
        )
    return str(address), number


def load(path: Path = DEFAULT_PATH) -> Config:
    """Read a TOML file; defaults when there is none at the default path. Raises InvalidRequest
    naming the file or a bad key.
    """
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        if isinstance(error, FileNotFoundError) and path == DEFAULT_PATH:
            return Config()
        raise InvalidRequest(str(path), str(error)) from error
    fields = {field.name: field for field in dataclasses.fields(Config)}
    for key, value in table.items():
        if key not in fields:
            raise InvalidRequest(f"{path}: {key}", "unknown", hint=f"known are {', '.join(fields)}")
        expected = type(fields[key].default)
        if expected is tuple and isinstance(value, list):
            table[key] = value = tuple(value)  # noqa: PLW2901
            if not all(isinstance(item, str) for item in value):
                raise InvalidRequest(f"{path}: {key}", f"{value!r} has more than text in it")
        accepted = (int, float) if expected is float else expected
        if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
            raise InvalidRequest(f"{path}: {key}", f"{value!r} is not a {expected.__name__}")
    return Config(**table)
