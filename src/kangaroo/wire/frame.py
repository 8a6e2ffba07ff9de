"""ttrpc frames: a 10-byte header and a payload of at most 4 MiB.

Header, big-endian: payload length (4), stream id (4), type (1), flags (1). See PROTOCOL.md of
containerd/ttrpc.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from kangaroo.wire.errors import LocalProtocolError, RemoteProtocolError

HEADER = Struct(">IIBB")
MAX_PAYLOAD_BYTES = 4 << 20
MAX_STREAM_ID = (1 << 32) - 1


class FrameType(IntEnum):
    """What a frame carries. A receiver ignores types that it does not know."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class Frame(NamedTuple):
    """One frame. `type` is a plain int because a peer may send a type that this version does not
    know.
    """

    stream_id: int
    type: int
    flags: int
    payload: bytes


def encode_frame(frame: Frame) -> bytes:
    """Return the frame's bytes. Raises `LocalProtocolError` when a part does not fit its field."""
    size = len(frame.payload)
    if size > MAX_PAYLOAD_BYTES:
        raise LocalProtocolError(f"a payload of {size} bytes exceeds {MAX_PAYLOAD_BYTES}")
    if not 0 < frame.stream_id <= MAX_STREAM_ID:
        raise LocalProtocolError(f"stream id {frame.stream_id} is out of range")
    if not (0 <= frame.type <= 0xFF and 0 <= frame.flags <= 0xFF):
        raise LocalProtocolError(f"type {frame.type} or flags {frame.flags} is not a byte")
    return HEADER.pack(size, frame.stream_id, frame.type, frame.flags) + frame.payload


class FrameDecoder:
    """Cuts a byte stream into frames. Holds at most one unfinished frame between calls."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes.

        Raises `RemoteProtocolError` as soon as a header announces a payload beyond the limit,
        before its bytes are read; the decoder is of no use after that.
        """
        self._buffer += data
        frames: list[Frame] = []
        offset = 0
        while len(self._buffer) - offset >= HEADER.size:
            size, stream_id, kind, flags = HEADER.unpack_from(self._buffer, offset)
            if size > MAX_PAYLOAD_BYTES:
                raise RemoteProtocolError(
                    f"stream {stream_id}: a payload of {size} bytes exceeds {MAX_PAYLOAD_BYTES}"
                )
            end = offset + HEADER.size + size
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[offset + HEADER.size : end])
            frames.append(Frame(stream_id, kind, flags, payload))
            offset = end
        del self._buffer[:offset]
        return frames
