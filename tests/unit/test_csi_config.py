"""The driver's configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from kangaroo.csi import config
from kangaroo.csi.config import Config
from kangaroo.errors import InvalidRequest


def load(directory: Path, text: str) -> Config:
    path = directory / "csi.toml"
    path.write_text(text)
    return config.load(path)


def test_every_key_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "absent.toml")
    assert config.load(tmp_path / "absent.toml") == load(tmp_path, "") == Config()
    assert Config().socket_path == Path(
        "/var/lib/kubelet/plugins/nasplugin.csi.alibabacloud.com/csi.sock"
    )
    assert Config().registration_path == Path(
        "/var/lib/kubelet/plugins_registry/nasplugin.csi.alibabacloud.com-reg.sock"
    )
    assert Config().effective_node_id


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"driver_name = '\xe4'")
    for name in ("absent", ".", "latin"):
        with pytest.raises(InvalidRequest) as raised:
            config.load(tmp_path / name)
        assert raised.value.field == str(tmp_path / name)


def test_keys(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        'driver_name = "nas.example.com"\nnode_id = "n1"\nmount_timeout_s = 7\n'
        'endpoint = "/run/csi.sock"\nregister = false\nlog_level = "debug"\n'
        'shares = ["192.0.2.1:/csi", "[2001:db8::1]:/"]\n'
        "create_missing_directories = false\nephemeral_volumes = true\n"
        "sunrpc_tcp_slot_table_entries = 0\n",
    )
    assert loaded == Config(
        driver_name="nas.example.com",
        node_id="n1",
        mount_timeout_s=7,
        endpoint="/run/csi.sock",
        register=False,
        log_level="debug",
        shares=("192.0.2.1:/csi", "[2001:db8::1]:/"),
        create_missing_directories=False,
        ephemeral_volumes=True,
        sunrpc_tcp_slot_table_entries=0,
    )
    assert loaded.socket_path == Path("/run/csi.sock")
    assert loaded.effective_node_id == "n1"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("mount_timeout = 7", "mount_timeout"),
        ('mount_timeout_s = "7"', "mount_timeout_s"),
        ("mount_timeout_s = true", "mount_timeout_s"),
        ("mount_timeout_s = 0", "mount_timeout_s"),
        ("copy_stall_timeout_s = 0", "copy_stall_timeout_s"),
        ('shares = "192.0.2.1:/csi"', "shares"),
        ("shares = [1]", "shares"),
        ('shares = ["192.0.2.1"]', "shares"),
        ('shares = ["192.0.2.1:/a/../b"]', "path"),
        ('shares = ["192.0.2.1:/a,vers=5"]', "options"),
        ('shares = ["192.0.2.1:/a,vers=4.1,bg"]', "options"),
        ("register = 1", "register"),
        ("driver_name = 'a/b'", "driver_name"),
        ("endpoint = 'csi.sock'", "endpoint"),
        ("log_level = 'loud'", "log_level"),
        ("metrics_address = '9809'", "metrics_address"),
        ("metrics_address = 'localhost:9809'", "metrics_address"),
        ("metrics_address = '127.0.0.1:0'", "metrics_address"),
        ("metrics_address = '127.0.0.1:65536'", "metrics_address"),
        ("metrics_address = '127.0.0.1:٣'", "metrics_address"),
        ("metrics_address = '::1:9809'", "metrics_address"),
        ("metrics_address = '[127.0.0.1]:9809'", "metrics_address"),
        ("metrics_path = 'metrics'", "metrics_path"),
        ("metrics_path = '/a?b'", "metrics_path"),
        ("kubelet_pods_dir = 'pods'", "kubelet_pods_dir"),
        ("create_missing_directories = 'yes'", "create_missing_directories"),
        ("ephemeral_volumes = 1", "ephemeral_volumes"),
        ("sunrpc_tcp_slot_table_entries = 1", "sunrpc_tcp_slot_table_entries"),
        ("sunrpc_tcp_slot_table_entries = 65537", "sunrpc_tcp_slot_table_entries"),
        ("sunrpc_tcp_slot_table_entries = -128", "sunrpc_tcp_slot_table_entries"),
        ("sunrpc_tcp_slot_table_entries = true", "sunrpc_tcp_slot_table_entries"),
        ("= 3", "csi.toml"),
    ],
)
def test_bad_keys_are_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9809", ("127.0.0.1", 9809)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::]:65535", ("::", 65535)),
        ("[fd00:0::1]:9809", ("fd00::1", 9809)),
    ],
)
def test_where_the_metrics_are(tmp_path: Path, text: str, address: tuple[str, int]) -> None:
    loaded = load(tmp_path, f'metrics_address = "{text}"\nmetrics_path = "/m/x"\n')
    assert loaded.metrics_listen == address
    assert loaded.metrics_path == "/m/x"
    assert not Config().metrics_address
