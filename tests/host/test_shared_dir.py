"""The exported tree with real mounts: binds are seen, removal never deletes what was bound."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kangaroo.errors import DeadlineExceeded, InvalidRequest, MountFailed, Unsupported
from kangaroo.linux import mount, mountinfo
from kangaroo.linux.mount import MountFlag, UmountFlag
from kangaroo.runtime import shared_dir, virtiofsd
from kangaroo.runtime.shared_dir import RootfsMount, SharedDirectory


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[SharedDirectory]:
    (tmp_path / "state").mkdir()
    directory = SharedDirectory(tmp_path / "state" / "shared")
    directory.prepare()
    yield directory
    directory.destroy()
    assert not [e for e in mountinfo.read() if e.mount_point.startswith(str(tmp_path))]
    assert not directory.root.exists()


def bind(
    shared: SharedDirectory, source: Path, *, container: str = "c1", read_only: bool = False
) -> Path:
    made = asyncio.run(shared.bind(container, str(source), read_only=read_only, timeout_s=10))
    return shared.root / "volumes" / str(made.number)


def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    path.mkdir()
    (path / "data").write_text("kept")
    return path


def test_directories_and_files_are_bound(shared: SharedDirectory, tmp_path: Path) -> None:
    source = volume(tmp_path)
    assert (bind(shared, source) / "data").read_text() == "kept"
    assert bind(shared, source / "data").read_text() == "kept"


def test_removal_leaves_the_sources_alone(shared: SharedDirectory, tmp_path: Path) -> None:
    source = volume(tmp_path)
    bind(shared, source)
    bind(shared, source / "data")
    for _ in range(2):
        asyncio.run(shared.remove("c1"))
    assert (source / "data").read_text() == "kept"
    assert [path.name for path in shared.root.rglob("*")] == ["volumes"]


def test_containers_share_one_bind_of_a_volume(shared: SharedDirectory, tmp_path: Path) -> None:
    """As long as one of them is there. Afterwards it is another, for guests remember paths."""
    source = volume(tmp_path)
    first = bind(shared, source, container="c1")
    assert bind(shared, source, container="c2") == first
    assert bind(shared, source, container="c1") == first
    asyncio.run(shared.remove("c1"))
    assert (first / "data").exists()
    asyncio.run(shared.remove("c2"))
    assert not first.exists()
    assert bind(shared, source, container="c3") != first


def test_what_is_another_thing_by_now_is_bound_anew(
    shared: SharedDirectory, tmp_path: Path
) -> None:
    source = volume(tmp_path) / "data"
    old = bind(shared, source, container="c1")
    (tmp_path / "new").write_text("new")
    (tmp_path / "new").replace(source)
    assert bind(shared, source, container="c2").read_text() == "new"
    assert old.read_text() == "kept"


def test_whose_bind_is_read_only_has_one_of_its_own(
    shared: SharedDirectory, tmp_path: Path
) -> None:
    source = volume(tmp_path)
    assert bind(shared, source) != bind(shared, source, read_only=True)


def test_an_empty_dir_is_one_for_who_reads_and_who_writes(
    shared: SharedDirectory, tmp_path: Path
) -> None:
    """Its reader may have to connect to the writer's socket."""
    source = tmp_path / "kubernetes.io~empty-dir" / "sockets"
    source.mkdir(parents=True)
    reads = bind(shared, source, container="c1", read_only=True)
    assert bind(shared, source, container="c2") == reads
    (reads / "written").touch()


def test_sub_paths_of_several_containers_are_one_where_they_are_one_directory(
    shared: SharedDirectory, tmp_path: Path
) -> None:
    """kubelet makes a bind of it for each."""
    source = volume(tmp_path)
    binds = [tmp_path / "volume-subpaths" / "disk" / name / "0" for name in ("one", "two")]
    for path in binds:
        path.mkdir(parents=True)
        mount.bind(source, path)
    try:
        assert len({bind(shared, path, container=path.parent.name) for path in binds}) == 1
    finally:
        for path in binds:
            mount.umount(path, UmountFlag.DETACH)


def test_a_bind_that_fails_leaves_nothing(shared: SharedDirectory, tmp_path: Path) -> None:
    source = volume(tmp_path)
    above = tmp_path / "above"
    above.mkdir()
    mount.bind(above, above)
    (above / "below").mkdir()
    mount.make_unbindable(above)
    try:
        with pytest.raises(MountFailed):
            bind(shared, above / "below")
    finally:
        mount.umount(above, UmountFlag.DETACH)
    bind(shared, source)
    assert [path.name for path in (shared.root / "volumes").iterdir()] == ["1"]


def in_a_slave_namespace(script: str, path: Path) -> subprocess.Popen[str]:
    """A shell that waits for a line and then runs `script` on `path`, in a mount namespace made
    before that is a slave of ours: as virtiofsd.
    """
    slave = ("unshare", "--mount", "--propagation", "slave")
    watcher = subprocess.Popen(
        [*slave, "sh", "-c", f"echo; read x; {script}", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert watcher.stdout is not None
    watcher.stdout.readline()
    return watcher


def test_a_later_mount_below_a_volume_is_seen_also_from_a_slave_namespace(
    shared: SharedDirectory, tmp_path: Path
) -> None:
    source = volume(tmp_path)
    (source / "late").mkdir()
    mount.bind(source, source)
    mount.make_shared(source)
    try:
        watcher = in_a_slave_namespace("ls $0", shared.root / "volumes" / "0" / "late")
        target = bind(shared, source)
        mount.mount("late", source / "late", "tmpfs")
        (source / "late" / "seen").touch()
        assert (target / "late" / "seen").exists()
        assert watcher.communicate("go\n", timeout=20)[0].strip() == "seen"
    finally:
        mount.umount(source, UmountFlag.DETACH)


@pytest.mark.parametrize("remote", [False, True])
def test_a_read_only_volume_is_so_for_virtiofsd(
    shared: SharedDirectory, tmp_path: Path, remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the guest says: a remount there must not make it writable."""
    source = volume(tmp_path)
    if remote:  # as on a server that may be dead: by a child
        monkeypatch.setattr(shared_dir, "_LOCAL_FSTYPES", set())
    where = shared.root / "volumes" / "0"
    watcher = in_a_slave_namespace("cat $0/data; touch $0/new", where)
    assert bind(shared, source, read_only=True) == where
    heard, _ = watcher.communicate("go\n", timeout=20)
    assert heard.startswith("kept")
    assert "Read-only file system" in heard
    (source / "new").touch()
    writable = bind(shared, source)
    assert (writable / "new").exists()
    (writable / "newer").touch()


def test_what_programs_may_do_with_files_is_said(shared: SharedDirectory, tmp_path: Path) -> None:
    """The guest's own mounts have to have these flags; virtiofsd does nothing about them."""
    source = tmp_path / "hardened"
    source.mkdir()
    flags = MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC | MountFlag.NOATIME
    mount.mount("hardened", source, "tmpfs", flags)
    (source / "below").mkdir()

    async def said(path: Path) -> tuple[str, ...]:
        return (await shared.bind("c1", str(path), read_only=True, timeout_s=10)).flags

    try:
        assert asyncio.run(said(source / "below")) == ("nosuid", "nodev", "noexec")
        mount.mount("plain", source, "tmpfs")
        assert asyncio.run(said(source)) == ()
    finally:
        mount.umount(source, UmountFlag.DETACH)
        mount.umount(source, UmountFlag.DETACH)


def test_a_guest_can_change_no_part_of_the_tree_itself(
    shared: SharedDirectory, tmp_path: Path
) -> None:
    """Else it could plant links there, which the runtime would follow on the node. What is mounted
    in it later is as writable as it is on the node."""
    server = tmp_path / "server"
    server.write_text(
        "#!/bin/sh\n"
        'for each in "$@"; do case $each in --shared-dir=*) cd "${each#*=}";; esac; done\n'
        "echo started; read go\n"
        "for place in . c1 volumes; do ln -s /etc $place/link; touch $place/file; done\n"
        "touch volumes/0/written\n"
    )
    server.chmod(0o755)
    (shared.root / "c1").mkdir()
    guest = subprocess.Popen(
        virtiofsd.arguments(server, shared.root, 3, xattr=True),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert guest.stdout is not None
    assert guest.stdout.readline() == "started\n"
    source = volume(tmp_path)
    bind(shared, source)
    _, refused = guest.communicate("go\n", timeout=20)
    assert refused.count("Read-only file system") == 6, refused
    assert (source / "written").exists()
    (shared.root / "of-the-runtime").mkdir()
    (shared.root / "of-the-runtime").rmdir()


def test_what_cannot_be_removed_stays_and_is_no_error(shared: SharedDirectory) -> None:
    (shared.root / "file").write_text("not empty")
    shared.destroy()
    (shared.root / "file").unlink()


def test_an_overlay_root(shared: SharedDirectory, tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "etc").write_text("image")
    parts = [f"{name}dir={tmp_path / name}" for name in ("lower", "upper", "work")]
    try:
        shared.mount_rootfs("c1", [RootfsMount("overlay", "overlay", "", tuple(parts))])
    except MountFailed as error:
        pytest.skip(f"no overlay here: {error}")
    assert (shared.root / "c1" / "rootfs" / "etc").read_text() == "image"


def test_an_overlay_root_of_as_many_layers_as_an_image_may_have(
    shared: SharedDirectory, tmp_path: Path
) -> None:
    """127. Their paths, as containerd's snapshotter names them, are too long for mount(2)."""
    snapshots = tmp_path / "var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"
    layers = [snapshots / str(number) / "fs" for number in range(127)]
    for layer in (*layers, tmp_path / "upper", tmp_path / "work"):
        layer.mkdir(parents=True)
    for number, layer in enumerate(layers):
        (layer / f"layer{number}").touch()
        (layer / "top").write_text(str(number))
    lower = ":".join(map(str, reversed(layers)))
    options = (f"upperdir={tmp_path}/upper", f"lowerdir={lower}", f"workdir={tmp_path}/work")
    assert len(lower) > 2 * mount.DATA_LIMIT
    shared.mount_rootfs("c1", [RootfsMount("overlay", "overlay", "", options)])
    root = shared.root / "c1" / "rootfs"
    assert len(list(root.iterdir())) == 128
    assert (root / "top").read_text() == "126"


def test_options_that_mount_would_cut_are_refused(shared: SharedDirectory) -> None:
    with pytest.raises(MountFailed, match="4096 bytes of options"):
        shared.mount_rootfs("c1", [RootfsMount("tmpfs", "tmpfs", "", ("x" * 4096,))])


def test_a_root_that_cannot_be_mounted_names_its_source(
    shared: SharedDirectory, tmp_path: Path
) -> None:
    absent = str(tmp_path / "absent")
    with pytest.raises(MountFailed, match=absent):
        shared.mount_rootfs("c1", [RootfsMount("bind", absent, "", ("rbind",))])


def test_a_read_only_root(shared: SharedDirectory, tmp_path: Path) -> None:
    shared.mount_rootfs("c1", [RootfsMount("bind", str(volume(tmp_path)), "", ("rbind", "ro"))])
    with pytest.raises(OSError, match="Read-only"):
        (shared.root / "c1" / "rootfs" / "new").touch()


def test_a_root_mount_cannot_leave_the_root(shared: SharedDirectory) -> None:
    with pytest.raises(InvalidRequest, match="leaves the root"):
        shared.mount_rootfs("c1", [RootfsMount("bind", "/tmp", "../../x", ("bind",))])


def test_a_missing_source_is_named(shared: SharedDirectory, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="absent does not exist"):
        bind(shared, tmp_path / "absent")


def test_a_daemon_that_does_not_answer_stops_nobody(
    shared: SharedDirectory, tmp_path: Path
) -> None:
    """A FUSE file system whose daemon hangs: the bind is given up, and the shim answers others."""
    source = tmp_path / "hung"
    source.mkdir()

    async def binding() -> int:
        attempt = asyncio.create_task(shared.bind("c1", str(source), read_only=False, timeout_s=1))
        turns = 0
        while not attempt.done():
            await asyncio.sleep(0.05)
            turns += 1
        with pytest.raises(DeadlineExceeded):
            await attempt
        return turns

    daemon = os.open("/dev/fuse", os.O_RDWR)  # and nobody reads it
    try:
        options = f"fd={daemon},rootmode=40000,user_id=0,group_id=0"
        mount.mount("hung", source, "fuse", MountFlag.NONE, options)
        try:
            assert asyncio.run(binding()) > 5
        finally:
            mount.umount(source, UmountFlag.DETACH)
    finally:
        os.close(daemon)


def test_what_is_above_all_trees_can_be_bound_into_each(tmp_path: Path) -> None:
    """A hostPath of / or /run: the trees themselves are not in it, or each would hold all others
    and the node's mounts double with each."""
    run = tmp_path / "run"
    run.mkdir()
    mount.mount("run", run, "tmpfs")
    mount.make_private(run)
    mount.make_shared(run)
    trees = [SharedDirectory(run / f"sandbox{number}" / "shared") for number in range(6)]

    def mounts() -> int:
        return sum(entry.mount_point.startswith(str(run)) for entry in mountinfo.read())

    grown = [mounts()]
    try:
        for tree in trees:
            tree.root.parent.mkdir()
            tree.prepare()
            assert (bind(tree, run) / "sandbox0").is_dir()
            grown.append(mounts())
        steps = [later - before for before, later in itertools.pairwise(grown)]
        assert max(steps) - min(steps) <= len(trees), steps
        for tree in trees:
            tree.destroy()
            tree.root.parent.rmdir()
        assert mounts() == 1
    finally:
        mount.umount(run, UmountFlag.DETACH)


def test_a_socket_is_refused(shared: SharedDirectory, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(Unsupported, match="socket"):
            bind(shared, tmp_path / "s")


def test_what_is_not_ours_is_never_deleted(shared: SharedDirectory) -> None:
    stray = shared.root / "c1" / "rootfs"
    stray.mkdir(parents=True)
    (stray / "precious").write_text("kept")
    asyncio.run(shared.remove("c1"))
    assert (stray / "precious").read_text() == "kept"
    (stray / "precious").unlink()
