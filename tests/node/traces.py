"""What sandboxes leave on a node while they live, and must not leave when they have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.node.probe import SANDBOXES

if TYPE_CHECKING:
    from kangaroo_lab.node import Node

PROGRAMS = {
    "shim": " daemon",  # the last word of the long-lived one, whatever runs it
    "qemu": "qemu-system",
    "virtiofsd": "virtiofsd",
}

# Every place where a sandbox leaves a mark on the node, by the sandbox's id or its pod's uid. The
# shells that look name both too, so they leave themselves out, by their own name.
_NAME = "kangaroo-traces"
_SEARCH = rf"""
sandbox=$1 uid=$2
cgroup_uid=$(echo "$uid" | tr - _)
for process in /proc/[0-9]*; do
    words=$(tr '\0' ' ' 2>/dev/null < "$process/cmdline")
    case "$words" in
        *{_NAME}*) ;;
        *"$sandbox"*) echo "process ${{process#/proc/}}: $words" ;;
    esac
done
grep -e "$sandbox" -e "$uid" /proc/self/mountinfo | sed 's/^/mount /'
find /sys/fs/cgroup -type d \( -name "*$sandbox*" -o -name "*$uid*" -o -name "*$cgroup_uid*" \)
find /run/kangaroo /run/containerd/io.containerd.runtime.v2.task -name "$sandbox" 2>/dev/null
true
"""

# The same search until it finds nothing: what a killed sandbox had may go a moment later, when
# containerd and the kernel have come to it.
_UNTIL_NONE = f"""
search() {{
{_SEARCH}
}}
deadline=$(($(date +%s) + $3))
while found=$(search "$1" "$2"); [ -n "$found" ] && [ "$(date +%s)" -lt "$deadline" ]; do
    sleep 0.5
done
echo "$found"
"""


def of(node: Node, sandbox: str, uid: str) -> str:
    """What there is of a sandbox and its pod, a line each."""
    return node.exec(["sh", "-c", _SEARCH, _NAME, sandbox, uid]).stdout


def of_sandbox(node: Node, sandbox: str, *, within_s: float) -> str:
    """What is still there of a sandbox alone, whose pod may live on in another, `within_s` later;
    returns as soon as there is nothing.
    """
    argv = ["sh", "-c", _UNTIL_NONE, _NAME, sandbox, sandbox, f"{within_s:.0f}"]
    return node.exec(argv, timeout_s=within_s + 60).stdout.strip()


def processes(node: Node, sandbox: str, program: str) -> list[str]:
    """The ids of the processes of `program` that name the sandbox."""
    listed = node.exec(["ps", "-e", "-ww", "-o", "pid=,args="]).stdout.splitlines()
    return [line.split()[0] for line in listed if sandbox in line and PROGRAMS[program] in line]


def network_namespaces(node: Node) -> set[str]:
    return set(node.exec(["ls", "/run/netns"]).stdout.split())


def sandboxes(node: Node) -> set[str]:
    """The ids of all sandboxes of which the node has anything: state, a process, a control group
    of theirs.
    """
    script = (
        f"ls {SANDBOXES} 2>/dev/null;"
        " ps -e -ww -o args= | sed -n -e 's/.* -id \\([0-9a-f]\\{64\\}\\) daemon$/\\1/p'"
        " -e 's/.*qemu-system.* kangaroo-\\([0-9a-f]\\{64\\}\\).*/\\1/p'"
        f" -e 's,.*virtiofsd.*{SANDBOXES}/\\([0-9a-f]\\{{64\\}}\\)/.*,\\1,p'"
    )
    return set(node.exec(["sh", "-c", script]).stdout.split())
