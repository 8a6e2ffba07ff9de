"""Ids of provisioned volumes: round trip, and what nobody can make of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kangaroo.csi import volume_id
from kangaroo.csi.volume_id import LIMIT_BYTES, Kind, VolumeId
from kangaroo.errors import InvalidRequest

TOKEN = volume_id.token_of("pvc-1")


def made(**changes: str) -> VolumeId:
    fields = {"version": "3", "server": "192.0.2.1", "base": "/csi", "token": TOKEN} | changes
    return VolumeId(kind=Kind.DIRECTORY, **fields)


@pytest.mark.parametrize(
    "one",
    [
        made(),
        made(server="[2001:db8::1]", version="4.1"),
        made(base="/"),
        made(base="/ü/100%/#x"),
        VolumeId(Kind.SHARE, "4.2", "nas.example.com", "/a/b", TOKEN),
    ],
)
def test_round_trip(one: VolumeId) -> None:
    assert volume_id.decode(one.encode()) == one


def test_the_form_is_kept() -> None:
    """Ids live in PersistentVolumes: a driver that writes another form has to read this one too."""
    assert made(server="[::1]").encode() == f"k1:d:3:[%3A%3A1]:/csi:{TOKEN}"
    assert TOKEN == "6kdi4gvhzk3gsul43h22wg3zk4"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "192.0.2.1#csi#pvc-1#",  # of csi-driver-nfs
        f"k2:d:3:192.0.2.1:/csi:{TOKEN}",
        f"k1:x:3:192.0.2.1:/csi:{TOKEN}",
        f"k1:d:5:192.0.2.1:/csi:{TOKEN}",
        f"k1:d:3::/csi:{TOKEN}",
        f"k1:d:3:192.0.2.1:csi:{TOKEN}",
        f"k1:d:3:192.0.2.1:/csi/../etc:{TOKEN}",
        f"k1:d:3:192.0.2.1:/csi/%2E%2E/etc:{TOKEN}",
        f"k1:d:3:192.0.2.1:%2Fcsi:{TOKEN}",
        f"k1:d:3:192.0.2.1:/csi%00:{TOKEN}",
        f"k1:d:3:192.0.2.1:/csi/:{TOKEN}",
        f"k1:d:3:192.0.2.1:/csi:../../{TOKEN}",
        f"k1:d:3:192.0.2.1:/csi:{TOKEN.upper()}",
        f"k1:d:3:192.0.2.1:/csi:{TOKEN}\n",
        f"k1:d:3:192.0.2.1:/csi:{TOKEN[:-1]}",
        f"k1:d:3:192.0.2.1:/csi:{TOKEN}:more",
    ],
)
def test_what_is_not_ours_is_none(text: str) -> None:
    assert volume_id.decode(text) is None


@given(st.text() | st.from_regex(r"k1:[ds]:[34]:[^:]{0,20}:/[^:]{0,20}:[a-z2-7]{26}"))
def test_whatever_is_decoded_is_what_would_be_encoded(text: str) -> None:
    found = volume_id.decode(text)
    if found is not None:
        assert str(found) == text
        assert found.base.startswith("/")
        assert ".." not in found.base.split("/")
        assert "\0" not in found.base + found.server


def test_a_share_that_makes_ids_too_long_is_refused() -> None:
    room = LIMIT_BYTES - len(str(made(base="/")))
    assert len(made(base="/" + "a" * room).encode()) == LIMIT_BYTES
    with pytest.raises(InvalidRequest, match="1 bytes too long"):
        made(base="/" + "a" * (room + 1)).encode()


def test_a_snapshots_id_is_no_volumes() -> None:
    one = VolumeId(Kind.SNAPSHOT, "4.2", "nas.example.com", "/a/b", TOKEN)
    assert one.encode() == f"k1:n:4.2:nas.example.com:/a/b:{TOKEN}"
    assert volume_id.decode_snapshot(one.encode()) == one
    assert volume_id.decode(one.encode()) is None
    assert volume_id.decode_snapshot(made().encode()) is None
    assert volume_id.decode_snapshot(f"k1:n:3:192.0.2.1:/csi/../etc:{TOKEN}") is None
