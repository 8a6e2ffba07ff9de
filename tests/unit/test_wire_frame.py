"""Frames: the bytes of the header, limits, and cutting a stream at any byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kangaroo.wire.errors import LocalProtocolError, RemoteProtocolError
from kangaroo.wire.frame import MAX_PAYLOAD_BYTES, Frame, FrameDecoder, FrameType, encode_frame

frames = st.builds(
    Frame,
    stream_id=st.integers(1, 2**32 - 1),
    type=st.integers(0, 255),
    flags=st.integers(0, 255),
    payload=st.binary(max_size=300),
)
MORE = Frame(1, 1, 0, b"abcdef")


def test_header_bytes() -> None:
    frame = Frame(0x01020304, FrameType.REQUEST, 0x80, b"abc")
    assert encode_frame(frame) == bytes.fromhex("00000003 01020304 01 80") + b"abc"


@given(st.lists(frames, max_size=5))
def test_round_trip_split_at_every_byte(sent: list[Frame]) -> None:
    data = b"".join(map(encode_frame, sent))
    for cut in range(len(data) + 1):
        decoder = FrameDecoder()
        assert decoder.feed(data[:cut]) + decoder.feed(data[cut:]) == sent
        assert decoder.feed(encode_frame(MORE)) == [MORE]


@given(st.lists(frames, max_size=5))
def test_one_byte_at_a_time(sent: list[Frame]) -> None:
    decoder = FrameDecoder()
    data = b"".join(map(encode_frame, sent))
    received = [frame for byte in data for frame in decoder.feed(bytes([byte]))]
    assert received == sent


def test_unfinished_frame_is_pending() -> None:
    decoder, data = FrameDecoder(), encode_frame(MORE)
    assert decoder.feed(data[:-1]) == []
    assert decoder.feed(data[-1:]) == [MORE]


def test_largest_payload_passes() -> None:
    frame = Frame(1, FrameType.RESPONSE, 0, bytes(MAX_PAYLOAD_BYTES))
    assert FrameDecoder().feed(encode_frame(frame)) == [frame]


def test_oversize_is_refused_at_the_header() -> None:
    header = (MAX_PAYLOAD_BYTES + 1).to_bytes(4) + bytes.fromhex("00000001 02 00")
    with pytest.raises(RemoteProtocolError, match="stream 1: a payload of 4194305 bytes"):
        FrameDecoder().feed(header)


@pytest.mark.parametrize(
    "frame",
    [
        Frame(1, 1, 0, bytes(MAX_PAYLOAD_BYTES + 1)),
        Frame(0, 1, 0, b""),
        Frame(2**32, 1, 0, b""),
        Frame(1, 256, 0, b""),
        Frame(1, 1, -1, b""),
    ],
)
def test_what_does_not_fit_is_not_encoded(frame: Frame) -> None:
    with pytest.raises(LocalProtocolError):
        encode_frame(frame)
