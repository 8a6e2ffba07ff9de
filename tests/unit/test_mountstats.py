"""The NFS client's counters, as the kernel shows them and as a hostile guest may."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kangaroo.nas import mountstats
from kangaroo.nas.mountstats import Operation, Statistics

# In the format of Linux 6.12, NFS 3 over one connection and 4.1 with nconnect=2; the long lists are
# cut, the figures made up.
V3 = """\
device 192.0.2.1:/csi/a\\040b mounted on /mnt/v\\0403 with fstype nfs statvers=1.1
\topts:\trw,vers=3,rsize=1048576,wsize=1048576,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys
\tage:\t83
\tcaps:\tcaps=0x3fc7,wtmult=4096,dtsize=1048576,bsize=0,namlen=255
\tsec:\tflavor=1,pseudoflavor=1
\tevents:\t3 22 0 0 2 4 31 2048 0 1 0 8 0 0 5 0 0 0 0 0 0 2048 0 0 0 0 0
\tbytes:\t11 22 33 44 8388608 4194304 2048 1024
\tRPC iostats version: 1.1  p/v: 100003/3 (nfs)
\txprt:\ttcp 765 1 2 0 -3 1300 1299 0 9000 0 12 40 77
\tper-op statistics
\t        NULL: 1 1 0 40 24 0 1 1 0
\t     GETATTR: 22 22 0 3000 2464 1 18 20 0
\t      LOOKUP: 4 4 0 616 600 0 3 4 1
\t        READ: 8 10 1 1100 8389632 2 400 420 0
\t       WRITE: 4 4 0 4195000 640 5 90 101 0
\t     READLINK: 0 0 0 0 0 0 0 0 0

"""
V41 = """\
device nas.example.com:/csi mounted on /mnt/v41 with fstype nfs4 statvers=1.1
\topts:\trw,vers=4.1,nconnect=2,clientaddr=192.0.2.9
\tage:\t12
\timpl_id:\tname='',domain='',date='0,0'
\tcaps:\tcaps=0xffbffff,wtmult=512,dtsize=1048576,bsize=0,namlen=255
\tnfsv4:\tbm0=0xfdffbfff,bm1=0xf9be3e,bm2=0x0,acl=0x3,sessions,pnfs=not configured,lease_time=60
\tevents:\t0
\tbytes:\t0 0 0 0 1 2 0 0
\tRPC iostats version: 1.1  p/v: 100003/4 (nfs)
\txprt:\ttcp 0 0 1 0 7 30 30 0 35 0 2 4 4
\txprt:\ttcp 0 0 3 0 7 12 10 0 35 0 2 4 4
\tper-op statistics
\t        NULL: 1 1 0 44 24 0 0 0 0
\t        OPEN: 2 2 0 700 800 0 3 4 1
"""
OTHERS = """\
device proc mounted on /proc with fstype proc
device /dev/vda1 mounted on / with fstype ext4
no device mounted on /odd with fstype fuse
"""


def test_version_3() -> None:
    (found,) = mountstats.parse(OTHERS + V3 + OTHERS)
    assert (found.source, found.mount_point, found.fstype) == (
        "192.0.2.1:/csi/a b",
        "/mnt/v 3",
        "nfs",
    )
    assert (found.read_bytes, found.written_bytes) == (8388608, 4194304)
    assert (found.requests, found.replies, found.connections) == (1300, 1299, 2)
    assert found.operations["READ"] == Operation(8, 10, 1, 1100, 8389632, 2, 400, 420, 0)
    assert found.operations["READ"].retransmissions == 2
    assert found.operations["LOOKUP"].errors == 1
    assert list(found.operations)[:2] == ["NULL", "GETATTR"]


def test_connections_of_one_mount_are_added_up() -> None:
    (found,) = mountstats.parse(V41)
    assert (found.requests, found.replies, found.connections) == (42, 40, 4)
    assert set(found.operations) == {"NULL", "OPEN"}


def test_only_what_is_wanted_is_read() -> None:
    damaged = V3.replace("NULL: 1", "NULL: -1")
    found = mountstats.parse(damaged + V41, {"/mnt/v41"}.__contains__)
    assert [one.source for one in found] == ["nas.example.com:/csi"]


def test_kernels_without_errors_and_other_transports() -> None:
    (old,) = mountstats.parse(V3.replace("1 18 20 0\n", "1 18 20\n"))
    assert old.operations["GETATTR"].errors == 0
    (udp,) = mountstats.parse(V3.replace("tcp 765 1 2 0 -3 1300", "udp 765 1 5 4 0 0"))
    assert (udp.requests, udp.replies, udp.connections) == (5, 4, 0)
    (new,) = mountstats.parse(V3.replace("xprt:\ttcp", "xprt:\tquic"))
    assert (new.requests, new.replies, new.connections) == (0, 0, 0)


def test_a_mount_without_counters_has_zeroes() -> None:
    (found,) = mountstats.parse("device a:/b mounted on /c with fstype nfs4 statvers=1.1\n")
    assert found == Statistics("a:/b", "/c", "nfs4", 0, 0, 0, 0, 0, {})


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("NULL: 1", "NULL: -1", "-1"),
        ("NULL: 1", "NULL: 1_0", "1_0"),
        ("NULL: 1", "NULL: ٣", "no counter"),
        ("NULL: 1", f"NULL: {'9' * 21}", "999"),
        ("1 18 20 0\n", "1 18\n", "too few"),
        ("NULL", "no operation", "not an operation"),
        ("8388608 4194304 2048 1024", "", "too few"),
        ("1300 1299", "1300 x", "'x'"),
        ("READLINK:", "\n".join(f"X{number}: 0 0 0 0 0 0 0 0" for number in range(130)), "128"),
        ("\txprt:", "\txprt: tcp 0 0 0 0 0 0 0 0\n" * 300 + "\txprt:", "transports"),
        ("\tage:", "\tage:" + "x" * mountstats.SECTION_LIMIT, "too long"),
    ],
)
def test_what_cannot_be_read_is_named(old: str, new: str, named: str) -> None:
    assert old in V3
    with pytest.raises(ValueError, match=named):
        mountstats.parse(V3.replace(old, new, 1))


@pytest.mark.parametrize(
    ("text", "named"),
    [("", "0 mounts"), (V3 + V41, "2 mounts"), (OTHERS, "0 mounts"), (V3 + "\n" * 70000, "many")],
)
def test_a_guest_tells_of_one_mount(text: str, named: str) -> None:
    assert mountstats.parse_one(V41).source == "nas.example.com:/csi"
    with pytest.raises(ValueError, match=named):
        mountstats.parse_one(text)


LINES = st.lists(
    st.sampled_from([*V3.split("\n"), *V41.split("\n"), *OTHERS.split("\n")])
    | st.text(max_size=60)
    | st.text("0123456789 -:\t\\device mounted on with fstype nfs", max_size=80)
)


@given(LINES.map("\n".join))
def test_a_hostile_text_is_read_or_is_a_value_error(text: str) -> None:
    try:
        found = mountstats.parse(text)
    except ValueError:
        return
    for one in found:
        assert len(one.operations) <= 128
        assert all(0 <= figure.rtt_ms < 10**20 for figure in one.operations.values())


@given(st.data())
def test_a_damaged_text_is_read_or_is_a_value_error(data: st.DataObject) -> None:
    text = V3 + V41
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    damaged = text[:start] + data.draw(st.text(max_size=10)) + text[end:]
    try:
        found = mountstats.parse(damaged)
    except ValueError:
        return
    assert len(found) <= 3
