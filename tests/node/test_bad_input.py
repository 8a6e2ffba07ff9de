"""What cannot work ends in bounded time, with an error that names it, and leaves nothing behind.

The error is where a user looks for it: in `kubectl describe pod`. All pods that only their own
input makes fail are created at once and judged one by one. Those that need a broken node come
after them, one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from tests.node import pods, waiting
from tests.node.pods import ENABLE, PASSTHROUGH, container, pod

if TYPE_CHECKING:
    from kangaroo_lab.lab import Lab
    from kangaroo_lab.node import Node

# The driver's own deadline of one mount is shorter; kubelet's next try is not awaited.
REFUSED_S = 480
GUEST = "/var/lib/kangaroo/guest"
CONFIG = "/etc/kangaroo/runtime.toml"
UNREACHABLE = "{unreachable}"


Breaking = Callable[["Node"], AbstractContextManager[None]]


@dataclass(frozen=True)
class Case:
    """A pod that must not start: what is wrong with its volume or annotation, and what the
    error must say."""

    says: Sequence[str]
    volume: Mapping[str, Any] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=lambda: PASSTHROUGH)


CASES = {
    "unresolvable": Case([r"nas\.invalid"], {"server": "nas.invalid"}),
    "unreachable": Case([UNREACHABLE], {"server": UNREACHABLE}),
    "no-export": Case([r"/csi-absent"], {"path": "/csi-absent", "options": "ro"}),
    "version": Case([r"vers", r"\b5\b"], {"vers": "5"}),
    "option": Case([r"frobnicate"], {"options": "nolock,frobnicate=7"}),
    "annotation-yes": Case([ENABLE, r"yes"], annotations={ENABLE: "yes"}),
    "annotation-case": Case([ENABLE, r"True "], annotations={ENABLE: "True "}),
    "fallback-value": Case(
        [pods.FALLBACK, r"runc"], annotations={**PASSTHROUGH, pods.FALLBACK: "runc"}
    ),
    "path-relative": Case([r"path", r"csi/sub", r"absolute"], {"path": "csi/sub"}),
    "path-parent": Case([r"path", r"\.\."], {"path": "/csi/../secret"}),
    "path-comma": Case([r"path", r"/csi,ro"], {"path": "/csi,ro"}),
    "path-nul": Case([r"path", r"NUL|control|\\x00|\\u0000"], {"path": "/csi\0/x"}),
    "server-comma": Case([r"server", r"addr="], {"server": "192.0.2.1,addr=192.0.2.2"}),
    "server-nul": Case([r"server", r"NUL|control|\\x00|\\u0000"], {"server": "nas\0evil"}),
    "server-parent": Case([r"server", r"\.\."], {"server": "../nas"}),
}


def case_pod(space: pods.Space, name: str, case: Case) -> list[pods.Document]:
    attributes = dict(case.volume)
    if "server" in attributes:
        attributes["server"] = filled(space, attributes["server"])
    one = container("main", mounts={"/data": name})
    volume = space.nas(name, **attributes)
    return [*volume, pod(name, one, annotations=case.annotations, volumes=[pods.claim(name)])]


def filled(space: pods.Space, text: str) -> str:
    return text.replace(UNREACHABLE, unreachable(space.lab))


def unreachable(lab: Lab) -> str:
    """An address on the NAS's network that nobody has."""
    return lab.nas.address.rpartition(".")[0] + ".251"


@pytest.fixture(scope="module")
def space(lab: Lab) -> Iterator[pods.Space]:
    with pods.opened(lab, "bad-input") as space:
        everything = [each for name, case in CASES.items() for each in case_pod(space, name, case)]
        space.apply(*everything)
        yield space


def assert_refused(space: pods.Space, name: str, says: Sequence[str]) -> None:
    """One event of the pod says all of `says`; `kubectl describe pod` shows it; then the pod
    can be deleted."""
    together = "".join(f"(?=[\\s\\S]*(?:{each}))" for each in says)
    waiting.event(space, name, together, timeout_s=REFUSED_S)
    assert re.search(together, space.describe(name))
    assert "running" not in space.status(name, "main")["state"]
    # Its end is not awaited, only its tries; the last test sees that nothing stays of any.
    space.delete(name, wait=False)


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused(space: pods.Space, name: str) -> None:
    assert_refused(space, name, [filled(space, each) for each in CASES[name].says])


def test_export_that_refuses_the_guest(space: pods.Space) -> None:
    one = container("main", mounts={"/data": "refusing"})
    volume = space.nas("refusing", path=pods.NODE_ONLY)
    space.apply(
        *volume, pod("refusing", one, annotations=PASSTHROUGH, volumes=[pods.claim("refusing")])
    )
    waiting.event(space, "refusing", "guest", timeout_s=REFUSED_S + waiting.START_S)
    address = space.get("refusing")["status"].get("podIP", "")
    server = space.lab.nas.address
    says = [server, pods.NODE_ONLY, "nolock", address, "EACCES|[Pp]ermission denied"]
    assert_refused(space, "refusing", says)


def simple(name: str) -> pods.Document:
    return pod(name, container("main"))


@contextmanager
def renamed(node: Node, path: str) -> Iterator[None]:
    """`path` of the node is away for the duration of the block."""
    node.exec(["mv", path, f"{path}.away"])
    try:
        yield
    finally:
        node.exec(["mv", f"{path}.away", path])


@contextmanager
def truncated_initrd(node: Node) -> Iterator[None]:
    """Sandboxes start from a guest image whose initrd is cut short, and wait for the guest for
    only a short time."""
    copy = "/var/lib/kangaroo/guest-truncated"
    script = f"""
        mkdir {copy}
        for file in vmlinuz rootfs.erofs manifest.json; do
            ln -s "$(readlink -f {GUEST})/$file" {copy}/
        done
        head -c 4096 {GUEST}/initrd.img > {copy}/initrd.img
    """
    node.exec(["sh", "-e", "-c", script])
    try:
        with renamed(node, GUEST):
            node.exec(["ln", "-s", copy, GUEST])
            try:
                yield
            finally:
                node.exec(["rm", GUEST])
    finally:
        node.exec(["rm", "-r", copy])


@contextmanager
def configured(node: Node, text: str) -> Iterator[None]:
    """The runtime's configuration says `text` for the duration of the block."""
    with renamed(node, CONFIG):
        node.exec(["sh", "-c", f"cat > {CONFIG}"], input=text)
        yield


BROKEN_NODES: Mapping[str, tuple[Breaking, Sequence[str]]] = {
    "no-image": (lambda node: renamed(node, GUEST), [GUEST]),
    "no-kvm": (lambda node: renamed(node, "/dev/kvm"), ["/dev/kvm"]),
    "bad-config": (lambda node: configured(node, "frobnicate = 1"), [CONFIG, "frobnicate"]),
    "silent-guest": (truncated_initrd, ["guest (ended before|did not connect)"]),
}


@pytest.mark.parametrize("name", BROKEN_NODES)
def test_broken_node_is_named(space: pods.Space, name: str) -> None:
    breaking, says = BROKEN_NODES[name]
    with breaking(space.node):
        space.apply(simple(name))
        assert_refused(space, name, says)


def test_nothing_stays_on_the_node(space: pods.Space) -> None:
    """After all of the above nothing of this namespace is on the node, and a good pod starts."""
    gone = ["wait", "--for=delete", f"--timeout={waiting.START_S}s", "pod", "--all"]
    space.kubectl(*gone, timeout_s=waiting.START_S + 30)
    table = space.node.exec(["cat", "/proc/self/mountinfo"]).stdout.splitlines()
    assert [line for line in table if space.name in line] == []
    assert space.node.exec(["ls", "/run/kangaroo/sandboxes"]).stdout.split() == []
    space.apply(simple("good"))
    waiting.ready(space, "good")
