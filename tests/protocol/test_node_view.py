"""`kangaroo volumes` and `kangaroo sandboxes`: real sockets of shims, files as a node has them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.protocol.fake_shim import COUNTERS, deaf, directory, healthy, sandbox, shim, target

from kangaroo.cli import node_verbs, node_view
from kangaroo.cli.main import main
from kangaroo.cli.node_view import Places

__all__ = ["directory"]  # a fixture


def places(directory: Path) -> Places:
    proc = directory / "proc"
    if not proc.exists():
        proc.mkdir()
        (proc / "mountinfo").write_text("1 0 0:1 / / rw - ext4 /dev/vda1 rw\n")
        (proc / "mountstats").write_text("device /dev/vda1 mounted on / with fstype ext4\n")
    return Places(directory / "sandboxes", directory / "pods", directory / "bundles", proc)


def mount(directory: Path, path: str) -> None:
    """A mount of the NAS on the node."""
    proc = places(directory).proc
    with (proc / "mountinfo").open("a") as table:
        table.write(f"2 1 0:52 / {path} rw - nfs 192.0.2.1:/csi rw,vers=3\n")
    with (proc / "mountstats").open("a") as table:
        table.write(COUNTERS.replace("/run/nas/nas-1", path))


def bundle(directory: Path, uid: str, **annotations: str) -> None:
    spec = {
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-uid": uid,
            "io.kubernetes.cri.sandbox-namespace": "default",
            "io.kubernetes.cri.sandbox-name": f"name-of-{uid}",
            **annotations,
        }
    }
    (directory / "bundles" / uid).mkdir(parents=True)
    (directory / "bundles" / uid / "config.json").write_text(json.dumps(spec))


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(bounded())


async def volumes(directory: Path) -> dict[str, dict[str, Any]]:
    """Documents by pod uid."""
    views = await node_view.volumes(places(directory), 0.2)
    return {view.pod.uid: node_verbs.volume_document(view) for view in views}


async def sandboxes(directory: Path) -> dict[str, dict[str, Any]]:
    """Documents by sandbox."""
    views = await node_view.sandboxes(places(directory), 0.2)
    return {view.sandbox: node_verbs.sandbox_document(view) for view in views}


def test_each_volume_is_listed_where_it_is_mounted(directory: Path) -> None:
    async def scenario() -> None:
        plain = f"{directory}/pods/uid-plain/volumes/kubernetes.io~nfs/data"
        mount(directory, plain)
        mount(directory, target(directory, "moving"))
        bundle(directory, "uid-good")
        bundle(directory, "uid-plain", **{"io.kubernetes.cri.container-type": "container"})
        async with shim(directory, "good", healthy), shim(directory, "moving", healthy):
            found = await volumes(directory)
        assert {uid: one["where"] for uid, one in found.items()} == {
            "uid-good": "guest",
            "uid-moving": "both",
            "uid-plain": "node",
        }
        good = found["uid-good"]
        assert good["pod"] == {
            "uid": "uid-good",
            "namespace": "default",
            "name": "name-of-uid-good",
        }
        assert (good["server"], good["export"], good["version"]) == ("192.0.2.1", "/csi", "3")
        assert good["options"] == ["rw", "relatime", "vers=3"]
        assert good["sandbox"] == "good"
        assert good["statistics"]["total_bytes"] == 5 << 30
        assert good["statistics"]["operations"] == 8
        assert good["statistics"]["retransmissions"] == 2
        assert good["problem"] is None
        assert found["uid-plain"]["pod"]["name"] is None
        assert found["uid-plain"]["statistics"]["read_bytes"] == 500
        assert "total_bytes" not in found["uid-plain"]["statistics"]

    run(scenario)


def test_guests_and_shims_that_do_not_answer_are_shown(directory: Path) -> None:
    async def hostile(request: dict[str, Any]) -> dict[str, Any]:
        return {"total_bytes": -1}

    async def scenario() -> None:
        sandbox(directory, "dead")
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(sandbox(directory, "silent") / "shim.sock"))
            silent.listen()
            async with shim(directory, "deaf", deaf), shim(directory, "odd", hostile):
                started = time.monotonic()
                found = await volumes(directory)
                seen = await sandboxes(directory)
                assert time.monotonic() - started < 5
        assert {uid: one["statistics"] for uid, one in found.items()} == dict.fromkeys(found)
        assert found["uid-dead"]["problem"] == "the shim is dead"
        assert "no answer within" in found["uid-deaf"]["problem"]
        assert (
            "longer than" in found["uid-silent"]["problem"]
            or "no answer within" in (found["uid-silent"]["problem"])
        )
        assert "malformed: total_bytes" in found["uid-odd"]["problem"]
        assert seen["dead"]["problem"] == "shim: the shim is dead"
        assert seen["silent"]["shim"] == {"pid": None, "version": None}
        assert seen["deaf"]["problem"] is None  # its guest is silent, it is not

    run(scenario)


def test_sandboxes(directory: Path) -> None:
    async def scenario() -> None:
        broken = directory / "sandboxes/broken"
        broken.mkdir(parents=True)
        (broken / "state.json").write_text("{}")
        bundle(directory, "uid-good")
        async with shim(directory, "good", healthy):
            found = await sandboxes(directory)
        assert found["good"] == {
            "sandbox": "good",
            "pod": {"uid": "uid-good", "namespace": "default", "name": "name-of-uid-good"},
            "shim": {"pid": 4711, "version": "0.1.0"},
            "qemu": {"pid": os.getpid()},
            "virtiofsd": {"pid": None},  # its pid is another process's now
            "memory_bytes": None,
            "volumes": ["192.0.2.1:/csi"],
            "containers": ["c1", "c2"],
            "problem": None,
        }
        assert "state" in found["broken"]["problem"]

    run(scenario)


@pytest.mark.skipif(os.geteuid() != 0, reason="the verbs are root's")
def test_the_verbs_print_tables_and_json(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox(directory, "gone")
    config = directory / "runtime.toml"
    config.write_text(f'state_root = "{directory}/sandboxes"\nkubelet_root = "{directory}"\n')
    (directory / "pods").mkdir()

    def said(*words: str) -> str:
        assert main([*words, "--config", str(config)]) == 0
        return capsys.readouterr().out

    assert "192.0.2.1:/csi" in said("volumes")
    assert "the shim is dead" in said("sandboxes").splitlines()[1]
    (volume,) = json.loads(said("volumes", "--json"))
    assert (volume["where"], volume["problem"]) == ("guest", "the shim is dead")
    (one,) = json.loads(said("sandboxes", "--json"))
    assert one["sandbox"] == "gone"


def test_a_table_shows_control_characters_instead_of_sending_them() -> None:
    shown = node_verbs.table(("A", "B"), [("x\x1b[31m", "longer"), ("", "é")])
    assert shown.splitlines() == [r"A          B", r"x\x1b[31m  longer", r"           é"]


@pytest.mark.parametrize(
    ("number", "shown"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes(number: int | None, shown: str) -> None:
    assert node_verbs.size(number) == shown
