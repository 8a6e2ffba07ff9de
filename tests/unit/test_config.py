"""The runtime's configuration: defaults, conversions, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from kangaroo.errors import FailedPrecondition, InvalidRequest
from kangaroo.runtime import config
from kangaroo.runtime.config import RuntimeConfig
from kangaroo.runtime.sizing import MachineSize, machine_size
from kangaroo.vmm.spec import Accelerator


def test_no_file_means_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = tmp_path / "absent.toml"
    with pytest.raises(InvalidRequest, match="absent"):
        config.load(absent)  # somebody named it
    monkeypatch.setattr(config, "DEFAULT_PATH", absent)
    assert config.load(absent) == RuntimeConfig()


def test_values_get_their_types(tmp_path: Path) -> None:
    path = tmp_path / "runtime.toml"
    path.write_text(
        'guest_image = "/srv/guest"\naccelerator = "tcg"\nmemory_mib = 512\n'
        'boot_timeout_s = 5\nguest_debug = true\nlog_level = "debug"\n'
    )
    loaded = config.load(path)
    assert loaded.rootfs == Path("/srv/guest/rootfs.erofs")
    assert loaded.accelerator is Accelerator.TCG
    assert loaded.log_level is config.LogLevel.DEBUG
    assert (loaded.memory_mib, loaded.boot_timeout_s, loaded.guest_debug) == (512, 5.0, True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory", 512),
        ("memory_mib", "512"),
        ("memory_mib", 0),
        ("memory_mib", True),
        ("memory_mib", 1.5),
        ("boot_timeout_s", -1),
        ("accelerator", "hvf"),
        ("guest_image", "guest"),
        ("guest_debug", 1),
        ("log_level", "loud"),
        ("log_level", 10),
        ("user", 3),
    ],
)
def test_a_wrong_key_or_value_is_named(key: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as raised:
        config.parse({key: value}, "runtime.toml")
    assert raised.value.field == f"runtime.toml: {key}"


def test_broken_toml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "runtime.toml"
    path.write_text("memory_mib =")
    with pytest.raises(InvalidRequest, match=r"runtime\.toml"):
        config.load(path)


def test_an_absent_guest_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="vmlinuz does not exist"):
        RuntimeConfig(guest_image=tmp_path).require_guest_image()


def test_an_unknown_user_is_named() -> None:
    with pytest.raises(FailedPrecondition, match="no-such-user"):
        RuntimeConfig(user="no-such-user").credentials()


def test_root_needs_no_credentials() -> None:
    assert RuntimeConfig(user="0").credentials() is None


@pytest.mark.parametrize(
    ("annotations", "size"),
    [
        ({}, MachineSize(1296, 1)),
        ({"memory": "0", "cpu-quota": "0", "cpu-period": "100000"}, MachineSize(1296, 1)),
        ({"memory": str(512 << 20)}, MachineSize(776, 1)),
        ({"memory": str((512 << 20) + 1)}, MachineSize(778, 1)),
        ({"memory": str(64 << 30)}, MachineSize(65536, 1, 1024 + 256)),
        ({"cpu-quota": "150000", "cpu-period": "100000"}, MachineSize(1296, 2)),
        ({"cpu-quota": "-1", "cpu-period": "100000"}, MachineSize(1296, 1)),
        ({"cpu-quota": "9900000", "cpu-period": "100000"}, MachineSize(1296, 16)),
        ({"cpu-quota": "-1", "cpu-shares": "8192"}, MachineSize(1296, 8)),
        ({"cpu-shares": "1025"}, MachineSize(1296, 2)),
        ({"cpu-quota": "400000", "cpu-period": "100000", "cpu-shares": "2"}, MachineSize(1296, 4)),
    ],
)
def test_machine_size(annotations: dict[str, str], size: MachineSize) -> None:
    full = {f"io.kubernetes.cri.sandbox-{key}": value for key, value in annotations.items()}
    assert machine_size(full, RuntimeConfig(), memory_bounded=True) == size


def test_a_container_without_a_limit_has_the_memory_of_a_pod_without_one() -> None:
    """The sidecar's limit is the only one, and not the pod's."""

    def memory_mib(limit_mib: int) -> int:
        limit = {"io.kubernetes.cri.sandbox-memory": str(limit_mib << 20)}
        return machine_size(limit, RuntimeConfig(), memory_bounded=False).memory_mib

    assert (memory_mib(128), memory_mib(2048)) == (256 + 16 + 1024, 256 + 32 + 2048)


@pytest.mark.parametrize(
    ("limit_mib", "overhead_mib", "memory_mib", "missing_mib"),
    [
        (1024, 384, 1296, 0),
        (16384, 384, 16768 - 96 - 104, 256 + 256 - (384 - 96 - 104)),
        (16384, 360 + 16 * 23, 16384 + 256 + 256, 0),  # as docs/operations.md has it
        (64, 0, 256, 65),  # it could not boot with less
    ],
)
def test_a_machine_fits_the_control_group_of_its_pod(
    limit_mib: int, overhead_mib: int, memory_mib: int, missing_mib: int
) -> None:
    limit = {"io.kubernetes.cri.sandbox-memory": str(limit_mib << 20)}
    group_bytes = (limit_mib + overhead_mib) << 20
    size = machine_size(limit, RuntimeConfig(), memory_bounded=True, group_bytes=group_bytes)
    assert (size.memory_mib, size.missing_mib) == (memory_mib, missing_mib)


def test_a_size_that_is_no_number_is_named() -> None:
    malformed = {"io.kubernetes.cri.sandbox-memory": "1Gi"}
    with pytest.raises(InvalidRequest, match="sandbox-memory"):
        machine_size(malformed, RuntimeConfig(), memory_bounded=True)
