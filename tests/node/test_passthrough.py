"""NAS volumes of sandboxed pods: mounted in the guest where the pod opted in, and nowhere else."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.node import child, inside, pods, probing, unsynced, waiting
from tests.node.csi_driver import UNIT
from tests.node.pods import PASSTHROUGH, container, pod

from kangaroo.nas import placeholder
from kangaroo_lab import dual_stack
from kangaroo_lab.nas import Failure
from kangaroo_lab.network import NAS_HOST_NAME

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

# Kubelet's volumeStatsAggPeriod is a minute, and the first look may come before the takeover.
STATS_S = 180
# How long the NAS is away, and until a client that waits longer with each try has noticed.
OUTAGE_S, BACK_S = 8, 45
OPTIONS = "noresvport,nolock,rsize=65536,wsize=65536,timeo=700"
READ_AHEAD_KIB = 1024
# Below /sys/module: how many requests a client has under way, and what else no option says of it.
SESSION_SLOTS, SESSION_SLOTS_FILE = "48", "nfs/parameters/max_session_slots"
CLIENT_SETTINGS = (
    SESSION_SLOTS_FILE,
    "sunrpc/parameters/tcp_slot_table_entries",
    "sunrpc/parameters/tcp_max_slot_table_entries",
    "nfs/parameters/delay_retrans",
    "nfs/parameters/recover_lost_locks",
)
ODD = "two words ünï-数据"
# Volumes of servers that are found otherwise than by an IPv4 address, and one of another export.
PLACES = ("named", "six", "squashed")
VOLUMES = ("nas", "four", *PLACES)
USER, GROUP, FS_GROUP, NOBODY = 1000, 1001, 2000, 65534
STOP_WITH_3 = "trap 'exit 3' TERM; while :; do sleep 3600 & wait $!; done"


def direct_pod() -> pods.Document:
    """A pod that opted in, with every way of mounting: two containers, init, sub-directories,
    read-only, v3 and v4."""
    everything: list[pods.Document] = [
        {"name": "nas", "mountPath": "/data"},
        {"name": "nas", "mountPath": "/readonly", "readOnly": True},
        {"name": "nas", "mountPath": "/existing", "subPath": "existing"},
        {"name": "nas", "mountPath": "/missing", "subPath": "missing/deep"},
        {"name": "nas", "mountPath": "/one-file", "subPath": "existing/file"},
        *({"name": name, "mountPath": f"/{name}"} for name in ("four", *PLACES)),
        {"name": "disk", "mountPath": "/disk"},
    ]
    data = {"/data": "nas"}
    return pod(
        "direct",
        container("one", mounts=everything),
        container("two", STOP_WITH_3, mounts=data),
        user_container(),
        initContainers=[container("prepare", "echo prepared > /data/from-init", mounts=data)],
        annotations=PASSTHROUGH,
        securityContext={"fsGroup": FS_GROUP},
        volumes=[*map(pods.claim, VOLUMES), {"name": "disk", "emptyDir": {}}],
    )


def user_container() -> pods.Document:
    who = {"runAsUser": USER, "runAsGroup": GROUP}
    return container("user", mounts={"/squashed": "squashed"}, securityContext=who)


def simple_pod(name: str, **rest: object) -> pods.Document:
    return pod(name, container("one", mounts={"/data": "nas"}), volumes=[pods.claim("nas")], **rest)  # type: ignore[arg-type]


def plain_pod() -> pods.Document:
    """A pod of runc, which has the volumes as the node mounts them."""
    one = container("one", mounts={"/data": "nas"} | {f"/{name}": name for name in VOLUMES[1:]})
    return pod(
        "plain",
        one,
        user_container(),
        runtime=None,
        securityContext={"fsGroup": FS_GROUP},
        volumes=[*map(pods.claim, VOLUMES)],
    )


@pytest.fixture(scope="module")
def directory(lab: Lab) -> Path:
    """The directory of the NAS that these tests' volumes are of, as the NAS itself sees it."""
    where: Path = lab.nas.root / "csi" / "passthrough"
    shutil.rmtree(where, ignore_errors=True)
    (where / "existing").mkdir(parents=True)
    (where / "existing" / "file").write_text("was there\n")
    (where / ODD).mkdir()
    for each in (where, where / ODD):
        each.chmod(0o777)
    return where


@pytest.fixture(scope="module")
def space(lab: Lab, directory: Path) -> Iterator[pods.Space]:
    where = "/csi/passthrough"
    with dual_stack.dual_stack(lab) as six, pods.opened(lab, "passthrough") as space:
        space.apply(
            *space.nas("nas", path=where, options=OPTIONS),
            *space.nas("four", path=where, vers="4.1", options="noresvport"),
            *space.nas(
                "named",
                server=NAS_HOST_NAME,
                path=f"{where}/{ODD}",
                vers="4.2",
                options="noresvport",
            ),
            *space.nas("six", server=f"[{six}]", path=where),
            *space.nas("squashed", path="/squashed"),
            plain_pod(),
        )
        waiting.ready(space, "plain")
        # One superblock serves all mounts of a source with the same options.
        space.node.exec(["sh", "-c", f"echo {READ_AHEAD_KIB} >{read_ahead_file(space)}"])
        with space.node_setting(f"/sys/module/{SESSION_SLOTS_FILE}", SESSION_SLOTS):
            space.apply(direct_pod(), simple_pod("shared"))
            waiting.ready(space, "direct", "shared", "plain", timeout_s=2 * waiting.START_S)
            yield space


def read_ahead_file(space: pods.Space) -> str:
    """Where the node keeps how far it reads ahead on the mount of the pod `plain`."""
    (mount,) = (
        each for each in space.nfs_mounts("plain") if each.mount_point.endswith("-nas/mount")
    )
    return f"/sys/class/bdi/{mount.device}/read_ahead_kb"


def mount_line(space: pods.Space, name: str, path: str, *, container: str = "one") -> list[str]:
    """[source, mount point, fstype, options] of `path` in the pod's own mount table."""
    table = space.say(name, "cat /proc/mounts", container=container)
    fields = [line.split() for line in table.splitlines()]
    found = [each[:4] for each in fields if each[1] == path]
    assert len(found) == 1, f"{path} in {name}: {found}"
    return found[0]


@pytest.mark.parametrize("name", ["one", "two"])
def test_guest_mounts_the_nas(space: pods.Space, name: str) -> None:
    said = space.run("direct", "mount | grep /data | grep nfs", container=name)
    assert f"{space.lab.nas.address}:/csi/passthrough on /data type nfs" in said.stdout


def test_node_holds_a_placeholder_and_no_nfs(space: pods.Space) -> None:
    entries = space.mounts(space.uid("direct"))
    volumes = [entry for entry in entries if entry.mount_point.endswith("/mount")]
    assert len(volumes) == len(VOLUMES), entries
    assert all(placeholder.is_placeholder(entry) for entry in volumes), volumes
    assert space.nfs_mounts("direct") == []


@pytest.mark.parametrize("version", ["vers=3", r"vers=4\.1"])
def test_the_pod_is_told_of_each_volume_in_its_guest(space: pods.Space, version: str) -> None:
    says = f"^{space.lab.nas.address}:/csi/passthrough .*guest.*{version}"
    waiting.event(space, "direct", says, reason="NASVolumeInGuest", timeout_s=waiting.EVENT_S)


def test_without_the_annotation_the_node_mounts_and_shares(space: pods.Space) -> None:
    assert mount_line(space, "shared", "/data")[2] == "virtiofs"
    assert len(space.nfs_mounts("shared")) == 1


def test_runc_pod_uses_the_nodes_mount(space: pods.Space) -> None:
    assert mount_line(space, "plain", "/data")[2] == "nfs"
    assert len(space.nfs_mounts("plain")) == len(VOLUMES)


def test_data_is_seen_by_all_and_by_the_nas(space: pods.Space, directory: Path) -> None:
    names = ("direct", "shared", "plain")
    for name in names:
        space.run(name, f"echo {name} > /data/by-{name} && sync", container="one")
    for name in names:
        assert (directory / f"by-{name}").read_text() == f"{name}\n"
        for reader in names:
            assert space.say(reader, f"cat /data/by-{name}", container="one") == name


def test_init_container_wrote_to_the_nas(space: pods.Space, directory: Path) -> None:
    assert (directory / "from-init").read_text() == "prepared\n"
    assert space.say("direct", "cat /data/from-init", container="two") == "prepared"


def test_options_are_in_force_in_the_guest(space: pods.Space) -> None:
    options = mount_line(space, "direct", "/data")[3].split(",")
    asked = {"vers=3", "nolock", "noresvport", "rsize=65536", "wsize=65536", "timeo=700", "hard"}
    assert asked <= set(options), options
    assert f"addr={space.lab.nas.address}" in options


def test_read_ahead_is_the_nodes(space: pods.Space) -> None:
    mounts = inside.mounted(space, "direct", "one", "/data", "/four").values()
    files = " ".join(f"/sys/class/bdi/{mount.device}/read_ahead_kb" for mount in mounts)
    found = space.say("direct", f"cat {files}", container="one").split()
    assert found == [str(READ_AHEAD_KIB), "128"]  # the kernel's own is 128


def test_the_nfs_client_is_set_as_the_nodes(space: pods.Space) -> None:
    read = f"cd /sys/module && cat {' '.join(CLIENT_SETTINGS)}"
    in_guest = space.say("direct", read, container="one").split()
    assert in_guest == space.say("plain", read).split()
    # The CSI driver raises the second, and no kernel has it by itself.
    assert in_guest[:2] == [SESSION_SLOTS, "128"]


def test_version_4_is_mounted_in_the_guest(space: pods.Space) -> None:
    source, _, fstype, options = mount_line(space, "direct", "/four")
    assert (source, fstype) == (f"{space.lab.nas.address}:/csi/passthrough", "nfs4")
    assert "vers=4.1" in options.split(",")
    assert f"clientaddr={space.get('direct')['status']['podIP']}" in options.split(",")
    assert space.say("direct", "cat /four/existing/file") == "was there"


def test_servers_are_found_as_the_node_finds_them(space: pods.Space, directory: Path) -> None:
    """By a host name that the guest does not know, and over IPv6; and a path with all that a path
    may have."""
    nas = space.lab.nas
    named = inside.mounted(space, "direct", "one", "/named")["/named"]
    six = mount_line(space, "direct", "/six")
    assert (named.source, named.fstype) == (f"{NAS_HOST_NAME}:/csi/passthrough/{ODD}", "nfs4")
    assert f"addr={nas.address}" in named.super_options
    assert (six[0], six[2]) == (f"[{dual_stack.NAS}]:/csi/passthrough", "nfs")
    assert "proto=tcp6" in six[3].split(",")
    for name, where in (("named", directory / ODD), ("six", directory)):
        space.run("direct", f"echo {name} > /{name}/by-{name} && sync", container="one")
        assert (where / f"by-{name}").read_text() == f"{name}\n"


def test_owners_are_those_of_a_runc_pod(space: pods.Space) -> None:
    """Of an export that takes root for nobody, in a directory of the pod's fsGroup, too."""
    base = space.lab.nas.root / "squashed" / space.name
    (base / "group").mkdir(parents=True)
    base.chmod(0o777)
    os.chown(base / "group", 0, FS_GROUP)
    (base / "group").chmod(0o770)
    try:
        for name in ("direct", "plain"):
            for who in ("one", "user"):
                script = f"cd /squashed/{space.name} && touch {name}-{who} group/{name}-{who}"
                space.run(name, script, container=who, check=who == "user")
            owners = [(base / f"{name}-{who}").stat() for who in ("one", "user")]
            assert [(each.st_uid, each.st_gid) for each in owners] == [
                (NOBODY, NOBODY),
                (USER, GROUP),
            ]
            made = {path.name for path in (base / "group").glob(f"{name}-*")}
            assert made == {f"{name}-user"}
    finally:
        shutil.rmtree(base)


def test_programs_see_what_they_see_on_the_nodes_mount(space: pods.Space, directory: Path) -> None:
    probing.install(directory)

    def observe(name: str) -> dict[str, str]:
        (directory / name).mkdir(exist_ok=True)
        (directory / name).chmod(0o777)
        program = f"/four/{probing.PROGRAM}"
        return probing.observe(space, name, f"/four/{name}", program=program, only=probing.CORE)

    with ThreadPoolExecutor(2) as pool:
        direct, plain = pool.map(observe, ("direct", "plain"))
    assert set(direct) == set(probing.CORE)
    assert direct == plain


@pytest.mark.timeout(STATS_S + 60)
def test_kubelet_shows_the_figures_of_the_nas(space: pods.Space) -> None:
    """Not those of the placeholder, which is a tmpfs of one page."""
    server = os.statvfs(space.lab.nas.root)
    for volume in ("nas", "four"):
        found = kubelet_figures(space, "direct", volume)
        # Counted in blocks of the mount's own size.
        whole = server.f_blocks * server.f_frsize
        assert found["capacityBytes"] == pytest.approx(whole, rel=1e-3)
        assert found["inodes"] == server.f_files
        assert 0 < found["usedBytes"] < found["capacityBytes"]


def kubelet_figures(space: pods.Space, name: str, volume: str) -> dict[str, int]:
    """What kubelet's summary says of a pod's volume. It looks once a minute, and has no watch."""
    uid = space.uid(name)
    deadline = time.monotonic() + STATS_S
    path = "/api/v1/nodes/node1/proxy/stats/summary"
    while time.monotonic() < deadline:
        summary = json.loads(space.lab.kubectl("get", "--raw", path).stdout)
        mine = (each for each in summary["pods"] if each["podRef"]["uid"] == uid)
        volumes = [each for pod in mine for each in pod.get("volume", ())]
        for each in volumes:
            if each["name"] == volume and "capacityBytes" in each:
                figures: dict[str, int] = each
                return figures
        time.sleep(1)
    raise AssertionError(f"no figures of {volume} in {STATS_S} s; there are {volumes}")


def test_existing_sub_path(space: pods.Space) -> None:
    assert mount_line(space, "direct", "/existing")[2] == "nfs"
    assert space.say("direct", "cat /existing/file", container="one") == "was there"


def test_sub_path_that_is_a_file(space: pods.Space) -> None:
    assert space.say("direct", "test -f /one-file && cat /one-file", container="one") == "was there"


def test_missing_sub_path_is_made_on_the_nas(space: pods.Space, directory: Path) -> None:
    assert mount_line(space, "direct", "/missing")[2] == "nfs"
    space.run("direct", "echo deep > /missing/file && sync", container="one")
    assert (directory / "missing" / "deep" / "file").read_text() == "deep\n"


def test_read_only_mount_refuses_writes(space: pods.Space) -> None:
    refused = space.run("direct", "echo x > /readonly/refused", container="one", check=False)
    assert refused.status != 0
    assert "Read-only file system" in refused.stderr
    remounted = space.run("direct", "mount -o remount,rw /readonly", container="one", check=False)
    assert remounted.status != 0
    assert space.say("direct", "cat /readonly/existing/file", container="one") == "was there"
    assert space.run("direct", "echo x > /data/accepted", container="one").status == 0


@pytest.mark.parametrize("how", ["fcntl", "flock"])
def test_a_lock_of_version_4_holds_between_a_guest_and_a_node(
    space: pods.Space, directory: Path, how: str
) -> None:
    probing.install(directory)
    program, file = f"/four/{probing.PROGRAM}", f"/four/locked-{how}"
    with (
        probing.acting(space, "direct", program) as guest,
        probing.acting(space, "plain", program) as node,
    ):
        for one in (guest, node):
            one.expect("open", "file", file)
        for holding, asking in ((guest, node), (node, guest)):
            holding.expect("lock", "file", how)
            assert asking("lock", "file", how) == "EAGAIN"
            holding.expect("unlock", "file", how)


def test_a_write_outlasts_a_nas_that_is_away(space: pods.Space, directory: Path) -> None:
    """Over both versions: it waits, goes on when the NAS is back, and nothing is wrong with it."""
    nas, names = space.lab.nas, ("/data/stalled-3", "/four/stalled-4")
    write = "seq 1 20000 | dd of={0} bs=4k conv=fsync 2>/dev/null && sha256sum < {0}"
    writes = "".join(f"({write.format(name)}) & " for name in names)
    script = f"echo waits; read go; echo writes; {writes} wait"
    argv = space.argv("exec", "-i", "direct", "--container", "one", "--", "sh", "-c", script)
    with child.started(argv, spoken_to=True) as writing:
        said = writing.lines(timeout_s=waiting.EVENT_S + OUTAGE_S + BACK_S)
        assert next(said) == "waits"
        nas.fail(nas.address, Failure.DROPPED)
        try:
            writing.tell("go\n")
            assert next(said) == "writes"
            time.sleep(OUTAGE_S)
            files = [directory / Path(name).name for name in names]
            assert not any(file.exists() for file in files)
        finally:
            nas.unblock()
        shown = [line.split()[0] for line in said]
    sums = [pods.sha256(file.read_bytes()) for file in files]
    assert shown == sums == sums[:1] * 2


def test_a_nas_that_is_away_holds_up_only_who_waits_for_it(space: pods.Space) -> None:
    """By virtio-fs, where one process on the node serves all files of the pod."""
    nas = space.lab.nas
    waits = "until [ $(cat /proc/$!/wchan) = request_wait_answer ]; do sleep 0.1; done"
    stuck = f"for n in 1 2 3 4; do stat /data/absent-$n & {waits}; done; echo wait; wait"
    nas.fail(nas.address, Failure.DROPPED)
    try:
        with child.started(space.argv("exec", "shared", "--", "sh", "-c", stuck)) as four:
            assert next(four.lines(timeout_s=waiting.EVENT_S)) == "wait"
            space.run("shared", "timeout 60 sh -c 'ls -lR /etc; cat /etc/hostname' > /dev/null")
    finally:
        nas.unblock()


def test_restarted_container_has_its_volume_after_a_restart_of_all_services(
    space: pods.Space,
) -> None:
    space.node.exec(["systemctl", "restart", UNIT, "kubelet", "containerd"])
    # A new pod with the same volume is up only after kubelet has taken stock of all pods and their
    # mounts.
    space.apply(simple_pod("later", runtime=None))
    waiting.ready(space, "later")
    assert space.nfs_mounts("direct") == []
    # The shell that kills may end with its container.
    space.run("direct", "kill -TERM 1", container="two", check=False)
    waiting.restarted(space, "direct", "two")
    assert mount_line(space, "direct", "/data", container="two")[2] == "nfs"
    assert space.say("direct", "cat /data/from-init", container="two") == "prepared"
    assert space.nfs_mounts("direct") == []


def test_graceful_delete_flushes_what_was_written(space: pods.Space, directory: Path) -> None:
    on_nas = directory / "unsynced"
    expected = unsynced.write(space, "direct", "/data/unsynced", on_nas, container="one")
    space.delete("direct")
    assert pods.sha256(on_nas.read_bytes()) == expected


def test_fallback_to_virtio_fs_when_the_guest_cannot_mount(space: pods.Space) -> None:
    volume = space.nas("refusing", path=pods.NODE_ONLY)
    one = container("one", mounts={"/data": "refusing"})
    how = {**PASSTHROUGH, pods.FALLBACK: "virtiofs"}
    space.apply(*volume, pod("fallback", one, annotations=how, volumes=[pods.claim("refusing")]))
    waiting.ready(space, "fallback")
    assert mount_line(space, "fallback", "/data")[2] == "virtiofs"
    assert len(space.nfs_mounts("fallback")) == 1
    says = f"virtio-fs.*{pods.NODE_ONLY} .*guest at 10.*EACCES.*refuses this guest"
    waiting.event(
        space, "fallback", says, reason="NASPassthroughFallback", timeout_s=waiting.EVENT_S
    )
