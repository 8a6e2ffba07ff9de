"""What names an artefact: everything that decides what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from kangaroo_lab import artefacts, cache, gobuild, payload, workload_image
from kangaroo_lab.payload import Parts


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], str]:
    """The inputs of the artefact that a function asks for; nothing is built."""
    inputs: list[str] = []

    def artefact(_: str, asked_for: str, __: cache.Build) -> Path:
        inputs.append(asked_for)
        return tmp_path

    monkeypatch.setattr(cache, "artefact", artefact)

    def name(of: Callable[[], object]) -> str:
        of()
        return inputs[-1]

    return name


@pytest.mark.parametrize(
    ("artefact", "module", "attribute"),
    [
        (artefacts.kubernetes, artefacts, "_KUBERNETES_PROGRAMS"),
        (artefacts.kubernetes, gobuild, "_FLAGS"),
        (artefacts.probe, gobuild, "_FLAGS"),
        (artefacts.csi_sanity, gobuild, "_LINKER_FLAGS"),
        (artefacts.node_python, artefacts, "_FOR_NODE"),
        (artefacts.oci_images, workload_image, "IMAGE"),
        (artefacts.oci_images, workload_image, "PROGRAM"),
        (artefacts.host_tools, cache, "REFRESH"),
        (artefacts.guest_image, cache, "REFRESH"),
        (artefacts.node_root, cache, "REFRESH"),
        (gobuild.go_root, cache, "REFRESH"),
    ],
)
def test_another_recipe_is_another_artefact(
    artefact: Callable[[], object],
    module: ModuleType,
    attribute: str,
    named: Callable[[Callable[[], object]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = named(artefact)
    assert named(artefact) == before
    value = getattr(module, attribute)
    monkeypatch.setattr(module, attribute, value + ("x" if isinstance(value, str) else ("x",)))
    assert named(artefact) != before


def parts(directory: Path) -> Parts:
    for name in ("kubernetes", "guest"):
        (directory / name).mkdir()
    (directory / "stage").mkdir()
    (directory / "guest" / "vmlinuz").write_text("kernel")
    return Parts(
        host_tools=directory,
        kubernetes=directory / "kubernetes",
        node_python=directory,
        guest_image=directory / "guest",
        images=(),
        pause_image="pause",
    )


def test_a_node_gets_kubelet_and_the_guest_image(tmp_path: Path) -> None:
    built = parts(tmp_path)
    for name in ("kubelet", "kube-apiserver"):
        (built.kubernetes / name).write_text("program")
    payload._programs(tmp_path / "stage", built)
    assert [path.name for path in (tmp_path / "stage/bin").iterdir()] == ["kubelet"]
    assert [path.name for path in (tmp_path / "stage/guest").iterdir()] == ["vmlinuz"]


def test_a_program_that_was_not_built_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="kubelet"):
        payload._programs(tmp_path / "stage", parts(tmp_path))
