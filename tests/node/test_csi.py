"""The CSI driver on a real node against a real NAS, called as kubelet calls it."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.node import pods
from tests.node.csi_driver import KUBELET_S, UNIT, Driver, calling, driving

from kangaroo.csi.config import Config

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

# The driver's own deadline of one mount, its clean-up, and the emulated node's slowness.
MOUNT_S = 60 + 20
# One probe's deadline, the killed child's end, and the emulated node's slowness.
PROBE_S = 5 + 2 + 5
CONFIG = "/etc/kangaroo/csi.toml"


@pytest.fixture(scope="module")
def driver(lab: Lab) -> Iterator[Driver]:
    with driving(lab) as found:
        yield found


@pytest.fixture
def directory(lab: Lab) -> Iterator[Path]:
    """A new directory beneath /csi, as the NAS itself sees it."""
    path = lab.nas.root / "csi" / f"csi-{secrets.token_hex(2)}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def clean(driver: Driver) -> Iterator[Driver]:
    """The driver, and afterwards a proof that the test left nothing on the node."""
    yield driver
    assert driver.left() == []


def test_kubelet_registers_a_restarted_driver(lab: Lab, driver: Driver) -> None:
    driver.node.exec(["systemctl", "restart", UNIT])
    own = f"_SYSTEMD_INVOCATION_ID=$(systemctl show --value --property=InvocationID {UNIT})"
    told = f"grep -m1 'registered driver={pods.DRIVER}' < <(journalctl --follow --lines=all {own})"
    driver.node.exec(["bash", "-c", told])
    known = f"jsonpath={{.spec.drivers[0].name}}={pods.DRIVER}"
    lab.kubectl("wait", f"--for={known}", "csinode/node1", "--timeout=180s", timeout_s=200)


def test_every_version_is_published_and_taken_away_twice(clean: Driver) -> None:
    names = {f"version-{vers}": vers for vers in ("3", "4", "4.0", "4.1", "4.2")}
    publishing = [clean.publishing(name, vers=vers) for name, vers in names.items()]
    for answers in clean.rounds(publishing, publishing):
        assert [(answer.code, answer.message) for answer in answers] == [("OK", "")] * len(names)
    for name, vers in names.items():
        entry = clean.mounted(name)
        assert entry is not None
        assert entry.fstype == ("nfs" if vers == "3" else "nfs4")
        assert entry.source == f"{clean.lab.nas.address}:/csi"
        assert f"vers={'4.2' if vers == '4' else vers}" in entry.super_options
        clean.node.exec(["sh", "-c", f"echo {name} > {clean.target(name)}/csi-{name}"])
    unpublishing = [clean.unpublishing(name) for name in names]
    for answers in clean.rounds(unpublishing, unpublishing):
        assert [answer.code for answer in answers] == ["OK"] * len(names)
    for name in names:
        written = clean.lab.nas.root / "csi" / f"csi-{name}"
        assert written.read_text().strip() == name
        written.unlink()


def test_defaults_and_mount_options(clean: Driver) -> None:
    answers = clean.calls(
        clean.publishing("defaults"),
        clean.publishing("override", vers="3", options="hard,nolock", flags=["vers=4.1,timeo=70"]),
        clean.publishing("read-only", options="nolock", read_only=True),
    )
    assert [answer.code for answer in answers] == ["OK"] * 3
    defaults, override, read_only = map(clean.mounted, ("defaults", "override", "read-only"))
    assert defaults is not None
    assert override is not None
    assert read_only is not None
    wanted = {"vers=3", "nolock", "noresvport", "hard", "timeo=600", "retrans=2", "proto=tcp"}
    assert wanted <= set(defaults.super_options)
    assert {"vers=4.1", "timeo=70", "hard"} <= set(override.super_options)
    assert "ro" in read_only.options
    touched = clean.node.exec(["touch", f"{clean.target('read-only')}/x"], check=False)
    assert "Read-only" in touched.stderr
    clean.calls(*(clean.unpublishing(name) for name in ("defaults", "override", "read-only")))


def test_a_published_target_is_not_published_differently(clean: Driver) -> None:
    (first,), (other_path, other_access), (last,) = clean.rounds(
        [clean.publishing("taken")],
        [clean.publishing("taken", path="/nodeonly"), clean.publishing("taken", read_only=True)],
        [clean.unpublishing("taken")],
    )
    assert (first.code, last.code) == ("OK", "OK")
    assert (other_path.code, other_access.code) == ("ALREADY_EXISTS", "ALREADY_EXISTS")
    assert "/nodeonly" in other_path.message


def test_mode(clean: Driver, directory: Path) -> None:
    (directory / "deep").mkdir()
    for kind, deep in (("non-recursive", 0o755), ("recursive", 0o2770)):
        directory.chmod(0o755)
        (directory / "deep").chmod(0o755)
        answer = clean.publish("mode", path=f"/csi/{directory.name}", mode="2770", modeType=kind)
        assert answer.code == "OK", answer.message
        assert directory.stat().st_mode & 0o7777 == 0o2770
        assert (directory / "deep").stat().st_mode & 0o7777 == deep
        # As a driver leaves it that is killed between the mount and the end of chmod.
        clean.node.exec(["chmod", "755", clean.target("mode")])
        repeat = clean.publish("mode", path=f"/csi/{directory.name}", mode="2770", modeType=kind)
        assert repeat.code == "OK", repeat.message
        assert directory.stat().st_mode & 0o7777 == 0o2770
        clean.unpublish("mode")


def test_what_is_tuned_for_throughput(clean: Driver) -> None:
    """The slot table is the node's; `nconnect` counts where nothing of the server is mounted."""
    slots = clean.node.exec(["cat", "/proc/sys/sunrpc/tcp_slot_table_entries"]).stdout
    assert int(slots) == Config().sunrpc_tcp_slot_table_entries
    assert clean.publish("nconnect", vers="4.1", options="hard,nconnect=4").code == "OK"
    entry = clean.mounted("nconnect")
    assert entry is not None
    assert "nconnect=4" in entry.super_options
    assert clean.unpublish("nconnect").code == "OK"


def test_a_missing_directory_is_made(clean: Driver, directory: Path) -> None:
    """Beneath the nearest one that is there, with what is missing in between; once, and said."""
    names = {f"made-{vers}": vers for vers in ("3", "4.1")}
    paths = {name: f"/csi/{directory.name}/{name}/deep" for name in names}
    publishing = [clean.publishing(n, path=paths[n], vers=vers) for n, vers in names.items()]
    read_only = clean.publishing("made-ro", path=f"/csi/{directory.name}/ro", read_only=True)
    *made, refused = clean.calls(*publishing, read_only)
    assert [(answer.code, answer.message) for answer in made] == [("OK", "")] * len(names)
    assert refused.code in ("NOT_FOUND", "PERMISSION_DENIED")
    assert sorted(path.name for path in directory.iterdir()) == sorted(names)
    for name in names:
        (deep,) = (directory / name).iterdir()
        assert (deep.name, deep.stat().st_mode & 0o7777) == ("deep", 0o777)
        clean.node.exec(["touch", f"{clean.target(name)}/written"])
        assert (deep / "written").exists()
    log = clean.node.exec(["journalctl", "--unit", UNIT, "--lines=400", "--output=cat"]).stdout
    for path in paths.values():
        assert f"directory made source={clean.lab.nas.address}:{path} mode=0777" in log
    clean.calls(*map(clean.unpublishing, names))


def test_a_volume_of_the_pod_s_own_with_the_switch(clean: Driver) -> None:
    own = {"csi.storage.k8s.io/ephemeral": "true"}
    assert clean.publish("own", **own).code == "FAILED_PRECONDITION"
    directory = str(Path(CONFIG).parent)
    clean.node.exec(["mkdir", "--parents", directory])
    clean.node.exec(["sh", "-c", f"echo 'ephemeral_volumes = true' > {CONFIG}"])
    try:
        clean.node.exec(["systemctl", "restart", UNIT])
        codes = [answer.code for answer in (clean.publish("own", **own), clean.unpublish("own"))]
    finally:
        clean.node.exec(["rm", CONFIG])
        clean.node.exec(["rmdir", "--ignore-fail-on-non-empty", directory])
        clean.node.exec(["systemctl", "restart", UNIT])
    assert codes == ["OK", "OK"]


def stats_of(driver: Driver, name: str) -> dict[str, Any]:
    request = {"volume_id": name, "volume_path": driver.target(name)}
    return calling("NodeGetVolumeStats", request)


def test_stats(clean: Driver) -> None:
    asking = stats_of(clean, "stats")
    _, (answer,), _, (after,) = clean.rounds(
        [clean.publishing("stats")], [asking], [clean.unpublishing("stats")], [asking]
    )
    assert after.code == "NOT_FOUND"
    units = {usage["unit"]: usage for usage in answer.response["usage"]}
    assert int(units["BYTES"]["total"]) > int(units["BYTES"]["available"]) > 0
    assert set(units) == {"BYTES", "INODES"}
    assert answer.response["volumeCondition"] == {"message": "the server answers"}


def test_a_server_that_takes_no_writes_is_a_condition(clean: Driver) -> None:
    """Found without a write, and only where the volume was published for writing."""
    names: Mapping[str, Mapping[str, Any]]
    names = {"frozen-3": {"vers": "3"}, "frozen-4": {"vers": "4.1"}, "reader": {"read_only": True}}
    publishing = [clean.publishing(name, path="/readonly", **how) for name, how in names.items()]
    asking = [stats_of(clean, name) for name in names]
    published, answers = clean.rounds(publishing, asking)
    assert [answer.code for answer in published] == ["OK"] * len(names)
    conditions = [answer.response["volumeCondition"] for answer in answers]
    assert [condition.get("abnormal", False) for condition in conditions] == [True, True, False]
    assert "/readonly is read-only on the server" in conditions[0]["message"]
    assert all(answer.response["usage"] for answer in answers)
    clean.calls(*map(clean.unpublishing, names))


REFUSED: Mapping[str, tuple[Mapping[str, Any], str, str]] = {
    # Read-only, or the directory would be made.
    "export-3": ({"path": "/absent", "read_only": True}, "PERMISSION_DENIED NOT_FOUND", "/absent"),
    "export-4": ({"path": "/absent", "vers": "4.2", "read_only": True}, "NOT_FOUND", "/absent"),
    "option-3": ({"options": "nolock,frobnicate=7"}, "INVALID_ARGUMENT", "frobnicate=7"),
    "option-4": ({"options": "frobnicate=7", "vers": "4.1"}, "INVALID_ARGUMENT", "frobnicate=7"),
    "value": ({"options": "nolock,rsize=much"}, "INVALID_ARGUMENT", "rsize=much"),
    "version": ({"vers": "5"}, "INVALID_ARGUMENT", "volumeAttributes.vers"),
    "port-4": ({"options": "port=2", "vers": "4.1"}, "UNAVAILABLE", "port=2"),
    "port-3": ({"options": "nolock,port=2"}, "UNAVAILABLE FAILED_PRECONDITION", "port=2"),
    "name": ({"server": "nas.invalid"}, "UNAVAILABLE", "nas.invalid"),
}


def test_refusals_name_what_is_wrong_and_leave_nothing(clean: Driver) -> None:
    answers = clean.calls(*(clean.publishing(name, **case[0]) for name, case in REFUSED.items()))
    for (name, (_, codes, says)), answer in zip(REFUSED.items(), answers, strict=True):
        assert answer.code in codes.split(), f"{name}: {answer}"
        assert f"volume {name}: " in answer.message
        assert says in answer.message


def test_an_unreachable_server_ends_in_time_and_holds_up_no_one(clean: Driver) -> None:
    """An address of the NAS's network that nobody has. The good one is not behind the others."""
    nobody = clean.lab.nas.address.rpartition(".")[0] + ".251"
    hung = [
        clean.publishing(f"hung-{vers}-{n}", server=nobody, vers=vers)
        for n in range(3)
        for vers in ("3", "4.1")
    ]
    *refused, good = clean.calls(*hung, clean.publishing("good"))
    assert good.code == "OK"
    assert good.seconds < min(answer.seconds for answer in refused)
    for answer in refused:
        assert answer.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
        assert nobody in answer.message
        assert answer.seconds < MOUNT_S
    clean.unpublish("good")
    stray = clean.node.exec(["pgrep", "-f", f"mount.*{nobody}"], check=False)
    assert stray.stdout == ""


def test_a_caller_that_gives_up_leaves_nothing(clean: Driver) -> None:
    nobody = clean.lab.nas.address.rpartition(".")[0] + ".251"
    (given_up,), (after,) = clean.rounds(
        [clean.publishing("given-up", server=nobody, vers="4.1", timeout_s=3)],
        [clean.unpublishing("given-up")],  # waits until the first call is cleaned up
    )
    assert (given_up.code, after.code) == ("DEADLINE_EXCEEDED", "OK")
    assert clean.left() == []


def test_a_dead_nas_is_unmounted_in_time(clean: Driver) -> None:
    """With data that was not written back, which a plain umount waits for."""
    nas = clean.lab.nas
    assert clean.publish("dead", vers="3").code == "OK"
    nas.block([clean.node.address])
    try:
        dirty = f"dd if=/dev/zero of={clean.target('dead')}/csi-dirty bs=64k count=4"
        clean.node.exec(["sh", "-c", f"timeout 5 {dirty} >/dev/null 2>&1 || :"])
        (stats,), (again,), (answer,) = clean.rounds(
            [stats_of(clean, "dead")],
            [clean.publishing("dead", vers="3")],
            [clean.unpublishing("dead")],
        )
        assert stats.response["volumeCondition"]["abnormal"], stats
        assert "does not answer within" in stats.response["volumeCondition"]["message"]
        assert stats.seconds < PROBE_S
        assert again.code in ("OK", "UNAVAILABLE")  # the kernel may still know the directory
        assert answer.code == "OK", answer.message
        assert answer.seconds < KUBELET_S
        assert clean.left() == []
    finally:
        nas.unblock()
        (nas.root / "csi" / "csi-dirty").unlink(missing_ok=True)


def test_a_stale_mount_is_replaced(clean: Driver, directory: Path) -> None:
    """The directory was deleted and made again by another client: the old mount answers ESTALE."""
    stale = clean.publishing("stale", path=f"/csi/{directory.name}", options="nolock,noac")
    answers = clean.calls(stale, clean.publishing("other", vers="4.1"))
    assert [answer.code for answer in answers] == ["OK", "OK"]
    # Through the server, not behind its back: it caches what it knows of a directory.
    other = f"{clean.target('other')}/{directory.name}"
    clean.node.exec(["sh", "-ec", f"rmdir {other}; mkdir {other}; touch {other}/new"])
    (stats,), (answer,) = clean.rounds([stats_of(clean, "stale")], [stale])
    assert stats.response["volumeCondition"]["abnormal"], stats
    assert "Stale file handle" in stats.response["volumeCondition"]["message"]
    assert answer.code == "OK", answer.message
    assert clean.node.exec(["ls", clean.target("stale")]).stdout.split() == ["new"]
    clean.calls(clean.unpublishing("stale"), clean.unpublishing("other"))


def test_a_restarted_driver_goes_on(clean: Driver) -> None:
    assert clean.publish("over-restart").code == "OK"
    clean.node.exec(["systemctl", "restart", UNIT])
    assert clean.publish("over-restart").code == "OK"
    entry = clean.mounted("over-restart")
    assert entry is not None
    assert clean.unpublish("over-restart").code == "OK"
