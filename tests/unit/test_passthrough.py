"""Taking volumes from the node into the guest: the order of the steps, what failures leave."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from kangaroo.errors import MountFailed, Unsupported
from kangaroo.linux.mountinfo import MountEntry, parse
from kangaroo.nas.passthrough import PassthroughPolicy
from kangaroo.runtime.node_mounts import NodeMounts
from kangaroo.runtime.oci import Bind, NasBind
from kangaroo.runtime.passthrough import Passthrough, PodVolumes
from kangaroo.runtime.pod_events import Reason
from kangaroo.runtime.state import PlaceholderState, SandboxState, VolumeState

POD = "/var/lib/kubelet/pods/u1"
VOLUME = f"{POD}/volumes/kubernetes.io~csi/pv/mount"
SUBPATH = f"{POD}/volume-subpaths/pv/web/1"
ROOT = "1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw\n"
NFS = f"""\
2 1 0:50 / {VOLUME} rw,noatime shared:2 - nfs4 nas:/csi rw,vers=4.1,clientaddr=10.0.0.1,addr=10.9.9.9
3 1 0:50 / {SUBPATH} rw,noatime shared:3 - nfs4 nas:/csi/logs rw,vers=4.1,clientaddr=10.0.0.1,addr=10.9.9.9
"""  # noqa: E501
ON = PassthroughPolicy(enabled=True)


class World:
    """A node, a guest and a state file that write down what is done to them, in order."""

    def __init__(self, table: str, *, policy: PassthroughPolicy = ON) -> None:
        self.done: list[str] = []
        self.told: list[tuple[Reason, str]] = []
        self.node = FakeNode(self.done, ROOT + table)
        self.guest = FakeGuest(self.done)
        self.state = SandboxState("s1")
        self.policy = policy
        self.volumes = self.new_sandbox("10.0.0.2")

    def new_sandbox(self, address: str) -> Passthrough:
        """Passthrough of a sandbox that starts now, with its own state."""
        self.state = SandboxState("s1")
        self.volumes = Passthrough(
            policy=self.policy,
            pod=PodVolumes(Path(POD), (address,)),
            agent=self.guest,  # type: ignore[arg-type]
            state=lambda: self.state,
            save=self.save,
            mount_timeout_s=1,
            node=self.node,
            tell=lambda reason, message: self.told.append((reason, message)),
        )
        return self.volumes

    def save(self, state: SandboxState) -> None:
        """Replace the state."""
        self.done.append(f"save {[placed.device for placed in state.placeholders]}")
        self.state = state

    def place(self, *sources: str) -> dict[int, NasBind]:
        """Place one container's binds."""
        binds = [Bind(i, source, f"/m{i}", read_only=False) for i, source in enumerate(sources)]
        return asyncio.run(self.volumes.place(binds))


class FakeNode(NodeMounts):
    """A mount table in memory."""

    def __init__(self, done: list[str], table: str) -> None:
        super().__init__(unmount_timeout_s=1)
        self.done = done
        self.entries = list(parse(table))
        self.records: dict[str, VolumeState] = {}
        self.read_ahead: dict[str, int] = {}

    def table(self) -> tuple[MountEntry, ...]:
        """The table."""
        return tuple(self.entries)

    def read_ahead_kib(self, device: str) -> int | None:
        """As the table's devices were told."""
        return self.read_ahead.get(device)

    async def unmount(self, path: str) -> None:
        """Take the entry away."""
        self.done.append(f"unmount {path}")
        (gone,) = (entry for entry in self.entries if entry.mount_point == path)
        self.entries.remove(gone)

    def remove_mount_point(self, path: str) -> None:
        """Say so."""
        self.done.append(f"remove {path}")

    def put_placeholder(self, path: str, record: VolumeState) -> PlaceholderState:
        """Add the tmpfs."""
        self.done.append(f"placeholder {path}")
        self.mount(f"9 1 0:90 / {path} rw - tmpfs kangaroo-nas rw")
        self.records[path] = record
        return PlaceholderState(path, "0:90", record.volume_id)

    def read_record(self, path: str) -> VolumeState:
        """What was put."""
        return self.records[path]

    def mount(self, line: str) -> None:
        """Add an entry."""
        self.entries.extend(parse(line))


class FakeGuest:
    """The one method of the agent that passthrough uses."""

    def __init__(self, done: list[str]) -> None:
        self.done = done
        self.failure: MountFailed | None = None
        self.mounts: list[dict[str, Any]] = []

    async def mount_nas(self, **mount: Any) -> None:
        """Mount, or fail as told."""
        self.done.append("guest mounts")
        if self.failure is not None:
            raise self.failure
        self.mounts.append(mount)


def test_guest_first_then_state_then_node_then_placeholder() -> None:
    world = World(NFS)
    placed = world.place("/etc/hosts", VOLUME)
    volume_id = world.guest.mounts[0]["volume_id"]
    assert placed == {1: NasBind(volume_id, "", create=False)}
    assert world.done == [
        "guest mounts",
        "save ['']",
        f"unmount {VOLUME}",
        f"unmount {SUBPATH}",
        f"placeholder {VOLUME}",
        "save ['0:90']",
        f"remove {SUBPATH}",
    ]
    assert not [entry for entry in world.node.entries if entry.fstype == "nfs4"]
    ((reason, message),) = world.told
    assert reason is Reason.IN_GUEST
    assert message.startswith("nas:/csi ")


def test_the_guest_gets_the_nodes_options_with_its_own_address() -> None:
    world = World(NFS)
    world.node.read_ahead["0:50"] = 1024
    world.place(VOLUME)
    (mount,) = world.guest.mounts
    assert mount["read_ahead_kib"] == 1024
    assert (mount["source"], mount["fstype"], mount["flags"]) == ("nas:/csi", "nfs4", ["noatime"])
    options = mount["options"].split(",")
    assert {"vers=4.1", "addr=10.9.9.9", "clientaddr=10.0.0.2"} <= set(options)
    assert "clientaddr=10.0.0.1" not in options


def test_a_volume_and_its_subpath_in_one_container_are_one_mount() -> None:
    world = World(NFS)
    placed = world.place(VOLUME, SUBPATH, VOLUME)
    assert [bind.subpath for bind in placed.values()] == ["", "logs", ""]
    assert len({bind.volume_id for bind in placed.values()}) == 1
    assert world.done.count("guest mounts") == 1
    assert world.done.count(f"unmount {VOLUME}") == 1


def test_the_next_container_finds_the_placeholder() -> None:
    world = World(NFS)
    first = world.place(VOLUME)
    world.node.mount(f"10 1 0:90 /new/dir {SUBPATH} rw - tmpfs kangaroo-nas rw")
    world.done.clear()
    placed = world.place(VOLUME, SUBPATH)
    assert world.done == []
    assert placed[0] == first[0]
    assert placed[1] == NasBind(first[0].volume_id, "new/dir", create=True)


def test_another_sandbox_of_the_pod_mounts_what_the_placeholder_records() -> None:
    world = World(NFS)
    world.node.read_ahead["0:50"] = 1024
    world.place(VOLUME)
    world.new_sandbox("10.0.0.77")
    world.done.clear()
    placed = world.place(VOLUME)
    assert world.done == ["guest mounts", "save ['0:90']"]
    assert "clientaddr=10.0.0.77" in world.guest.mounts[1]["options"]
    assert world.guest.mounts[1]["read_ahead_kib"] == 1024
    assert placed[0].volume_id == world.guest.mounts[1]["volume_id"]
    assert world.state.volumes[0].volume_id == placed[0].volume_id


def test_a_sandbox_has_the_volumes_before_any_container_and_the_node_keeps_them() -> None:
    world = World(NFS)
    asyncio.run(world.volumes.prepare())
    assert world.done == ["guest mounts", "save []"]
    assert [volume.source for volume in world.state.volumes] == ["nas:/csi"]
    world.done.clear()
    placed = world.place(VOLUME)
    assert placed[0].volume_id == world.guest.mounts[0]["volume_id"]
    assert "guest mounts" not in world.done
    assert f"placeholder {VOLUME}" in world.done
    assert [reason for reason, _ in world.told] == [Reason.IN_GUEST]


def test_a_later_sandbox_has_what_the_placeholder_records_before_any_container() -> None:
    world = World(NFS)
    world.place(VOLUME)
    world.new_sandbox("10.0.0.77")
    world.done.clear()
    asyncio.run(world.volumes.prepare())
    assert world.done == ["guest mounts", "save []"]
    world.place(VOLUME)
    assert world.done == ["guest mounts", "save []", "save ['0:90']"]


def test_a_volume_that_the_guest_cannot_mount_fails_the_sandbox() -> None:
    world = World(NFS)
    world.guest.failure = MountFailed("nas:/csi", "vers=4.1", "no route", errno=113)
    with pytest.raises(MountFailed, match="no route"):
        asyncio.run(world.volumes.prepare())
    assert world.done == ["guest mounts"]


def test_with_a_fallback_the_sandbox_is_without_it() -> None:
    world = World(NFS, policy=PassthroughPolicy(enabled=True, fallback_virtiofs=True))
    world.guest.failure = MountFailed("nas:/csi", "vers=4.1", "no route", errno=113)
    asyncio.run(world.volumes.prepare())
    world.guest.failure = None
    assert world.place(VOLUME) == {}
    assert world.done == ["guest mounts"]
    assert [reason for reason, _ in world.told] == [Reason.FALLBACK]


def test_nothing_is_prepared_for_a_pod_that_did_not_opt_in() -> None:
    world = World(NFS, policy=PassthroughPolicy())
    asyncio.run(world.volumes.prepare())
    assert world.done == []


def test_a_pod_that_did_not_opt_in_keeps_its_mount_on_the_node() -> None:
    world = World(NFS, policy=PassthroughPolicy())
    assert world.place(VOLUME, SUBPATH) == {}
    assert world.done == []


def refused() -> MountFailed:
    hint = "allow the guest"
    return MountFailed("nas:/csi", "vers=4.1", "access denied", errno=errno.EACCES, hint=hint)


def test_a_guest_that_cannot_mount_leaves_the_node_as_it_was() -> None:
    world = World(NFS)
    world.guest.failure = refused()
    with pytest.raises(MountFailed) as raised:
        world.place(VOLUME)
    assert world.done == ["guest mounts"]
    assert len(world.node.entries) == 3
    assert raised.value.errno == errno.EACCES
    for fact in ("nas:/csi", "vers=4.1", "10.0.0.2", "access denied", "EACCES", "allow the guest"):
        assert fact in str(raised.value)


def test_the_error_names_source_and_options_once() -> None:
    world = World(NFS)

    async def failing(*, options: str, **_: Any) -> None:
        raise MountFailed("nas:/csi", options, "the server did not answer")

    world.guest.mount_nas = failing  # type: ignore[assignment]
    with pytest.raises(MountFailed) as raised:
        world.place(VOLUME)
    assert str(raised.value).count("vers=4.1") == 1
    assert str(raised.value).endswith("cannot mount it: the server did not answer")


@pytest.mark.parametrize(
    "line",
    [
        "3 1 0:50 / {} rw - nfs4 nas:/other rw,vers=4.1,addr=10.9.9.9",
        "3 1 0:51 / {} rw - nfs4 nas:/csi/logs rw,vers=4.1,addr=10.9.9.9",
    ],
)
def test_a_subpath_that_is_no_part_of_the_volume_is_refused(line: str) -> None:
    """It was moved out of it, or is another file system: by its path the guest might mount what
    somebody has put there meanwhile.
    """
    world = World(NFS.splitlines()[0] + "\n" + line.format(SUBPATH) + "\n")
    with pytest.raises(Unsupported, match="not beneath"):
        world.place(SUBPATH)
    assert world.done == []
    assert World(NFS, policy=PassthroughPolicy()).place(SUBPATH) == {}


def test_the_fallback_uses_the_nodes_mount() -> None:
    world = World(NFS, policy=PassthroughPolicy(enabled=True, fallback_virtiofs=True))
    world.guest.failure = refused()
    assert world.place(VOLUME, SUBPATH) == {}
    assert world.done == ["guest mounts"]
    ((reason, message),) = world.told
    assert reason is Reason.FALLBACK
    assert "EACCES" in message


def test_a_fallback_is_for_the_life_of_the_sandbox() -> None:
    world = World(NFS, policy=PassthroughPolicy(enabled=True, fallback_virtiofs=True))
    world.guest.failure = refused()
    assert world.place(VOLUME) == {}
    world.guest.failure = None
    assert world.place(VOLUME, SUBPATH) == {}
    assert world.done == ["guest mounts"]
    assert len(world.told) == 1
    world.new_sandbox("10.0.0.2")
    assert set(world.place(VOLUME, SUBPATH)) == {0, 1}


def test_no_bare_path_is_left_by_an_unmount_that_was_cut_off() -> None:
    """As when the server is slow: the mount is gone from the table, and umount waits still."""
    world = World(NFS)
    real = world.node.unmount

    async def cut_off(path: str) -> None:
        await real(path)
        raise asyncio.CancelledError

    world.node.unmount = cut_off  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        world.place(VOLUME)
    assert world.done[-1] == "save ['0:90']"
    world.node.unmount = real  # type: ignore[method-assign]
    assert world.place(VOLUME)[0].subpath == ""


def test_a_failed_unmount_can_be_repeated() -> None:
    world = World(NFS)
    real = world.node.unmount

    async def failing(path: str) -> None:
        raise MountFailed("nas:/csi", "", "busy")

    world.node.unmount = failing  # type: ignore[method-assign]
    with pytest.raises(MountFailed):
        world.place(VOLUME)
    world.node.unmount = real  # type: ignore[method-assign]
    world.done.clear()
    assert world.place(VOLUME)[0].subpath == ""
    assert "guest mounts" not in world.done
    assert f"placeholder {VOLUME}" in world.done
