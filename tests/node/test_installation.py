"""A node is made one of Kangaroo's, upgraded and left by typing what docs/operations.md says.

The commands are read from the page. Two are not typed as they stand: a node of the lab has no
package registry, and its guest image was built by the lab.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.node import pods, unsynced, waiting
from tests.node.pods import DRIVER, PASSTHROUGH, container, pod

import kangaroo
from kangaroo_lab import artefacts
from kangaroo_lab.tree import CHECKOUT

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.node import Node

pytestmark = pytest.mark.soak

PAGE = CHECKOUT / "docs" / "operations.md"
STAGE = "/root/checkout"
COMMANDS_S = 600
NEXT = f"{kangaroo.__version__}+next"
# What the node gets instead of packages from a registry, and of an image that it would build.
REPLACED = {
    r"pip install --target (\S+) .*": r"mkdir -p \1 && cp -rT --preserve=timestamps python \1",
    r"make venv .*": "true",
}
STEP = r"^(\d+)\. \*\*"
CONFIG = "/etc/containerd/config.toml"
WITHOUT_RUNTIME = f"""
import sys
from pathlib import Path
config = Path("{CONFIG}")
before, found, after = config.read_text().partition(sys.stdin.read())
sys.exit("the page's lines are not there") if not found else config.write_text(before + after)
"""
# Of files with such a name those that the lab, kubelet and the CNI plugins have.
OF_OTHERS = (
    r"/kangaroo-(images|ready|node)\.(service|sh)$|/containerd\.service\.d/"
    r"|^/etc/(modprobe|modules-load|sysctl|ssh|initramfs-tools|systemd/(system|journald)\.conf)"
    r"|/cni/|/plugins/kubernetes\.io/|^/run/(systemd|udev)/"
)
TRACES = f"""
find / /run -xdev \\( -name '*kangaroo*' -o -name '{DRIVER}*' \\) -not -path '/root/*' |
    grep -v -E '{OF_OTHERS}'
ps -e -ww -o args= | grep -i -E '[k]angaroo-(csi|v2)'
grep -i -e '/kangaroo' -e {DRIVER} /proc/self/mountinfo
getent passwd kangaroo
true
"""


def section(title: str) -> str:
    text = PAGE.read_text()
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def step(number: int) -> str:
    """A step of the installation."""
    parts = re.split(STEP, section("Install"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[str(number)]


def blocks(text: str, language: str = "console") -> list[str]:
    """The blocks of code of a language, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def do(node: Node, *typed: str, release: str) -> None:
    """Type what these blocks have root type, in the checkout, until a command fails."""
    lines = "".join(typed).splitlines()
    script = "\n".join(line.removeprefix("# ") for line in lines if line.startswith("# "))
    for pattern, replacement in REPLACED.items():
        script = re.sub(pattern, replacement, script)
    script = re.sub(r"\bIMAGE\b", "image", re.sub(r"\bRELEASE\b", release, script))
    print(script)
    node.exec(["sh", "-c", f"set -ex\ncd {STAGE}\n{script}"], timeout_s=COMMANDS_S)


def volume_pod(name: str, node: Node) -> pods.Document:
    one = container("one", mounts={"/data": "nas"})
    return pod(name, one, annotations=PASSTHROUGH, volumes=[pods.claim("nas")], nodeName=node.name)


def versions(node: Node) -> dict[str, str]:
    """The version of each pod's shim."""
    listed = node.exec(["/usr/local/bin/kangaroo", "sandboxes", "--json"], timeout_s=60).stdout
    return {one["pod"]["name"]: one["shim"]["version"] for one in json.loads(listed)}


@pytest.fixture(scope="module")
def node(second_node: Node) -> Node:
    """With a checkout, the dependencies in its lock, and a guest image."""
    for name in ("src/kangaroo", "deploy"):
        second_node.copy_to(CHECKOUT / name, f"{STAGE}/{name}")
    second_node.copy_to(artefacts.node_python(), f"{STAGE}/python")
    second_node.copy_to(artefacts.guest_image(), f"{STAGE}/image")
    return second_node


@pytest.fixture(scope="module")
def directory(lab: Lab) -> Path:
    where: Path = lab.nas.root / "csi" / "installation"
    where.mkdir(exist_ok=True)
    where.chmod(0o777)
    return where


@pytest.fixture(scope="module")
def space(lab: Lab, node: Node, directory: Path) -> Iterator[pods.Space]:
    with pods.opened(lab, "installation") as space:
        space.apply(*space.nas("nas", path="/csi/installation"))
        yield space


def test_uninstalled_node_has_nothing_left(space: pods.Space, node: Node) -> None:
    space.apply(volume_pod("first", node))
    waiting.ready(space, "first")
    space.lab.kubectl("drain", node.name, "--force", "--ignore-daemonsets", timeout_s=COMMANDS_S)
    (runtime,) = blocks(step(6), "toml")
    node.exec(["python3", "-c", WITHOUT_RUNTIME], input=runtime)
    do(node, *blocks(section("Uninstall")), release="")
    assert node.exec(["sh", "-c", TRACES]).stdout == ""


def test_installed_node_runs_a_pod_with_its_volume_in_the_guest(
    space: pods.Space, node: Node
) -> None:
    (runtime,) = blocks(step(6), "toml")
    node.exec(["sh", "-c", f"cat >> {CONFIG}"], input=runtime)
    do(node, *blocks(section("Install")), release="one")
    space.apply(volume_pod("second", node))
    waiting.ready(space, "second")
    assert space.say("second", "mount | grep /data | grep -c nfs") == "1"


def test_upgrade_under_a_running_pod(space: pods.Space, node: Node, directory: Path) -> None:
    """It goes on, its container starts again, and what it did not sync is written back."""
    expected = unsynced.write(space, "second", "/data/unsynced", directory / "unsynced")
    assert versions(node) == {"second": kangaroo.__version__}
    place = f"{STAGE}/src/kangaroo/__init__.py"
    node.exec(["sed", "-i", f's/^__version__ = .*/__version__ = "{NEXT}"/', place])
    first, last = blocks(section("Upgrade"))
    again = [block for number in (2, 4, 5, 7) for block in blocks(step(number))]
    do(node, first, *again, last, release="two")
    space.apply(volume_pod("third", node))
    waiting.ready(space, "third")
    assert versions(node) == {"second": kangaroo.__version__, "third": NEXT}
    space.delete("second")
    assert pods.sha256((directory / "unsynced").read_bytes()) == expected
    assert space.say("third", "mount | grep /data | grep -c nfs") == "1"
    space.delete("third")
    assert node.exec(["ls", "/run/kangaroo/sandboxes"]).stdout == ""
