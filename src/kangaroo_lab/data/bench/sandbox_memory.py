"""Print, as JSON, the memory of a sandbox's processes on this node: {"shim": KiB, "qemu": …}.

Runs on the node: `python3 -I -S - SANDBOX_ID < sandbox_memory.py`. PSS counts a page that several
processes share in equal parts (proc_pid_smaps(5)), so the parts add up to what the sandbox costs.
"""

import json
import os
import sys
from pathlib import Path

PARTS = {"virtiofsd": "virtiofsd", "qemu-system": "qemu", "containerd-shim-kangaroo": "shim"}


def part(command: str) -> str:
    program = " ".join(command.split("\0")[:4])
    return next((name for key, name in PARTS.items() if key in program), "other")


def pss_kib(process: Path) -> int:
    for line in (process / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def main(sandbox: str) -> None:
    total: dict[str, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            if sandbox in command:
                name = part(command)
                total[name] = total.get(name, 0) + pss_kib(process)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    json.dump(total, sys.stdout)


main(sys.argv[1])
