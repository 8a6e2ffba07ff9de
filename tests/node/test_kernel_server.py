"""Volumes of the Linux kernel's NFS server, which has what the lab's NAS has not: copies that are
made by the server, access control lists, TLS; and volumes of it in guests.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from tests.node import kernel_server, pods, probing, runtime_toml, waiting
from tests.node.csi_driver import Driver, calling, driving
from tests.node.kernel_server import KernelServer
from tests.node.pods import PASSTHROUGH, container, pod

from kangaroo_lab import artefacts

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

# Operations of NFS 4 by their numbers: RFC 8881, section 18; RFC 7862, section 15.
READ, WRITE, COPY, CLONE = 25, 38, 60, 71
MIB = 1 << 20
SIZE = 64 * MIB
GRACE_S = 5
FLUSH_S = 15  # shutdown_timeout_s
WRITTEN = 65536  # one WRITE: of the server's four threads it takes one
NOT_FLUSHED = "NASVolumeNotFlushed"

# A file with data, a hole and data again; with an attribute of its own; and with an access list
# that no mode can say: user 1234 may read. acl_ea_header and acl_ea_entry of acl(5), as the
# kernel's posix_acl_xattr.h has them. So may a directory, and what is made in it.
POPULATE = f"""
import os, struct, sys
USER_OBJ, USER, GROUP_OBJ, MASK, OTHER = 1, 2, 4, 0x10, 0x20
nobody = 0xFFFFFFFF
def listed(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)
access = listed((USER_OBJ, 6, nobody), (USER, 4, 1234), (GROUP_OBJ, 4, nobody), (MASK, 4, nobody),
    (OTHER, 0, nobody))
os.chdir(sys.argv[1])
with open("big", "wb") as file:
    for at in (0, {SIZE // 2}):
        file.seek(at)
        for _ in range(8):
            file.write(os.urandom({MIB}))
    file.truncate({SIZE})
os.setxattr("big", "user.note", b"kept")
os.mkdir("directory")
for name in ("big", "directory"):
    os.setxattr(name, "system.posix_acl_access", access)
os.setxattr("directory", "system.posix_acl_default", access)
open("directory/inherits", "w").close()
"""
# What a tree is, as its server has it: everything that a copy keeps, and no times of reading.
DESCRIBE = """
import hashlib, json, os, sys
found = {}
os.chdir(sys.argv[1])
for top, directories, files in os.walk("."):
    for name in (*directories, *files):
        path = os.path.join(top, name)
        status = os.stat(path)
        content = ""
        if name in files:
            content = hashlib.sha256(open(path, "rb").read()).hexdigest()
        attributes = {key: os.getxattr(path, key).hex() for key in os.listxattr(path)}
        facts = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_size)
        sparse = status.st_blocks * 512 < status.st_size
        found[path] = [*facts, sparse, content, attributes]
print(json.dumps(found, sort_keys=True))
"""


@pytest.fixture(scope="module")
def driver(lab: Lab) -> Iterator[Driver]:
    with driving(lab) as found:
        yield found


@pytest.fixture(scope="module")
def server(driver: Driver) -> Iterator[KernelServer]:
    with kernel_server.serving(driver.node) as found:
        yield found


@dataclass(frozen=True)
class Share:
    """A directory of the server, which is the node's, too, and the driver's calls about it."""

    driver: Driver
    server: KernelServer
    path: str

    def make(self, name: str, source: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A volume; its directory is of its name."""
        parameters = {"server": self.server.address, "path": self.path, "options": "vers=4.2"}
        request: dict[str, Any] = {
            "name": name,
            "parameters": {**parameters, "onDelete": "delete"},
            "volume_capabilities": [
                {"mount": {}, "access_mode": {"mode": "MULTI_NODE_MULTI_WRITER"}}
            ],
        }
        if source:
            request["volume_content_source"] = source
        made: dict[str, Any] = self.call("CreateVolume", request)["volume"]
        return made

    def call(self, method: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        (answer,) = self.driver.calls(calling(method, request))
        assert answer.code == "OK", answer
        return answer.response

    def describe(self, name: str) -> str:
        """What the directory of a volume holds."""
        argv = ["python3", "-c", DESCRIBE, f"{self.path}/{name}"]
        return self.driver.node.exec(argv).stdout

    def used_bytes(self) -> int:
        """Of the file system."""
        argv = ["df", "--block-size=1", "--output=used", self.path]
        return int(self.driver.node.exec(argv).stdout.split()[-1])


@pytest.fixture(params=[kernel_server.SHARING, kernel_server.PLAIN], ids=["clone", "copy"])
def share(driver: Driver, server: KernelServer, request: pytest.FixtureRequest) -> Iterator[Share]:
    path = f"{request.param}/{secrets.token_hex(4)}"
    driver.node.exec(["mkdir", path])
    yield Share(driver, server, path)
    driver.node.exec(["rm", "-r", path])


def test_the_server_copies(share: Share) -> None:
    """A snapshot and a volume made from it: the data does not cross the network, whether the
    server's file system can share blocks or not, and all that the tree is stays."""
    volume = share.make("data")
    share.driver.node.exec(["python3", "-c", POPULATE, f"{share.path}/data"])
    share.driver.node.exec(["sync", "--file-system", share.path])
    used, before = share.used_bytes(), share.server.operations()
    naming = {"name": "snapshot", "source_volume_id": volume["volumeId"]}
    snapshot: dict[str, Any] = {}
    while not snapshot.get("readyToUse"):
        snapshot = dict(share.call("CreateSnapshot", naming)["snapshot"])
    source = {"snapshot": {"snapshot_id": snapshot["snapshotId"]}}
    restored = share.make("restored", source)
    after = share.server.operations()
    share.driver.node.exec(["sync", "--file-system", share.path])

    assert share.describe("restored") == share.describe("data")
    made = {op: after[op] - before[op] for op in (READ, WRITE, COPY, CLONE)}
    shares = share.path.startswith(kernel_server.SHARING)
    # The records that the driver keeps are read and written, and small.
    assert made[READ] + made[WRITE] < 16, made
    assert made[CLONE if shares else COPY] >= 2, made
    grown = share.used_bytes() - used
    assert grown < 2 * MIB if shares else grown < 2 * 17 * MIB, grown

    share.call("DeleteSnapshot", {"snapshot_id": snapshot["snapshotId"]})
    for each in (volume, restored):
        share.call("DeleteVolume", {"volume_id": each["volumeId"]})


def test_tls(driver: Driver, server: KernelServer) -> None:
    """xprtsec=tls is the mount's, where the server has nothing for a client without it."""
    with server.tls(driver.lab):
        where = {"server": server.address, "path": kernel_server.TLS_ONLY, "vers": "4.2"}
        plain = driver.publish("plain", **where, options="hard")
        assert plain.code != "OK"
        ciphered = driver.publish("ciphered", **where, options="hard,xprtsec=tls")
        assert ciphered.code == "OK", ciphered
        entry = driver.mounted("ciphered")
        assert entry is not None
        assert "xprtsec=tls" in entry.super_options
        driver.node.exec(["touch", f"{driver.target('ciphered')}/written"])
        assert driver.unpublish("ciphered").code == "OK"


@pytest.mark.soak
def test_programs_in_a_guest_see_what_they_see_on_the_nodes_mount(
    driver: Driver, server: KernelServer
) -> None:
    """All that is observed of the lab's NAS, and locks that are waited for, attributes and copies
    by the server, which that has not."""
    path = f"{kernel_server.SHARING}/pods"
    driver.node.exec(["mkdir", path])
    names = ("direct", "plain")
    for name in names:
        driver.node.exec(["mkdir", "--mode=777", f"{path}/{name}"])
    driver.node.copy_to(artefacts.probe(), f"{path}/{probing.PROGRAM}")
    driver.node.exec(["chmod", "755", f"{path}/{probing.PROGRAM}"])

    def observe(name: str) -> dict[str, str]:
        return probing.observe(space, name, f"/data/{name}", program=f"/data/{probing.PROGRAM}")

    with pods.opened(driver.lab, "kernel") as space:
        one = container("one", mounts={"/data": "data"})
        volumes = [pods.claim("data")]
        space.apply(
            *space.nas("data", server=server.address, path=path, vers="4.2", options="hard"),
            pod("direct", one, annotations=PASSTHROUGH, volumes=volumes),
            pod("plain", one, runtime=None, volumes=volumes),
        )
        waiting.ready(space, *names)
        assert space.nfs_mounts("direct") == []
        with ThreadPoolExecutor(len(names)) as pool:
            direct, plain = pool.map(observe, names)
    print(direct)
    assert direct == plain
    assert (direct["clone"], direct["lock-that-is-waited-for"]) == ("ok", "got ok")


@pytest.mark.soak
def test_what_lies_within_a_volume_is_written_back_or_the_volume_is_named(
    driver: Driver, server: KernelServer
) -> None:
    """A file system that the server has mounted within the export is a mount of its own, which the
    guest's kernel makes in the container: the agent never mounted it. Here it takes no writes for a
    while, and the rest of the export does.
    """
    names = ("well", "cut-off")
    inner = kernel_server.SHARING.removeprefix(kernel_server.WHOLE)

    def writing(name: str) -> pods.Document:
        """Told to end it writes a file that it has open since its start."""
        script = f"""
            exec 9>/data{inner}/{name} || exit 3
            trap 'head -c {WRITTEN} /dev/zero >&9; exit 0' TERM
            sleep 100000 & wait
        """
        return pod(
            name,
            container("one", script, mounts={"/data": "data"}),
            annotations=PASSTHROUGH,
            volumes=[pods.claim("data")],
            terminationGracePeriodSeconds=GRACE_S,
        )

    source = {"server": server.address, "path": kernel_server.WHOLE, "vers": "4.2"}
    with (
        runtime_toml.with_keys(driver.node, shutdown_timeout_s=FLUSH_S),
        pods.opened(driver.lab, "within") as space,
    ):
        space.apply(*space.nas("data", **source, options="hard"), *map(writing, names))
        waiting.ready(space, *names)
        for name in names:
            space.run(name, "until [ -e /proc/1/fd/9 ]; do sleep 0.1; done")
            space.run(name, f"grep -q ' /data{inner} nfs4 ' /proc/mounts")
        space.delete("well")
        driver.node.exec(["fsfreeze", "--freeze", kernel_server.SHARING])
        try:
            space.delete("cut-off")
            volume = f"{server.address}:{kernel_server.WHOLE}"
            said = f"^{volume}: .*a file system within"
            waiting.event(space, "cut-off", said, reason=NOT_FLUSHED, timeout_s=waiting.EVENT_S)
        finally:
            driver.node.exec(["fsfreeze", "--unfreeze", kernel_server.SHARING])
        told = space.kubectl(
            "get", "events", f"--field-selector=reason={NOT_FLUSHED}", "--output=name"
        )
        assert len(told.stdout.splitlines()) == 1
    (size,) = driver.node.exec(
        ["stat", "--format=%s", f"{kernel_server.SHARING}/well"]
    ).stdout.split()
    assert int(size) == WRITTEN
