"""Which archives Debian's packages come from: what apt says, with sources of the test's own."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from kangaroo.errors import FailedPrecondition
from kangaroo.guest import debian

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt")


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of apt's sources, on a machine that has read no lists."""
    for name in ("KANGAROO_DEBIAN_MIRROR", "KANGAROO_DEBIAN_SECURITY_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    parts = tmp_path / "sources.list.d"
    for directory in (parts, tmp_path / "lists/partial"):
        directory.mkdir(parents=True)
    config = tmp_path / "apt.conf"
    config.write_text(
        f'Dir::Etc::SourceList "/dev/null";\nDir::Etc::SourceParts "{parts}";\n'
        f'Dir::State::Lists "{tmp_path}/lists";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(config))
    return parts


def write(sources: Path, *uris: str) -> None:
    for number, uri in enumerate(uris):
        text = f"Types: deb\nURIs: {uri}\nSuites: stable\nComponents: main\n"
        (sources / f"{number}.sources").write_text(text)


def test_archives_are_found_though_no_lists_were_read(sources: Path) -> None:
    other, main = "https://packages.example/thing", "http://mirror.example/debian"
    write(sources, other, main, f"{main}-security")
    assert debian.mirror() == main
    assert debian.security_mirror() == f"{main}-security"


def test_archives_are_found_in_lists_of_mirrors(sources: Path, tmp_path: Path) -> None:
    """As Debian's images for clouds have it."""
    mirrors = tmp_path / "mirrors"
    mirrors.mkdir()
    (mirrors / "debian.list").write_text(
        "# a comment, with https://no.example/debian\n\n"
        "https://first.example/debian/\tpriority:1\nhttps://second.example/debian\n"
    )
    (mirrors / "debian-security.list").write_text("https://first.example/debian-security\n")
    write(sources, *(f"mirror+file://{path}" for path in sorted(mirrors.iterdir(), reverse=True)))
    assert debian.mirror() == "https://first.example/debian"
    assert debian.security_mirror() == "https://first.example/debian-security"


def test_without_an_archive_the_error_says_what_there_is(sources: Path, tmp_path: Path) -> None:
    write(sources, "https://packages.example/thing", f"mirror+file:{tmp_path}/absent.list")
    with pytest.raises(FailedPrecondition, match="KANGAROO_DEBIAN_MIRROR") as raised:
        debian.mirror()
    assert "https://packages.example/thing/, mirror+file:" in str(raised.value)
    assert debian.security_mirror() is None


def test_without_sources_the_error_says_that(sources: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no archive at all"):
        debian.mirror()


def test_packages_without_security_updates_are_warned_of(
    sources: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(sources, "http://mirror.example/debian")
    with caplog.at_level(logging.WARNING):
        assert debian._security() == []
    assert "no security updates" in caplog.text


def test_variables_come_before_what_apt_has(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(sources, "http://mirror.example/debian", "http://mirror.example/debian-security")
    monkeypatch.setenv("KANGAROO_DEBIAN_MIRROR", "http://own.example/debian/")
    monkeypatch.setenv("KANGAROO_DEBIAN_SECURITY_MIRROR", "")
    assert debian.mirror() == "http://own.example/debian"
    assert debian.security_mirror() is None
