"""The cache: complete artefacts only, named by what they are made from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kangaroo_lab import cache


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KANGAROO_CACHE", str(tmp_path))
    return tmp_path


def builder(text: str, calls: list[str]) -> cache.Build:
    def build(output: Path) -> None:
        calls.append(text)
        (output / "file").write_text(text)

    return build


def test_is_built_once() -> None:
    calls: list[str] = []
    first = cache.artefact("thing", cache.digest("a"), builder("a", calls))
    again = cache.artefact("thing", cache.digest("a"), builder("b", calls))
    assert first == again
    assert calls == ["a"]
    assert (again / "file").read_text() == "a"


def test_other_inputs_are_another_artefact() -> None:
    calls: list[str] = []
    paths = {cache.artefact("thing", cache.digest(x), builder(x, calls)) for x in ("a", "b")}
    assert len(paths) == 2
    assert calls == ["a", "b"]


def test_a_failed_build_leaves_nothing(directory: Path) -> None:
    def fail(output: Path) -> None:
        (output / "half").write_text("")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        cache.artefact("thing", cache.digest("a"), fail)
    assert cache.lookup("thing", cache.digest("a")) is None
    assert [path.name for path in directory.iterdir()] == ["locks"]


def test_what_is_touched_outlives_newer_ones(directory: Path) -> None:
    used = cache.artefact("thing", cache.digest("used"), builder("used", []))
    (used / "root").mkdir()
    for age, text in enumerate("abc"):
        os.utime(cache.artefact("thing", cache.digest(text), builder(text, [])), (age, age))
    os.utime(used, (0, 0))
    cache.touch(used / "root")
    cache.artefact("thing", cache.digest("d"), builder("d", []))
    assert used.is_dir()
    for elsewhere in (Path(), directory, directory / "gone-1" / "root"):
        cache.touch(elsewhere)


def test_old_versions_go_and_other_names_stay(directory: Path) -> None:
    other = cache.artefact("thing-else", cache.digest("o"), builder("o", []))
    os.utime(other, (0, 0))
    built = []
    for age, text in enumerate("abcde"):
        built.append(cache.artefact("thing", cache.digest(text), builder(text, [])))
        os.utime(built[-1], (age + 1, age + 1))
    kept = [path for path in built if path.exists()]
    assert kept == built[-cache.KEPT_VERSIONS :]
    assert other.exists()


def test_what_a_killed_build_left_goes_with_the_next(directory: Path) -> None:
    (directory / ".thing-abcd1234").mkdir()
    (directory / ".thing-else-abcd1234").mkdir()
    cache.artefact("thing", cache.digest("a"), builder("a", []))
    assert not (directory / ".thing-abcd1234").exists()
    assert (directory / ".thing-else-abcd1234").exists()


def test_boundaries_of_parts_count() -> None:
    assert cache.digest("ab", "c") != cache.digest("a", "bc")
    assert cache.digest("a") == cache.digest(b"a")


def test_names_of_files_count(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("same")
    two.write_text("same")
    assert cache.digest_files(tmp_path, [one]) != cache.digest_files(tmp_path, [two])
    assert cache.digest_files(tmp_path, [one, two]) == cache.digest_files(tmp_path, [two, one])
