"""The driver's process over its real sockets. NFS itself is the node tests' affair."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from kangaroo import __version__
from kangaroo.linux import mount, mountinfo
from kangaroo.nas import placeholder
from kangaroo.wire.gen import csi_pb2 as csi
from kangaroo.wire.gen import csi_pb2_grpc, registration_pb2, registration_pb2_grpc

Code = grpc.StatusCode
ATTRIBUTES = {"server": "192.0.2.1", "path": "/csi", "csi.storage.k8s.io/pod.name": "p"}
EPHEMERAL = "csi.storage.k8s.io/ephemeral"
WRITER = csi.VolumeCapability.AccessMode.MULTI_NODE_MULTI_WRITER


@dataclass
class Driver:
    directory: Path
    process: subprocess.Popen[str]
    channel: grpc.Channel

    @property
    def endpoint(self) -> Path:
        return self.directory / "plugins" / "nas.test" / "csi.sock"

    @property
    def registration(self) -> Path:
        return self.directory / "registry" / "nas.test-reg.sock"

    @property
    def node(self) -> Any:
        return csi_pb2_grpc.NodeStub(self.channel)  # type: ignore[no-untyped-call]

    @property
    def identity(self) -> Any:
        return csi_pb2_grpc.IdentityStub(self.channel)  # type: ignore[no-untyped-call]

    def log(self) -> str:
        return (self.directory / "log").read_text()


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Short, for a unix socket's path has 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="kcsi-"))
    yield path
    shutil.rmtree(path)


def start(directory: Path, *prefix: str) -> Driver:
    """The driver's process, by way of the command `prefix`, which becomes it."""
    config = directory / "csi.toml"
    config.write_text(
        'driver_name = "nas.test"\nnode_id = "node-7"\nlog_level = "debug"\nmount_timeout_s = 10\n'
        "probe_timeout_s = 1\nsunrpc_tcp_slot_table_entries = 0\n"
        f'work_dir = "{directory}/work"\n'
        f'kubelet_plugins_dir = "{directory}/plugins"\n'
        f'kubelet_registry_dir = "{directory}/registry"\n'
    )
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            (*prefix, sys.executable, "-m", "kangaroo.csi.main", "--config", str(config)),
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    channel = grpc.insecure_channel(f"unix:{directory}/plugins/nas.test/csi.sock")
    driver = Driver(directory, process, channel)
    driver.identity.Probe(csi.ProbeRequest(), wait_for_ready=True, timeout=30)
    return driver


def stop(driver: Driver) -> None:
    driver.channel.close()
    driver.process.send_signal(signal.SIGTERM)
    assert driver.process.wait(timeout=15) == 0


@pytest.fixture(scope="module")
def driver(directory: Path) -> Iterator[Driver]:
    before = mountinfo.read()
    driver = start(directory)
    yield driver
    stop(driver)
    assert not driver.endpoint.exists()
    assert not driver.registration.exists()
    assert mountinfo.read() == before


@pytest.fixture
def target(directory: Path) -> Iterator[Path]:
    parent = Path(tempfile.mkdtemp(dir=directory))
    yield parent / "mount"
    assert list(parent.iterdir()) == []


def publish_request(target: Path | str, **changes: Any) -> csi.NodePublishVolumeRequest:
    capability = csi.VolumeCapability(
        mount=csi.VolumeCapability.MountVolume(mount_flags=changes.pop("mount_flags", ())),
        access_mode=csi.VolumeCapability.AccessMode(mode=WRITER),
    )
    fields: dict[str, Any] = {
        "volume_id": "nas-pv",
        "target_path": str(target),
        "volume_capability": capability,
        "volume_context": ATTRIBUTES,
    }
    return csi.NodePublishVolumeRequest(**(fields | changes))


def failure(call: Any, request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=30)
    return caught.value.code(), caught.value.details() or ""


def publish_failure(driver: Driver, target: Path | str, **changes: Any) -> tuple[Any, str]:
    return failure(driver.node.NodePublishVolume, publish_request(target, **changes))


def unpublish(driver: Driver, target: Path) -> None:
    request = csi.NodeUnpublishVolumeRequest(volume_id="nas-pv", target_path=str(target))
    driver.node.NodeUnpublishVolume(request, timeout=30)


def test_identity(driver: Driver) -> None:
    info = driver.identity.GetPluginInfo(csi.GetPluginInfoRequest())
    assert (info.name, info.vendor_version) == ("nas.test", __version__)
    capabilities = driver.identity.GetPluginCapabilities(csi.GetPluginCapabilitiesRequest())
    kinds = [capability.WhichOneof("type") for capability in capabilities.capabilities]
    assert kinds == ["service", "volume_expansion"]
    assert driver.identity.Probe(csi.ProbeRequest()).ready.value is True


def test_node_info(driver: Driver) -> None:
    assert driver.node.NodeGetInfo(csi.NodeGetInfoRequest()).node_id == "node-7"
    capabilities = driver.node.NodeGetCapabilities(csi.NodeGetCapabilitiesRequest()).capabilities
    kinds = {capability.rpc.type for capability in capabilities}
    assert csi.NodeServiceCapability.RPC.STAGE_UNSTAGE_VOLUME not in kinds
    assert csi.NodeServiceCapability.RPC.GET_VOLUME_STATS in kinds
    assert csi.NodeServiceCapability.RPC.VOLUME_CONDITION in kinds
    assert csi.NodeServiceCapability.RPC.EXPAND_VOLUME in kinds


def test_what_is_not_offered_is_unimplemented(driver: Driver) -> None:
    code, _ = failure(driver.node.NodeStageVolume, csi.NodeStageVolumeRequest())
    assert code is Code.UNIMPLEMENTED


def test_registration(driver: Driver) -> None:
    with grpc.insecure_channel(f"unix:{driver.registration}") as channel:
        stub = registration_pb2_grpc.RegistrationStub(channel)  # type: ignore[no-untyped-call]
        info = stub.GetInfo(registration_pb2.InfoRequest(), wait_for_ready=True, timeout=10)
        assert (info.type, info.name) == ("CSIPlugin", "nas.test")
        assert info.endpoint == str(driver.endpoint)
        assert "1.0.0" in info.supported_versions
        stub.NotifyRegistrationStatus(
            registration_pb2.RegistrationStatus(plugin_registered=False, error="because")
        )
    assert "because" in driver.log()


def test_sockets_are_root_s_alone(driver: Driver) -> None:
    for path in (driver.endpoint, driver.registration):
        assert path.is_socket()
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"volume_id": ""}, "volume_id"),
        ({"volume_id": "x" * 129}, "volume_id"),
        ({"target_path": ""}, "target_path"),
        ({"target_path": "relative"}, "target_path"),
        ({"target_path": "/tmp/../etc/x"}, "target_path"),
        ({"target_path": "/tmp/a\0b"}, "target_path"),
        ({"target_path": "/"}, "target_path"),
        ({"volume_capability": None}, "volume_capability"),
        (
            {"volume_capability": csi.VolumeCapability(block=csi.VolumeCapability.BlockVolume())},
            "block",
        ),
        ({"volume_context": {}}, "volumeAttributes.server"),
        ({"volume_context": {**ATTRIBUTES, "server": "a,b"}}, "volumeAttributes.server"),
        ({"volume_context": {**ATTRIBUTES, "path": "/a/../b"}}, "volumeAttributes.path"),
        ({"volume_context": {**ATTRIBUTES, "vers": "5"}}, "volumeAttributes.vers"),
        ({"volume_context": {**ATTRIBUTES, "options": "bg"}}, "volumeAttributes.options"),
        ({"volume_context": {**ATTRIBUTES, "share": "/"}}, "volumeAttributes.share"),
        ({"volume_context": {**ATTRIBUTES, EPHEMERAL: "perhaps"}}, EPHEMERAL),
        ({"mount_flags": ["hard bind"]}, "mountOptions"),
    ],
)
def test_bad_arguments_are_named_before_anything_runs(
    driver: Driver, target: Path, changes: dict[str, Any], named: str
) -> None:
    code, text = publish_failure(driver, target, **changes)
    assert code is Code.INVALID_ARGUMENT
    assert named in text
    assert not target.exists()


def test_a_failed_mount_leaves_nothing_and_says_all(driver: Driver, target: Path) -> None:
    """This machine has no NFS client, or no such server: either way the mount fails."""
    code, text = publish_failure(driver, target)
    assert code is not Code.INVALID_ARGUMENT
    assert "volume nas-pv" in text
    assert "192.0.2.1:/csi" in text
    assert "vers=3" in text
    assert not target.exists()


def test_a_directory_that_was_there_stays_after_a_failure(driver: Driver, target: Path) -> None:
    target.mkdir()
    publish_failure(driver, target)
    assert target.is_dir()
    target.rmdir()


def test_an_absent_parent_is_named(driver: Driver, directory: Path) -> None:
    code, text = publish_failure(driver, directory / "absent" / "mount")
    assert code is Code.FAILED_PRECONDITION
    assert "absent" in text


def test_a_file_in_the_target_s_place(driver: Driver, target: Path) -> None:
    target.write_text("not a directory")
    code, text = publish_failure(driver, target)
    assert code is Code.FAILED_PRECONDITION
    assert "not a directory" in text
    target.unlink()


def test_a_placeholder_counts_as_published(driver: Driver, target: Path) -> None:
    target.mkdir()
    mount.mount(placeholder.PLACEHOLDER_SOURCE, target, "tmpfs", data=placeholder.PLACEHOLDER_DATA)
    driver.node.NodePublishVolume(publish_request(target), timeout=30)
    entry = mountinfo.at(str(target), mountinfo.read())
    assert entry is not None
    assert placeholder.is_placeholder(entry)
    code, text = failure(
        driver.node.NodeGetVolumeStats,
        csi.NodeGetVolumeStatsRequest(volume_id="nas-pv", volume_path=str(target)),
    )
    assert code is Code.UNAVAILABLE
    assert "no sandbox has it" in text
    unpublish(driver, target)
    assert not target.exists()


def test_a_foreign_mount_is_not_replaced(driver: Driver, target: Path) -> None:
    target.mkdir()
    mount.mount("foreign", target, "tmpfs")
    code, text = publish_failure(driver, target)
    assert code is Code.ALREADY_EXISTS
    assert "foreign" in text
    unpublish(driver, target)


def test_unpublish_takes_a_whole_stack_and_repeats(driver: Driver, target: Path) -> None:
    target.mkdir()
    for source in ("below", "above"):
        mount.mount(source, target, "tmpfs")
    for _ in range(2):
        unpublish(driver, target)
        assert not target.exists()
        assert mountinfo.at(str(target), mountinfo.read()) is None


def test_unpublish_detaches_what_is_busy(driver: Driver, target: Path) -> None:
    target.mkdir()
    mount.mount("busy", target, "tmpfs")
    with (target / "held").open("w") as held:
        unpublish(driver, target)
        held.write("still written")
    assert not target.exists()


def test_unpublish_never_removes_files(driver: Driver, target: Path) -> None:
    target.mkdir()
    (target / "precious").write_text("data")
    request = csi.NodeUnpublishVolumeRequest(volume_id="nas-pv", target_path=str(target))
    code, text = failure(driver.node.NodeUnpublishVolume, request)
    assert code is Code.FAILED_PRECONDITION
    assert "not empty" in text
    assert (target / "precious").read_text() == "data"
    (target / "precious").unlink()
    unpublish(driver, target)


def test_unpublish_through_a_symlinked_parent(driver: Driver, target: Path) -> None:
    """/var/lib/kubelet is a symlink on some nodes; the mount table shows the real path."""
    target.mkdir()
    link = target.parent / "link"
    link.symlink_to(target.parent)
    mount.mount("linked", target, "tmpfs")
    unpublish(driver, link / "mount")
    link.unlink()


def test_stats(driver: Driver, target: Path) -> None:
    def stats() -> Any:
        return driver.node.NodeGetVolumeStats(request, timeout=30)

    request = csi.NodeGetVolumeStatsRequest(volume_id="nas-pv", volume_path=str(target))
    code, _ = failure(driver.node.NodeGetVolumeStats, request)
    assert code is Code.NOT_FOUND
    target.mkdir()
    mount.mount("sized", target, "tmpfs", data="size=1m,nr_inodes=10")
    (target / "file").write_bytes(b"x" * 65536)
    found = stats()
    assert not found.volume_condition.abnormal
    assert found.volume_condition.message
    usage = {each.unit: each for each in found.usage}
    size = usage[csi.VolumeUsage.BYTES]
    assert (size.total, size.used, size.available) == (1 << 20, 65536, (1 << 20) - 65536)
    assert usage[csi.VolumeUsage.INODES].total == 10
    assert usage[csi.VolumeUsage.INODES].used == 2
    unpublish(driver, target)


def test_a_volume_that_does_not_answer_is_abnormal(driver: Driver, target: Path) -> None:
    """A file system whose server is this test, which says nothing and then goes."""
    target.mkdir()
    request = csi.NodeGetVolumeStatsRequest(volume_id="nas-pv", volume_path=str(target))
    with open("/dev/fuse", "r+b", buffering=0) as server:
        data = f"fd={server.fileno()},rootmode=40000,user_id=0,group_id=0"
        mount.mount("silent", target, "fuse", data=data)
        silent = driver.node.NodeGetVolumeStats(request, timeout=5)
    assert silent.volume_condition.abnormal
    assert silent.volume_condition.message == "silent does not answer within 1 s"
    assert list(silent.usage) == []
    gone = driver.node.NodeGetVolumeStats(request, timeout=5)
    assert gone.volume_condition.abnormal
    assert "silent: " in gone.volume_condition.message
    assert "not connected" in gone.volume_condition.message
    unpublish(driver, target)


def test_expansion_asks_nothing_of_a_node(driver: Driver, target: Path) -> None:
    def expand(path: str, **rest: Any) -> Any:
        request = csi.NodeExpandVolumeRequest(volume_id="nas-pv", volume_path=path, **rest)
        return driver.node.NodeExpandVolume(request, timeout=30)

    def code_of(*arguments: Any, **rest: Any) -> Any:
        with pytest.raises(grpc.RpcError) as caught:
            expand(*arguments, **rest)
        return caught.value.code()

    more = csi.CapacityRange(required_bytes=7 << 30)
    assert code_of(str(target), capacity_range=more) is Code.NOT_FOUND
    assert code_of("some/path", capacity_range=more) is Code.NOT_FOUND
    assert code_of("") is Code.INVALID_ARGUMENT
    target.mkdir()
    mount.mount("grown", target, "tmpfs")
    negative = csi.CapacityRange(required_bytes=-1)
    assert code_of(str(target), capacity_range=negative) is Code.INVALID_ARGUMENT
    block = csi.VolumeCapability(block=csi.VolumeCapability.BlockVolume())
    assert code_of(str(target), volume_capability=block) is Code.INVALID_ARGUMENT
    assert expand(str(target), capacity_range=more).capacity_bytes == 7 << 30
    assert expand(str(target)).capacity_bytes == 0
    unpublish(driver, target)


def test_a_pod_s_own_volume_is_refused_unless_switched_on(driver: Driver, target: Path) -> None:
    context = {**ATTRIBUTES, EPHEMERAL: "true"}
    code, text = publish_failure(driver, target, volume_context=context)
    assert code is Code.FAILED_PRECONDITION
    assert "ephemeral_volumes = true" in text
    assert not target.exists()


def test_every_call_leaves_a_line(driver: Driver, target: Path) -> None:
    unpublish(driver, target)
    line = f"call method=NodeUnpublishVolume volume=nas-pv target={target} code=OK seconds="
    assert line in driver.log()


def test_a_driver_that_was_killed_is_replaced(directory: Path) -> None:
    own = directory / "killed"
    own.mkdir()
    driver = start(own)
    driver.channel.close()
    driver.process.kill()
    driver.process.wait()
    assert driver.endpoint.is_socket()
    stop(start(own))


def test_a_bad_configuration_ends_with_2(tmp_path: Path) -> None:
    config = tmp_path / "csi.toml"
    config.write_text("mount_timeout = 3\n")
    done = subprocess.run(
        (sys.executable, "-m", "kangaroo.csi.main", "--config", str(config)),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 2
    assert "mount_timeout: unknown" in done.stderr
