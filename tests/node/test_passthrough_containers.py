"""One NAS volume in many containers and in many pods; containers that end and come again."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.node import inside, pods, waiting
from tests.node.pods import IDLE, NFS, PASSTHROUGH, container, pod

from kangaroo.linux.netns import run_in
from kangaroo.wire.agent_protocol import NAS_DIRECTORY

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

pytestmark = pytest.mark.soak

DATA = {"/data": "nas"}
# Each pod, where its volume is mounted, and as what its container sees it.
WHERE = {"several": "guest", "shared": "node", "plain": "node"}
SEEN = {"several": "nfs", "shared": "virtiofs", "plain": "nfs"}
# The containers of the pod `several` that stay, and where they mount the first volume.
PLACES = {
    "sidecar": ("/data", "/again"),
    "one": ("/data", "/again"),
    "two": ("/data", "/also"),
    **dict.fromkeys(("crashing", "unhealthy", "killed", "debugger"), ("/data",)),
}
CRASHES = 2  # kubelet starts it again at once, then after ten seconds
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
NFS_PORT, ESTABLISHED = 2049, 1


def noting(name: str, then: str = IDLE) -> str:
    """A script that writes down in the volume, at every start, what the volume is and which guest
    this is.
    """
    kind = "awk '$2 == \"/data\" { print $3 }' /proc/mounts"
    return f'echo "$({kind}) $({BOOT_ID})" >> /data/{name}; {then}'


def several_pod() -> pods.Document:
    """A pod with a volume in each of its containers, with other claims of the same export, one of
    them with other options, and with another volume of the same server. Some containers are to
    end, and one crashes while others are created.
    """
    again = {**DATA, "/again": "again"}
    others = {"/inner": "inner", "/otherwise": "otherwise"}
    crash = f"test $(wc -l < /data/crashing) -gt {CRASHES} || exit 7; {IDLE}"
    healthy = {"exec": {"command": ["test", "!", "-e", "/tmp/sick"]}, "timeoutSeconds": 30}
    at_once = {"periodSeconds": 5, "failureThreshold": 1}
    return pod(
        "several",
        container("crashing", noting("crashing", crash), mounts=DATA),
        container("one", mounts=again | others),
        container("two", mounts={**DATA, "/also": "nas"}),
        container("unhealthy", noting("unhealthy"), mounts=DATA, livenessProbe=healthy | at_once),
        container("killed", noting("killed"), mounts=DATA),
        initContainers=[
            container("prepare", "echo prepared > /data/from-init", mounts=DATA),
            container("sidecar", noting("sidecar"), mounts=again, restartPolicy="Always"),
        ],
        annotations=PASSTHROUGH,
        volumes=[pods.claim(name) for name in ("nas", "again", "inner", "otherwise")],
    )


def simple_pod(name: str, **rest: Any) -> pods.Document:
    return pod(name, container("one", mounts=DATA), volumes=[pods.claim("nas")], **rest)


@pytest.fixture(scope="module")
def space(lab: Lab) -> Iterator[pods.Space]:
    with contextlib.ExitStack() as afterwards, pods.opened(lab, "containers") as space:
        export = f"/csi/{space.name}"
        where = lab.nas.root / export.strip("/")
        (where / "inner").mkdir(parents=True)
        afterwards.callback(shutil.rmtree, where)
        where.chmod(0o777)
        space.apply(
            *space.nas("nas", path=export),
            *space.nas("again", path=export),
            *space.nas("inner", path=f"{export}/inner"),
            *space.nas("otherwise", path=export, options="noresvport,nolock,noac"),
            several_pod(),
            simple_pod("shared"),
            simple_pod("plain", runtime=None),
        )
        waiting.ready(space, *WHERE, timeout_s=2 * waiting.START_S)
        yield space


@pytest.fixture(scope="module")
def directory(space: pods.Space) -> Path:
    """The directory of the NAS that the volumes are of, as the NAS itself sees it."""
    where: Path = space.lab.nas.root / "csi" / space.name
    return where


@pytest.fixture(scope="module")
def debugged(space: pods.Space) -> pods.Space:
    """The same with two ephemeral containers in the pod `several`: `bare` mounts nothing, and sees
    the guest's first process; `debugger` mounts the volume, for which only the API can ask.
    """
    document = space.get("several")
    looking = {"capabilities": {"add": ["SYS_PTRACE"]}}
    document["spec"]["ephemeralContainers"] = [
        container("bare", targetContainerName="one", securityContext=looking),
        container("debugger", mounts=DATA),
    ]
    path = f"/api/v1/namespaces/{space.name}/pods/several/ephemeralcontainers"
    space.kubectl("replace", "--raw", path, "-f", "-", stdin=json.dumps(document))
    for name in ("bare", "debugger"):
        mine = f'.status.ephemeralContainerStatuses[?(@.name=="{name}")]'
        running = f"jsonpath={{{mine}.state.running.startedAt}}"
        waiting.condition(space, running, "several", timeout_s=waiting.START_S)
    return space


def connections(space: pods.Space, client: str) -> int:
    """How many connections from `client` the NAS's server has."""
    tables = ("/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6")
    nas = f"/run/netns/{space.lab.shape.network.nas_name}"
    text = run_in(nas, lambda: "".join(Path(table).read_text() for table in tables))
    reversed_octets = "".join(f"{int(octet):02X}" for octet in reversed(client.split(".")))
    found = 0
    for fields in (line.split() for line in text.splitlines()):
        local, remote, state = fields[1:4]
        if local.endswith(f":{NFS_PORT:04X}") and int(state, 16) == ESTABLISHED:
            found += remote.partition(":")[0].endswith(reversed_octets)
    return found


def test_crashing_container_has_its_volume_every_time(space: pods.Space, directory: Path) -> None:
    again(space, "crashing", CRASHES)
    starts = CRASHES + 1
    assert noted(space, directory, "crashing", starts) == [in_this_guest(space)] * starts


def test_debug_containers_disturb_nothing(debugged: pods.Space) -> None:
    seen = inside.table(debugged, "several", "bare")
    assert [entry for entry in seen if entry.fstype in NFS] == []
    assert debugged.say("several", "cat /data/from-init", container="debugger") == "prepared"
    quiet = ("sidecar", "one", "two", "unhealthy", "killed")
    assert {name: restarts(debugged, name) for name in quiet} == dict.fromkeys(quiet, 0)
    debugged.run("several", "echo still > /data/still", container="two")


def test_one_mount_in_the_guest_serves_all_containers(debugged: pods.Space) -> None:
    """Four claims, three of them of one export, two of these with the same options."""
    table = inside.table(debugged, "several", "bare", pid="1")
    entries = [entry for entry in table if entry.fstype in NFS]
    volumes = [entry for entry in entries if entry.mount_point.startswith(f"{NAS_DIRECTORY}/")]
    first = f"{debugged.lab.nas.address}:/csi/{debugged.name}"
    assert sorted(entry.source for entry in volumes) == [first, first, f"{first}/inner"]
    of_first = [entry for entry in volumes if entry.source == first]
    (otherwise,) = (entry for entry in of_first if "noac" in entry.super_options)
    (volume,) = (entry for entry in of_first if entry is not otherwise)
    # All else are binds of these, one for each volumeMount of the containers that run.
    binds = [(entry.source, entry.device) for entry in entries if entry not in volumes]
    of_volume = binds.count((first, volume.device))
    assert of_volume == sum(map(len, PLACES.values()))
    assert binds.count((first, otherwise.device)) == 1
    assert len(binds) == of_volume + 2
    for name, paths in PLACES.items():
        for path, entry in inside.mounted(debugged, "several", name, *paths).items():
            seen = (entry.source, entry.root, entry.device)
            assert seen == (volume.source, volume.root, volume.device), (name, path)


def test_volumes_of_one_server_share_its_connection(space: pods.Space) -> None:
    address = space.get("several")["status"]["podIP"]
    assert connections(space, address) == 1


def test_containers_share_what_they_write_at_once(space: pods.Space, directory: Path) -> None:
    assert (directory / "from-init").read_text() == "prepared\n"
    assert space.say("several", "cat /data/from-init", container="sidecar") == "prepared"
    writers = {"sidecar": "/again", "one": "/data", "two": "/also"}
    for writer, path in writers.items():
        space.run("several", f"echo {writer} > {path}/by-{writer}", container=writer)
    all_of_it = "cat " + " ".join(f"/data/by-{writer}" for writer in writers)
    for reader in writers:
        assert space.say("several", all_of_it, container=reader).split("\n") == list(writers)
    space.run("several", "echo deep > /inner/file && sync", container="one")
    assert (directory / "inner" / "file").read_text() == "deep\n"
    assert space.say("several", "cat /data/inner/file", container="two") == "deep"


def test_pods_have_one_volume_each_in_its_way(space: pods.Space, directory: Path) -> None:
    argv = ["/opt/kangaroo/bin/kangaroo", "volumes", "--json"]
    listed = json.loads(space.node.exec(argv, timeout_s=60).stdout)
    nas = [one for one in listed if one["volume"] == f"{space.name}-nas"]
    assert {one["pod"]["name"]: one["where"] for one in nas} == WHERE
    for name, fstype in SEEN.items():
        (entry,) = inside.mounted(space, name, "one", "/data").values()
        assert entry.fstype == fstype
        space.run(name, f"echo {name} > /data/of-{name} && sync", container="one")
    all_of_it = "cat " + " ".join(f"/data/of-{name}" for name in WHERE)
    for name in WHERE:
        assert (directory / f"of-{name}").read_text() == f"{name}\n"
        assert space.say(name, all_of_it, container="one").split("\n") == list(WHERE)


def noted(space: pods.Space, directory: Path, name: str, starts: int) -> list[str]:
    """What a container wrote down at each of its starts: the kind of its mount, and its guest. It
    is ready before it has written.
    """
    wait = f"until [ $(wc -l < /data/{name}) -ge {starts} ]; do sleep 0.5; done"
    space.run("several", wait, container="one")
    return (directory / name).read_text().splitlines()


def in_this_guest(space: pods.Space) -> str:
    """What a container of the pod `several` has to write down when it has its volume."""
    return f"nfs {space.say('several', BOOT_ID, container='one')}"


def restarts(space: pods.Space, name: str) -> int:
    return int(space.status("several", name)["restartCount"])


def again(space: pods.Space, name: str, times: int = 1) -> None:
    """Wait until a container of the pod `several`, or its sidecar, runs after so many restarts."""
    kind = "initContainerStatuses" if name == "sidecar" else "containerStatuses"
    mine = f'.status.{kind}[?(@.name=="{name}")]'
    for what in (f"restartCount}}={times}", "ready}=true"):
        waiting.condition(space, f"jsonpath={{{mine}.{what}", "several", timeout_s=waiting.START_S)


def test_ended_containers_have_their_volume_again(space: pods.Space, directory: Path) -> None:
    # Nothing but its liveness probe ends this one. kubelet's events are no witness: of those of
    # one pod it posts 25, then one every five minutes (client-go's spam filter).
    space.run("several", "touch /tmp/sick", container="unhealthy")
    for name in ("killed", "sidecar"):
        # The command may be killed with its container before it has answered.
        space.run("several", "kill 1", container=name, check=False)
    for name in ("unhealthy", "killed", "sidecar"):
        again(space, name)
        assert noted(space, directory, name, 2) == [in_this_guest(space)] * 2
        space.run("several", f"echo more >> /data/{name}", container=name)
    on_node = space.mounts(space.uid("several"))
    assert [entry for entry in on_node if entry.fstype in NFS] == []


def test_pods_that_go_leave_the_volume_to_the_others(space: pods.Space, directory: Path) -> None:
    for goes, stays in (("shared", ("several", "plain")), ("several", ("plain",))):
        space.delete(goes)
        for name in stays:
            space.run(name, f"echo {name} > /data/after-{goes}-{name} && sync", container="one")
            assert (directory / f"after-{goes}-{name}").read_text() == f"{name}\n"
