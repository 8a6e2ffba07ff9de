"""What a pod has written to its volume, and only its guest has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.node.pods import Space

BYTES = 1 << 20
# The writer stays, for to close the file would write it back; so would asking for its size.
_WRITE = f"""
head -c {BYTES} /dev/urandom > /tmp/random
{{ cat /tmp/random; exec sleep 100000; }} 2>/dev/null | dd of="$FILE" bs=64k >/dev/null 2>&1 &
until grep -q '^wchar: {BYTES}$' /proc/$!/io; do sleep 0.1; done
sha256sum < /tmp/random
"""


def write(space: Space, pod: str, file: str, on_nas: Path, *, container: str | None = None) -> str:
    """Have random bytes written to `file` by a process of the pod that stays; their SHA-256. The
    NAS, which has the file as `on_nas`, has not got them all yet.
    """
    script = f"FILE={file}\n{_WRITE}"
    digest = space.say(pod, script, container=container).split()[0]
    there = on_nas.stat().st_size if on_nas.exists() else 0
    assert there < BYTES, f"{pod}: the NAS has all of {file} already, which shows nothing"
    return digest
