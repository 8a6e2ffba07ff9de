"""The CSI driver asks a shim for the figures of a volume in its guest: both ends, in memory."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from tests.protocol.fake_guest import ANSWERS, PLACEHOLDER, FakeSandbox, Log, booter

from kangaroo.csi import condition, guest_volumes, node, volume_stats
from kangaroo.csi.condition import Unusable
from kangaroo.csi.volume_stats import Figures
from kangaroo.errors import KangarooError, NotFound, Unavailable
from kangaroo.linux import mountinfo
from kangaroo.runtime.background import Background
from kangaroo.runtime.pod import CreateOptions, Pod
from kangaroo.runtime.stdio import StdioPaths
from kangaroo.runtime.volume_service import VolumeService
from kangaroo.wire.agent_protocol import Method
from kangaroo.wire.aio import Server
from kangaroo.wire.envelope import Status
from kangaroo.wire.gen import csi_pb2 as csi
from kangaroo.wire.status import Code

Scenario = Callable[[Path], Awaitable[None]]


def play(
    directory: Path,
    scenario: Scenario,
    *,
    sandbox: bool = True,
    failures: Mapping[str, Status] = MappingProxyType({}),
) -> None:
    """Run a scenario beside a shim whose state names the placeholder, and whose guest fails so. It
    gets the directory of all sandboxes.
    """

    async def main() -> None:
        sandboxes = directory / "sandboxes"
        own = sandboxes / "pod-1"
        own.mkdir(parents=True)
        state = {"version": 1, "placeholders": [{"path": PLACEHOLDER, "volume_id": "nas"}]}
        (own / "state.json").write_text(json.dumps(state))
        made: list[FakeSandbox] = []
        background = Background()
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            pod = Pod(booter(tasks, made, Log()), lambda _: None, background)
            if sandbox:
                (directory / "config.json").write_text("{}")
                paths = StdioPaths()
                await pod.create(CreateOptions("pod-1", directory, (), paths))
                made[0].guest.failures.update(failures)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(own / "shim.sock"))
            listener.listen()
            serving = tasks.create_task(Server(VolumeService(pod).handlers()).serve(listener))
            try:
                await scenario(sandboxes)
            finally:
                serving.cancel()
                await pod.ended()
                await background.aclose()

    asyncio.run(main())


async def failure(sandboxes: Path, path: str = PLACEHOLDER, timeout_s: float = 5) -> KangarooError:
    with pytest.raises(KangarooError) as caught:
        await guest_volumes.statistics(sandboxes, path, timeout_s)
    return caught.value


def test_figures_come_from_the_guest(tmp_path: Path) -> None:
    async def scenario(sandboxes: Path) -> None:
        found = await guest_volumes.statistics(sandboxes, PLACEHOLDER, 5)
        assert Figures(**found) == (500, 300, 200, 50, 40)

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "odd",
    [{"free_inodes": None}, {"total_bytes": -1}, {"free_bytes": True}, {"free_bytes": 2.0**62}],
)
def test_a_guest_that_lies_in_shape_is_an_error(
    tmp_path: Path, odd: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ANSWERS, Method.VOLUME_STATS, {**ANSWERS[Method.VOLUME_STATS], **odd})

    async def scenario(sandboxes: Path) -> None:
        error = await failure(sandboxes)
        assert isinstance(error, Unavailable)
        assert f"malformed: {next(iter(odd))}" in str(error)

    play(tmp_path, scenario)


def test_what_csi_s_numbers_do_not_hold_is_the_most_that_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CephFS says 2^64 - 1 of free inodes; a file system may have room for more than 2^63 bytes."""
    said = {**ANSWERS[Method.VOLUME_STATS], "free_inodes": 2**64 - 1, "total_bytes": 2**70}
    monkeypatch.setitem(ANSWERS, Method.VOLUME_STATS, said)

    async def scenario(sandboxes: Path) -> None:
        most = 2**63 - 1
        found = await guest_volumes.statistics(sandboxes, PLACEHOLDER, 5)
        assert Figures(**found) == (most, 300, 200, 50, most)

    play(tmp_path, scenario)


def test_on_the_node_inodes_without_limit_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """stat(1) shows CephFS's 2^64 - 1 of free inodes as -1."""
    (entry,) = mountinfo.parse("40 1 0:9 / /t rw shared:1 - nfs nas:/csi rw")

    async def ask(_: object, __: float, *command: str) -> str:
        return f"{2**20} {2**44} {2**43} 17 300 -1\n" if "--file-system" in command else "0 0 41ff"

    async def takes_writes(*_: object) -> bool:
        return True

    monkeypatch.setattr(mountinfo, "at", lambda *_: entry)
    monkeypatch.setattr(condition, "ask", ask)
    monkeypatch.setattr(condition, "takes_writes", takes_writes)
    found = asyncio.run(volume_stats.look("/t", 1, tmp_path)).figures
    assert found == (2**63 - 1, 2**63 - 1, 17 << 20, 300, 2**63 - 1)
    (usage,) = node.usage(found)
    assert (usage.unit, usage.total, usage.used) == (csi.VolumeUsage.BYTES, 2**63 - 1, 0)
    assert usage.available == 17 << 20


def test_a_path_that_no_sandbox_has(tmp_path: Path) -> None:
    async def scenario(sandboxes: Path) -> None:
        assert isinstance(await failure(sandboxes, "/elsewhere"), Unavailable)
        other = {"version": 1, "placeholders": [{"path": "/elsewhere"}]}
        (sandboxes / "pod-1/state.json").write_text(json.dumps(other))
        assert isinstance(await failure(sandboxes, "/elsewhere"), NotFound)

    play(tmp_path, scenario)


def test_damaged_states_and_dead_shims_of_others_do_no_harm(tmp_path: Path) -> None:
    async def scenario(sandboxes: Path) -> None:
        for name, text in (("a", "{"), ("b", "[]"), ("c", '{"placeholders": 3}')):
            (sandboxes / name).mkdir()
            (sandboxes / name / "state.json").write_text(text)
        assert (await guest_volumes.statistics(sandboxes, PLACEHOLDER, 5))["total_bytes"] == 500
        (sandboxes / "pod-1/shim.sock").unlink()
        error = await failure(sandboxes)
        assert isinstance(error, Unavailable)

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "failure", [Status(Code.INTERNAL, "Stale file handle"), Status(Code.DEADLINE_EXCEEDED, "late")]
)
def test_what_the_guest_s_server_does_is_a_condition(tmp_path: Path, failure: Status) -> None:
    async def scenario(sandboxes: Path) -> None:
        with pytest.raises(Unusable, match=failure.message):
            await guest_volumes.statistics(sandboxes, PLACEHOLDER, 5)

    play(tmp_path, scenario, failures={Method.VOLUME_STATS: failure})


def test_a_sandbox_that_is_not_up_yet(tmp_path: Path) -> None:
    async def scenario(sandboxes: Path) -> None:
        assert isinstance(await failure(sandboxes), Unavailable)

    play(tmp_path, scenario, sandbox=False)


def test_a_shim_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    async def scenario(sandboxes: Path) -> None:
        (sandboxes / "pod-1/shim.sock").unlink()
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.bind(str(sandboxes / "pod-1/shim.sock"))
            deaf.listen()
            error = await failure(sandboxes, timeout_s=0.1)
        assert isinstance(error, Unavailable)
        assert not isinstance(error, Unusable)  # of the volume nothing is known
        assert "no answer within" in str(error)

    play(tmp_path, scenario)
