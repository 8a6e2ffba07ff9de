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


def test_every_key_is_optional(tmp_path: Path) -> None:
    assert config.load(tmp_path / "absent.toml") == load(tmp_path, "") == Config()
    assert Config().socket_path == Path(
        "/var/lib/kubelet/plugins/nasplugin.csi.alibabacloud.com/csi.sock"
    )
    assert Config().registration_path == Path(
        "/var/lib/kubelet/plugins_registry/nasplugin.csi.alibabacloud.com-reg.sock"
    )
    assert Config().effective_node_id


def test_keys(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        'driver_name = "nas.example.com"\nnode_id = "n1"\nmount_timeout_s = 7\n'
        'endpoint = "/run/csi.sock"\nregister = false\nlog_level = "debug"\n',
    )
    assert loaded == Config(
        driver_name="nas.example.com",
        node_id="n1",
        mount_timeout_s=7,
        endpoint="/run/csi.sock",
        register=False,
        log_level="debug",
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
        ("register = 1", "register"),
        ("driver_name = 'a/b'", "driver_name"),
        ("endpoint = 'csi.sock'", "endpoint"),
        ("log_level = 'loud'", "log_level"),
        ("= 3", "csi.toml"),
    ],
)
def test_bad_keys_are_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        load(tmp_path, text)
