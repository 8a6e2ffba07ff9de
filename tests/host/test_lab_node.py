"""Copies to a node, and what `deploy` changes there: with commands run on this machine in its
place.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kangaroo.errors import CommandFailed
from kangaroo_lab import deployment
from kangaroo_lab.network import Network
from kangaroo_lab.node import Node
from kangaroo_lab.ssh import Keys

pytestmark = pytest.mark.host


class Here(Keys):
    """In place of ssh: runs what the node should run, with `directory` as its root if it is one."""

    def command(self, address: str, *remote: str, terminal: bool = False) -> list[str]:
        if not (self.directory / "etc").exists():
            return list(remote)
        binds = (f"/{name}" for name in ("bin", "lib", "lib64", "usr"))
        system = [word for path in binds for word in ("--ro-bind", path, path)]
        root = ["bwrap", "--bind", str(self.directory), "/", *system, "--dev", "/dev"]
        path = ["--setenv", "PATH", "/stubs:/usr/bin:/bin"]
        return [*root, *path, "--", *remote]


def node(root: Path) -> Node:
    return Node(1, Network(), root, root, Here(root, "kangaroo-t"))


def test_a_file_and_a_directory_are_copied(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/file").write_text("content")
    node(tmp_path).copy_to(source, str(tmp_path / "copy"))
    node(tmp_path).copy_to(source / "sub/file", str(tmp_path / "copy/other"))
    assert (tmp_path / "copy/sub/file").read_text() == "content"
    assert (tmp_path / "copy/other").read_text() == "content"


def test_a_file_that_is_not_there_replaces_nothing(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("before")
    with pytest.raises(FileNotFoundError):
        node(tmp_path).copy_to(tmp_path / "absent", str(target))
    assert target.read_text() == "before"


def test_a_directory_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tar that reads meets an error after the first file, as of a disk that fails."""
    programs, source = tmp_path / "programs", tmp_path / "source"
    programs.mkdir()
    source.mkdir()
    (source / "file").touch()
    tar = programs / "tar"
    fails = "case $* in *-cf*) echo 'tar: file: Input/output error' >&2; exit 2 ;; esac"
    tar.write_text(f'#!/bin/sh\n/bin/tar "$@"\n{fails}\n')
    tar.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    with pytest.raises(CommandFailed, match="Input/output error"):
        node(tmp_path).copy_to(source, str(tmp_path / "copy"))


def test_a_shell_that_fails_on_the_node_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandFailed, match="absent"):
        node(tmp_path).copy_to(tmp_path / "file", str(tmp_path / "absent/file"))


PACKAGE = "opt/kangaroo/lib/kangaroo/__init__.py"
CNI, CONTAINERD = "etc/cni/net.d/10-kangaroo.conflist", "etc/containerd/config.toml"
# What the node's own programs would do; coreutils here may be too old to exchange.
STUBS = {
    "systemctl": 'echo "$@" >>/called',
    "systemd-sysusers": "true",
    "systemd-tmpfiles": "true",
    "mv": 'eval "to=\\${$#}"; rm -r "$to"; eval "from=\\${$(($# - 1))}"; cp -r "$from" "$to"',
}


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    write(root, **{PACKAGE: "old", CNI: "networks", CONTAINERD: "left by a test"})
    write(root, **{f"stubs/{name}": f"#!/bin/sh\n{text}\n" for name, text in STUBS.items()})
    for stub in (root / "stubs").iterdir():
        stub.chmod(0o755)
    return root


def test_only_configuration_that_differs_is_replaced_and_its_service_restarted(
    root: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    write(tree, **{PACKAGE: "new", CNI: "networks", CONTAINERD: "ours"})
    as_it_was = (root / CNI).stat().st_ino
    deployment.deploy_tree(node(root), tree)
    assert (root / PACKAGE).read_text() == "new"
    assert (root / CONTAINERD).read_text() == "ours"
    assert (root / CNI).stat().st_ino == as_it_was
    called = (root / "called").read_text().splitlines()
    assert called == ["daemon-reload", "restart containerd", "restart kangaroo-csi"]
    assert not (root / "opt/kangaroo/.stage").exists()
