"""The lab itself: what the other tests take for granted, shown with the node's own runtime."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.node import pods, waiting
from tests.node.pods import container, pod

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab

pytestmark = pytest.mark.node

SERVE = (
    "echo started; echo served > /tmp/index.html; httpd -p 8080 -h /tmp; "
    "while read line; do echo got $line; done; sleep 9999"
)
CONFIGURATION = (
    "/etc/kangaroo/runtime.toml",
    "/etc/kangaroo/csi.toml",
    "/etc/containerd/config.toml",
)
VERSIONS = {"3": "vers=3,nolock", "4.0": "vers=4.0", "4.1": "vers=4.1", "4.2": "vers=4.2"}


@pytest.fixture(scope="module")
def space(lab: Lab) -> Iterator[pods.Space]:
    with pods.opened(lab, "lab") as space:
        space.apply(pod("one", container("main", SERVE, stdin=True), runtime=None))
        waiting.ready(space, "one")
        yield space


def mount(lab: Lab, options: str, path: str, *, namespace: str | None = None) -> tuple[int, str]:
    """Mount `path` of the NAS for a moment on node1, in a pod's network if told; status, text."""
    script = f"""
        target=$(mktemp -d)
        mount -t nfs -o {options},timeo=50,retrans=1,retry=0 {lab.nas.address}:{path} "$target" ||
            {{ status=$?; rmdir "$target"; exit $status; }}
        grep " $target " /proc/self/mountinfo
        umount "$target" && rmdir "$target"
    """
    enter = ["ip", "netns", "exec", namespace] if namespace else []
    done = lab.nodes["node1"].exec([*enter, "sh", "-c", script], check=False)
    return done.status, done.stdout + done.stderr


def test_bringing_it_up_again_changes_nothing(lab: Lab) -> None:
    before = dict(lab.store.daemons)
    assert lab.up(len(lab.nodes)) is False
    assert lab.store.daemons == before
    assert lab.up(1) is False


def test_clocks_agree(lab: Lab) -> None:
    script = "date +%s >&2; date +%s"
    node = int(lab.nodes["node1"].exec(["sh", "-c", script]).stdout)
    machine = int(subprocess.run(["date", "+%s"], capture_output=True, check=True).stdout)
    assert abs(node - machine) < 10


def test_deploying_puts_right_what_a_killed_session_changed(lab: Lab) -> None:
    node = lab.nodes["node1"]
    content = ["cat", *CONFIGURATION]
    kubelet = ["systemctl", "show", "--value", "--property=MainPID", "kubelet"]
    before, running = node.exec(content).stdout, node.exec(kubelet).stdout
    script = "for file; do echo '# left by a test' >>$file; done; systemctl stop kangaroo-csi"
    node.exec(["sh", "-ec", script, "left", *CONFIGURATION])
    lab.deploy(guest=False)
    assert node.exec(content).stdout == before
    node.exec(["systemctl", "is-active", "kangaroo-csi", "containerd"])
    assert node.exec(kubelet).stdout == running  # its configuration was as it should be


def test_what_is_kept_of_a_failure_has_the_logs_of_sandboxes(lab: Lab, space: pods.Space) -> None:
    space.apply(pod("sandboxed", container("main")))
    waiting.ready(space, "sandboxed")
    kept = lab.save_journals("kept")
    sandbox = space.sandbox(space.uid("sandboxed"))
    with tarfile.open(kept / "kept-node1.tar") as archive:
        names = {name for name in archive.getnames() if sandbox in name}
    for name in ("console.log", "qemu.log", "virtiofsd.log", "shim.log", "state.json"):
        assert f"./{sandbox}/{name}" in names
    assert "kubelet" in (kept / "kept-node1.log").read_text()
    space.delete("sandboxed")


def test_exec_logs_attach_copy_and_port_forward(space: pods.Space, tmp_path: Path) -> None:
    assert space.say("one", "echo $((6 * 7))") == "42"
    assert "got hello" in space.attach("one", "main", "hello\n", until="got")
    assert space.kubectl("logs", "one").stdout.splitlines()[0] == "started"
    local = tmp_path / "file"
    local.write_text("data")
    space.kubectl("cp", str(local), "one:/tmp/file")
    assert space.say("one", "cat /tmp/file") == "data"
    assert space.fetch("one", 8080) == "served"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_nas_serves_every_version(lab: Lab, version: str) -> None:
    status, text = mount(lab, VERSIONS[version], "/csi")
    assert status == 0, text
    assert f"vers={version}," in text


def test_the_nas_tells_a_pod_from_a_node(lab: Lab, space: pods.Space) -> None:
    sandbox = space.sandbox(space.uid("one"))
    script = f"ctr -n k8s.io containers info {sandbox}"
    node = lab.nodes["node1"]
    info = node.exec(["sh", "-c", f"{script} | grep -o '/var/run/netns/cni-[0-9a-f-]*' | head -1"])
    namespace = Path(info.stdout.strip()).name
    assert mount(lab, VERSIONS["3"], pods.NODE_ONLY)[0] == 0
    assert mount(lab, VERSIONS["3"], "/csi", namespace=namespace)[0] == 0
    status, text = mount(lab, VERSIONS["3"], pods.NODE_ONLY, namespace=namespace)
    assert status != 0
    assert "denied" in text or "not permitted" in text


def test_a_missing_export_is_refused(lab: Lab) -> None:
    for options in VERSIONS.values():
        assert mount(lab, options, "/csi-absent")[0] != 0


def test_what_the_nas_holds_is_on_the_machine(lab: Lab) -> None:
    (lab.nas.root / "csi" / "from-the-machine").write_text("seen")
    try:
        script = "d=$(mktemp -d); mount -t nfs -o vers=3,nolock $0:/csi $d && cat $d/$1; umount $d"
        done = lab.nodes["node1"].exec(["sh", "-c", script, lab.nas.address, "from-the-machine"])
        assert done.stdout == "seen"
    finally:
        (lab.nas.root / "csi" / "from-the-machine").unlink()
