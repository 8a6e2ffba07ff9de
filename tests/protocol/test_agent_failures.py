"""A failure in the guest, told by the agent's table and read by the runtime's client."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest
from tests.protocol.fake_guest import FakeAgent

from kangaroo.agent import failures
from kangaroo.errors import MountFailed
from kangaroo.runtime.agent_client import AgentClient
from kangaroo.wire.agent_protocol import Method, error_detail
from kangaroo.wire.envelope import Status, StatusDetail
from kangaroo.wire.status import Code

SOURCE, OPTIONS = "nas:/csi", "vers=4.1"
TOLD = MountFailed(SOURCE, OPTIONS, "access denied", errno=errno.EACCES, hint="allow the guest")


def failed(status: Status) -> MountFailed:
    """What a mount comes to that the guest answers with `status`."""

    async def scenario() -> None:
        near, far = socket.socketpair()
        guest = FakeAgent(far)
        guest.failures[Method.MOUNT_NAS] = status
        serving = asyncio.create_task(guest.serve())
        agent = await AgentClient.connect(near, timeout_s=5)
        try:
            await agent.mount_nas(
                volume_id="nas-1",
                source=SOURCE,
                fstype="nfs4",
                flags=[],
                options=OPTIONS,
                read_ahead_kib=None,
                timeout_s=5,
            )
        finally:
            await agent.aclose()
            await asyncio.gather(serving, return_exceptions=True)
            far.close()

    with pytest.raises(MountFailed) as raised:
        asyncio.run(scenario())
    return raised.value


def test_a_failed_mount_is_the_same_on_both_sides() -> None:
    error = failed(failures.status(TOLD))
    assert str(error) == str(TOLD)
    assert (error.reason, error.errno) == ("access denied", errno.EACCES)


@pytest.mark.parametrize(
    "details",
    [(), (error_detail("MountFailed"),), (error_detail("MountFailed", reason=["denied"]),)],
    ids=["no detail", "no reason", "malformed"],
)
def test_without_a_reason_the_message_is_it(details: tuple[StatusDetail, ...]) -> None:
    error = failed(Status(Code.INTERNAL, "access denied", details))
    assert error.reason == "access denied"


def test_a_reason_without_end_is_cut() -> None:
    endless = MountFailed(SOURCE, OPTIONS, "x" * 1_000_000)
    assert len(failed(failures.status(endless)).reason) == 4096
