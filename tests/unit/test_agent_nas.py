"""What the agent reads of the kernel's list of NFS file systems."""

from __future__ import annotations

from kangaroo.agent.nas import servers_by_device

# As Linux 6.12 prints it.
VOLUMES = """\
NV SERVER   PORT DEV          FSID                              FSC
v4 0a580002  801 0:39         39f44d36:31d61070                 no
v3 fd000000000000000000000000000002 4e20 0:140        31d6107039f44d36:0                no
"""


def test_servers_by_device() -> None:
    assert servers_by_device(VOLUMES.splitlines()) == {
        "0:39": "0a580002 801",
        "0:140": "fd000000000000000000000000000002 4e20",
    }
    assert servers_by_device([]) == {}
