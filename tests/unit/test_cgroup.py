"""What an OCI cgroups path names, and how the first process gets there."""

from __future__ import annotations

from pathlib import Path

import pytest

from kangaroo.linux import cgroup
from kangaroo.linux.cgroup import Scope, memory_bounded, memory_limit, parse
from kangaroo.vmm.confinement import Confinement, NewScope


def test_a_path_is_below_the_root() -> None:
    assert parse("/kubepods/burstable/podU/abc") == Path(
        "/sys/fs/cgroup/kubepods/burstable/podU/abc"
    )


def test_systemds_form_is_a_scope_in_nested_slices() -> None:
    scope = parse("kubepods-besteffort-podU_1.slice:cri-containerd:abc")
    assert scope == Scope("kubepods-besteffort-podU_1.slice", "cri-containerd-abc.scope")
    assert scope.path == Path(
        "/sys/fs/cgroup/kubepods.slice/kubepods-besteffort.slice"
        "/kubepods-besteffort-podU_1.slice/cri-containerd-abc.scope"
    )


def test_no_slice_means_systems() -> None:
    assert parse(":cri:abc") == Scope("system.slice", "cri-abc.scope")


@pytest.mark.parametrize("path", ["", "/", "/a/../b", "a//b", "x.slice:../..:y", "/./a"])
def test_a_path_that_leaves_the_root_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not usable"):
        parse(path)


def test_the_first_process_makes_the_scope() -> None:
    confinement = Confinement(new_scope=NewScope("pod.slice", "cri-abc.scope", 9))
    assert confinement.descriptors == (9,)
    assert confinement.wrap(("virtiofsd", "--fd=3")) == (
        "systemd-run",
        "--scope",
        "--quiet",
        "--collect",
        "--slice=pod.slice",
        "--unit=cri-abc.scope",
        "--description=Sandbox of a pod",
        "--property=Delegate=yes",
        "--property=DefaultDependencies=no",
        "--property=Before=kangaroo-sandboxes.service",
        "--",
        "/bin/sh",
        "-ec",
        'echo >"/proc/self/fd/$1"; shift; exec "$@"',
        "in-scope",
        "9",
        "virtiofsd",
        "--fd=3",
    )


def test_the_memory_of_a_pod_is_bounded_where_its_group_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    pod = tmp_path / "kubepods.slice" / "kubepods-pod1.slice"
    pod.mkdir(parents=True)
    name = "kubepods-pod1.slice:cri-containerd:abc"
    assert memory_bounded(name)  # nothing is known
    assert memory_limit(name) is None
    for content, limit in (("max\n", None), ("134217728\n", 134217728)):
        (pod / "memory.max").write_text(content)
        for either in (name, "/kubepods.slice/kubepods-pod1.slice/abc"):
            assert memory_bounded(either) is (limit is not None)
            assert memory_limit(either) == limit
    assert memory_bounded(None)
