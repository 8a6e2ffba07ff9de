"""What the lab decides without touching the machine: addresses, command lines, written state."""

from __future__ import annotations

import base64
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from string import Template

import pytest
from tests.node import runtime_toml

from kangaroo.errors import DeadlineExceeded, FailedPrecondition, KangarooError, Unavailable
from kangaroo_lab import accelerator, data, node, payload, readiness, state
from kangaroo_lab.daemon import Daemon
from kangaroo_lab.dual_stack import with_ipv6
from kangaroo_lab.enclosure import enclosed
from kangaroo_lab.network import Network, inside
from kangaroo_lab.node import Node
from kangaroo_lab.pki import kubeconfig
from kangaroo_lab.ssh import Keys
from kangaroo_lab.state import Shape, Store


def a_node(directory: Path, index: int = 1) -> Node:
    keys = Keys(directory / "pki", "kangaroo-lab")
    return Node(index, Network(), directory / "nodes" / "node1", directory / "logs", keys)


def test_every_address_comes_from_the_ranges() -> None:
    network = Network(hosts="10.9.0.0/24", pods="10.20.0.0/16")
    assert (network.gateway, network.nas, network.node(1)) == ("10.9.0.1", "10.9.0.2", "10.9.0.11")
    assert network.node_pods(2) == "10.20.2.0/24"


def test_nodes_differ_in_address_tap_and_mac() -> None:
    network = Network()
    for of in (network.node, network.node_pods, network.tap, network.mac):
        assert len({of(index) for index in (1, 2, 3)}) == 3


def test_interface_names_are_short_enough() -> None:
    assert all(len(Network().tap(index)) < 16 for index in range(1, 100))


def test_the_node_is_one_processor_with_its_installer(tmp_path: Path) -> None:
    machine = a_node(tmp_path)
    argv = machine._argv(Path("/root-dir"), memory_mib=1024, accel="tcg")
    assert argv[argv.index("-smp") + 1] == "1"
    assert "+svm" in argv[argv.index("-cpu") + 1]
    credential = argv[argv.index("-smbios") + 1].partition("extra-unit.")[2]
    name, _, encoded = credential.partition("=")
    assert name == f"{node.UNIT}.service"
    assert "install.sh" in base64.b64decode(encoded).decode()
    assert f"systemd.wants={name}" in argv[argv.index("-append") + 1].split()


def test_the_kernel_command_line_fits(tmp_path: Path) -> None:
    argv = a_node(tmp_path)._argv(Path("/r"), memory_mib=1, accel="kvm")
    assert len(argv[argv.index("-append") + 1]) < 2048


def test_a_remote_command_survives_the_remote_shell(tmp_path: Path) -> None:
    remote = ["sh", "-c", "echo 'a b' \"$HOME\"; true", "x y"]
    argv = a_node(tmp_path).ssh(*remote)
    assert shlex.split(argv[argv.index("--", argv.index("ssh")) + 1]) == remote
    assert argv[: len(inside("kangaroo-lab"))] == inside("kangaroo-lab")


def test_the_accelerator_can_be_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KANGAROO_LAB_ACCEL", "tcg")
    assert accelerator.choose(tmp_path, tmp_path) == "tcg"
    monkeypatch.setenv("KANGAROO_LAB_ACCEL", "xen")
    with pytest.raises(KangarooError, match="xen"):
        accelerator.choose(tmp_path, tmp_path)


def test_a_kubeconfig_has_one_context() -> None:
    config = json.loads(kubeconfig(server="https://a", authority="/ca", certificate="/c", key="/k"))
    assert config["current-context"] == config["contexts"][0]["name"]
    assert config["clusters"][0]["cluster"]["certificate-authority"] == "/ca"
    assert config["users"][0]["user"] == {"client-certificate": "/c", "client-key": "/k"}


def test_files_of_the_caller_hide_those_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "hosts").touch()
    (tmp_path / "etc" / "passwd").touch()
    mine = Path("/mine/hosts")
    argv = enclosed(tmp_path, ["true"], read_only={mine: "/etc/hosts"})
    assert str(tmp_path / "etc/hosts") not in argv
    assert str(tmp_path / "etc/passwd") in argv
    assert argv[argv.index(str(mine)) + 1] == "/etc/hosts"
    assert argv[-2:] == ["--", "true"]


def test_ipv6_comes_beside_ipv4() -> None:
    text = Template(data.text("node/cni.conflist")).substitute(pods="10.244.1.0/24")
    ipam = json.loads(with_ipv6(text, "fd44::/64"))["plugins"][0]["ipam"]
    assert ipam["ranges"] == [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd44::/64"}]]
    assert [route["dst"] for route in ipam["routes"]] == ["0.0.0.0/0", "::/0"]


def test_ipv6_that_a_killed_test_left_is_replaced_and_taken_away() -> None:
    text = Template(data.text("node/cni.conflist")).substitute(pods="10.244.1.0/24")
    twice = with_ipv6(with_ipv6(text, "fd44::/64"), "fd44::/64")
    assert json.loads(twice) == json.loads(with_ipv6(text, "fd44::/64"))
    assert json.loads(with_ipv6(twice)) == json.loads(text)


def test_keys_of_the_runtime_that_a_killed_test_left_are_replaced() -> None:
    text = "boot_timeout_s = 240\n"
    left = runtime_toml.changed(text, {"shutdown_timeout_s": 15})
    again = runtime_toml.changed(left, {"shutdown_timeout_s": 5, "nas_mount_timeout_s": 1})
    expected = {"boot_timeout_s": 240, "shutdown_timeout_s": 5, "nas_mount_timeout_s": 1}
    assert tomllib.loads(again) == expected
    assert runtime_toml.changed(again, {}) == text


def test_a_node_tells_of_each_of_its_services(tmp_path: Path) -> None:
    payload.configure(tmp_path, payload.Identity(1, Network(), "https://a"), "pause")
    unit = (tmp_path / "etc/systemd/system/kangaroo-ready.service").read_text()
    (after,) = re.findall("^After=(.*)$", unit, re.MULTILINE)
    (script, *services) = re.findall("^ExecStart=/bin/sh (.*)$", unit, re.MULTILINE)[0].split()
    assert (tmp_path / script[1:]).exists()
    assert after.split() == services
    assert {"kubelet.service", "kangaroo-csi.service", "kangaroo-images.service"} < {*services}


def test_a_node_with_a_service_that_failed_is_not_up() -> None:
    node.require_active(["kubelet.service active", "ready", "never read"])
    said = ["ssh.service active", "kangaroo-images.service failed", "b.service activating", "ready"]
    with pytest.raises(Unavailable, match=r"kangaroo-images.service is failed, b.service is act"):
        node.require_active(said)


def test_a_boot_that_fails_shows_the_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = a_node(tmp_path)
    machine.directory.mkdir(parents=True)
    machine.logs.mkdir()
    machine.disk.touch()
    machine.console.write_text("an earlier boot\n")

    def late(*_: object, **__: object) -> Iterator[str]:
        machine.console.write_text("Kernel panic\n")
        raise DeadlineExceeded("node1 is not ready")

    monkeypatch.setattr(node, "enclosed", lambda *_, **__: [])
    monkeypatch.setattr(node, "start", lambda *_, **__: Daemon("node1", 1, 0, "/log"))
    monkeypatch.setattr(readiness, "lines", late)
    boot = machine.boot(host_tools=tmp_path, root=tmp_path, memory_mib=1, accel="tcg")
    assert next(boot).name == "node1"
    assert not machine.console.exists()
    with pytest.raises(DeadlineExceeded, match=r"node1 is not ready\n(.*\n)*Kernel panic") as it:
        next(boot)
    assert str(machine.console) in str(it.value.hint)


def test_state_is_read_back_as_written(tmp_path: Path) -> None:
    shape = Shape(nodes=2, network=Network(hosts="10.1.0.0/24"), node_root="/cache/node-root-1")
    store = Store(tmp_path, shape=shape)
    store.remember_daemon(Daemon("etcd", 42, 1000, "/log"))
    assert Store.load(tmp_path) == store
    store.forget_daemon("etcd")
    assert Store.load(tmp_path).daemons == {}


def test_state_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"version": 999}')
    with pytest.raises(FailedPrecondition, match="999"):
        Store.load(tmp_path)


def test_state_of_the_version_before_has_no_root(tmp_path: Path) -> None:
    store = Store(tmp_path, shape=Shape(nodes=2))
    store.save()
    written = json.loads((tmp_path / "state.json").read_text())
    del written["shape"]["node_root"]
    (tmp_path / "state.json").write_text(json.dumps({**written, "version": 1}))
    assert Store.load(tmp_path) == store


def test_two_commands_do_not_change_a_lab_at_once(tmp_path: Path) -> None:
    with (
        state.locked(tmp_path),
        pytest.raises(FailedPrecondition, match="another command"),
        state.locked(tmp_path),
    ):
        pass


def test_an_absent_lab_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANGAROO_LAB", str(tmp_path))
    assert state.default_directory() == tmp_path
    assert Store.load(tmp_path).shape is None
