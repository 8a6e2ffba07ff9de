"""What the NAS must have of a pod's records: everything that was promised, nothing invented."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.node import records
from tests.node.records import Promises, record

LIFE = "6f0c4b1e-7f0b-4c55-9f5e-0d6b0a3f2a11"
SIZE = len(record(LIFE, 1))


def content(count: int) -> bytes:
    return b"".join(record(LIFE, number + 1) for number in range(count))


def ended(count: int) -> bytes:
    return content(count) + b"end %08d\n" % count


def wrong(data: bytes, *, reported: int = 0, whole: bool = False) -> list[str]:
    promises = Promises({LIFE: reported}, {LIFE} if whole else set())
    return records.broken({LIFE: data}, promises)


@pytest.mark.parametrize(
    ("data", "reported", "whole"),
    [
        (b"", 0, False),
        (content(3), 3, False),
        (content(3), 2, False),  # the report was late
        (content(3) + record(LIFE, 4)[:7], 3, False),
        (content(3) + bytes(SIZE) + record(LIFE, 5), 3, False),  # pages in another order
        (content(3) + bytes(SIZE) + b"end 00000004\n", 3, False),
        (ended(403), 3, True),
        (ended(403), 3, False),
    ],
)
def test_what_may_be(data: bytes, reported: int, whole: bool) -> None:
    assert wrong(data, reported=reported, whole=whole) == []


@pytest.mark.parametrize(
    ("data", "reported", "whole", "why"),
    [
        (content(2), 3, False, "lost"),
        (content(2) + bytes(SIZE), 3, False, "lost"),
        (ended(2), 3, False, "reported"),
        (content(3), 3, True, "not whole"),
        (ended(403)[:-1], 3, True, "not whole"),
        (content(2) + content(1), 2, False, "never written"),  # doubled
        (content(3) + b"another's", 3, False, "never written"),
        (ended(3) + record(LIFE, 4), 3, False, "never written"),
    ],
)
def test_what_may_not_be(data: bytes, reported: int, whole: bool, why: str) -> None:
    assert any(why in each for each in wrong(data, reported=reported, whole=whole))


def test_a_file_that_is_not_there() -> None:
    assert records.broken({}, Promises({LIFE: 1})) == [f"{LIFE}: no file, and 1 were reported"]
    assert records.broken({}, Promises({}, {LIFE})) == [f"{LIFE}: no file, and it had to be whole"]


def test_an_older_report_takes_nothing_back() -> None:
    promises = Promises()
    for number in (3, 2):
        promises.hear({LIFE: number})
    assert promises.reported == {LIFE: 3}


def test_the_script_writes_what_is_expected(tmp_path: Path) -> None:
    """The writer itself, ended after its first report."""
    script = records.SCRIPT.replace("/tmp/", f"{tmp_path}/").replace("/data", str(tmp_path))
    with subprocess.Popen(
        ["sh", "-c", script], env={"POD": "p", "PATH": "/bin:/usr/bin"}, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        life, number = writer.stdout.readline().decode().split()
        writer.terminate()
        rest = writer.stdout.read().decode().splitlines()
    reported = int(rest[-1].split()[1]) if rest else int(number)
    assert (tmp_path / "life").read_text() == f"{life}\n"
    files = {path.name: path.read_bytes() for path in (tmp_path / "p").iterdir()}
    assert records.broken(files, Promises({life: reported}, {life})) == []
    assert files[life].endswith(b"end %08d\n" % (reported + records.LAST))
