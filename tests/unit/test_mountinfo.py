"""The mount table: reading it, and finding the mount that a path lies on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kangaroo.linux import mountinfo
from kangaroo.linux.mountinfo import MountEntry

TABLE = r"""26 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard
27 26 0:22 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw
40 26 0:45 / /var/lib/kubelet/pods/u\040id/mount rw,relatime shared:200 master:3 - nfs4 \
192.0.2.1:/csi/a\134b\011c rw,vers=4.2,rsize=1048576,addr=192.0.2.1
41 26 0:50 / /mnt rw - tmpfs  rw,context="a:b:c0,c1",mode=755
""".replace("\\\n", "")


def entry(mount_id: int, parent_id: int, mount_point: str) -> MountEntry:
    return MountEntry(
        mount_id=mount_id,
        parent_id=parent_id,
        device="0:1",
        root="/",
        mount_point=mount_point,
        options=("rw",),
        propagation=(),
        fstype="tmpfs",
        source=str(mount_id),
        super_options=("rw",),
    )


def test_fields_are_read_and_unescaped() -> None:
    nfs = mountinfo.parse(TABLE)[2]
    assert nfs == MountEntry(
        mount_id=40,
        parent_id=26,
        device="0:45",
        root="/",
        mount_point="/var/lib/kubelet/pods/u id/mount",
        options=("rw", "relatime"),
        propagation=("shared:200", "master:3"),
        fstype="nfs4",
        source="192.0.2.1:/csi/a\\b\tc",
        super_options=("rw", "vers=4.2", "rsize=1048576", "addr=192.0.2.1"),
    )


def test_optional_fields_and_an_empty_source() -> None:
    tmpfs = mountinfo.parse(TABLE)[3]
    assert tmpfs.propagation == ()
    assert tmpfs.source == ""
    assert tmpfs.super_options == ("rw", 'context="a:b:c0,c1"', "mode=755")


@pytest.mark.parametrize("line", ["", "26 1 254:1 / / rw", "x 1 0:1 / / rw - ext4 a rw", "1 2 3 4"])
def test_an_unreadable_line_is_named(line: str) -> None:
    if not line:
        assert mountinfo.parse(line) == ()
        return
    with pytest.raises(ValueError, match="not a line of a mount table"):
        mountinfo.parse(line)


def test_the_own_table_has_a_root() -> None:
    root = mountinfo.at("/", mountinfo.read())
    assert root is not None
    assert root.mount_point == "/"


def test_covering_takes_whole_components() -> None:
    entries = (entry(1, 0, "/"), entry(2, 1, "/data"))
    assert mountinfo.covering("/database", entries) == entries[0]
    assert mountinfo.covering("/data/x", entries) == entries[1]
    assert mountinfo.covering("/data/../etc", entries) == entries[0]
    assert mountinfo.at("/data/", entries) == entries[1]
    assert mountinfo.at("/data/x", entries) is None
    assert mountinfo.covering("/data", ()) is None


def test_the_topmost_of_a_stack_is_found() -> None:
    # The placeholder over a volume; the table's order says nothing.
    entries = (entry(3, 2, "/data"), entry(1, 0, "/"), entry(2, 1, "/data"))
    assert mountinfo.at("/data", entries) == entries[0]


def test_a_hidden_mount_is_not_found() -> None:
    """/a/b was mounted first, then something over /a: the path /a/b lies on the latter."""
    entries = (entry(1, 0, "/"), entry(2, 1, "/a/b"), entry(3, 1, "/a"))
    assert mountinfo.covering("/a/b/c", entries) == entries[2]
    assert mountinfo.at("/a/b", entries) is None


def escape(text: str) -> str:
    """As the kernel writes a field (mangle in fs/seq_file.c)."""
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in text)


fields = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)


@given(fields, fields)
def test_any_path_survives_the_table(mount_point: str, source: str) -> None:
    mount_point = f"/{mount_point}"
    line = f"5 4 0:9 / {escape(mount_point)} rw master:7 - nfs {escape(source)} rw,vers=3\n"
    (read,) = mountinfo.parse(line)
    assert (read.mount_point, read.source) == (mount_point, source)


paths = st.lists(st.sampled_from("abc"), max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(st.lists(paths, max_size=8), paths)
def test_covering_is_what_mounting_one_after_another_gives(points: list[str], path: str) -> None:
    """The model: a mount goes on top of what covers its mount point at that time."""
    entries = [entry(1, 0, "/")]
    for number, point in enumerate(points, start=2):
        below = mountinfo.covering(point, entries)
        assert below is not None
        entries.append(entry(number, below.mount_id, point))
    # The last mount on a prefix of the path hides every earlier one.
    hits = [e for e in entries if mountinfo.covering(path, [e]) == e]
    assert mountinfo.covering(path, entries[::-1]) == model(hits)


@given(st.lists(paths, max_size=8), paths, st.sampled_from(("", " x")))
def test_finding_is_reading_it_all(points: list[str], path: str, suffix: str) -> None:
    lines = ["1 0 0:1 / / rw - ext4 root rw"]
    for number, point in enumerate(points, start=2):
        below = mountinfo.covering(point + suffix, mountinfo.parse("\n".join(lines)))
        assert below is not None
        mount_point = escape(point + suffix)
        lines.append(f"{number} {below.mount_id} 0:1 / {mount_point} rw - nfs source rw")
    text = "\n".join(lines) + "\n"
    with tempfile.NamedTemporaryFile("w") as table:
        table.write(text)
        table.flush()
        found = mountinfo.find(path + suffix, table.name)
    assert found == mountinfo.at(path + suffix, mountinfo.parse(text))


def test_an_unreadable_line_is_named_when_finding(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("1 0 0:1 /\n")
    with pytest.raises(ValueError, match="not a line of a mount table: '1 0 0:1 /'"):
        mountinfo.find("/a", table)


def model(hits: list[MountEntry]) -> MountEntry:
    """Whoever is mounted later on a shorter or equal prefix hides what was there."""
    visible: list[MountEntry] = []
    for hit in hits:
        visible = [v for v in visible if len(v.mount_point) < len(hit.mount_point)] + [hit]
    return visible[-1]
