"""Writing back a volume that root may not open, as with `root_squash`: here root lacks the
capabilities by which it may open everything on a local file system.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Its own mount namespace, and neither CAP_DAC_OVERRIDE nor CAP_DAC_READ_SEARCH.
_AS_SQUASHED = (
    *("unshare", "--mount", "--propagation", "private", "--"),
    *("setpriv", "--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search", "--"),
)
_PROGRAM = """
import os, sys
from kangaroo.agent import flush
from kangaroo.linux import mountinfo
from kangaroo.linux.mount import MountFlag, mount
path, options = sys.argv[1:]
os.setresgid(0, 0, 1)  # as the agent is
mount("tmpfs", path, "tmpfs", MountFlag.NONE, options)
try:
    os.listdir(path)
    print("root may list it")
except PermissionError:
    print("denied")
fd = flush._opened_as_who_may(path)
print(fd is not None)
if fd is not None:
    os.close(fd)
flush.flush_and_unmount(path)
print(any(entry.mount_point == path for entry in mountinfo.read()), os.geteuid(), *os.getresgid())
"""


@pytest.mark.parametrize(
    ("options", "opened"),
    [
        ("mode=0700,uid=1000,gid=1001", True),
        ("mode=0070,uid=0,gid=1001", True),
        ("mode=0000,uid=1000,gid=1001", False),
    ],
)
def test_a_volume_that_root_may_not_open_is_written_back(
    tmp_path: Path, options: str, opened: bool
) -> None:
    # The way to it is root's alone, as in a guest.
    volume = tmp_path / "private" / "volume"
    volume.mkdir(parents=True)
    volume.parent.chmod(0o700)
    argv = [*_AS_SQUASHED, sys.executable, "-c", _PROGRAM, str(volume), options]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert said.stderr == ""
    assert said.stdout.splitlines() == ["denied", str(opened), "False 0 0 0 1"]
