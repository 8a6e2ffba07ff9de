"""As much of the protobuf encoding as the ttrpc envelopes need, without the protobuf library.

The agent has only the standard library, and the shim's `start` and `delete` are too short-lived to
import protobuf. See https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from kangaroo.wire.errors import RemoteProtocolError

TYPE_CHECKING = False  # the shim's `start` and `delete` cannot afford typing
if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT = 0
FIXED64 = 1
LENGTH_DELIMITED = 2
FIXED32 = 5

_FIXED_SIZE = {FIXED64: 8, FIXED32: 4}
_MAX_FIELD_NUMBER = (1 << 29) - 1
_UINT64 = (1 << 64) - 1


def encode_varint(value: int) -> bytes:
    """Encode an int64 or uint64; a negative number takes ten bytes, as protobuf has it."""
    value &= _UINT64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_int(number: int, value: int) -> bytes:
    """Field `number` as a varint; nothing for zero, the default."""
    return encode_varint(number << 3 | VARINT) + encode_varint(value) if value else b""


def encode_bytes(number: int, value: bytes) -> bytes:
    """Field `number` as bytes or an embedded message, also when it is empty."""
    return encode_varint(number << 3 | LENGTH_DELIMITED) + encode_varint(len(value)) + value


def encode_string(number: int, value: str) -> bytes:
    """Field `number` as a string; nothing for the empty string, the default."""
    return encode_bytes(number, value.encode()) if value else b""


def decode_varint(data: bytes, offset: int) -> tuple[int, int]:
    """Return the unsigned value at `offset` and the offset behind it."""
    value = 0
    for index in range(10):
        if offset + index >= len(data):
            raise RemoteProtocolError("a varint is cut short")
        byte = data[offset + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value > _UINT64:
                raise RemoteProtocolError("a varint is longer than 64 bits")
            return value, offset + index + 1
    raise RemoteProtocolError("a varint is longer than 10 bytes")


def signed(value: int) -> int:
    """Read a decoded varint as int64."""
    return value - (1 << 64) if value >> 63 else value


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Yield (field number, wire type, value): an int for varints, bytes for everything else.

    Raises `RemoteProtocolError` where the message is cut short or uses groups.
    """
    offset = 0
    while offset < len(data):
        key, offset = decode_varint(data, offset)
        number, kind = key >> 3, key & 7
        if not 0 < number <= _MAX_FIELD_NUMBER:
            raise RemoteProtocolError(f"field number {number} is out of range")
        if kind == VARINT:
            value, offset = decode_varint(data, offset)
            yield number, kind, value
            continue
        size, offset = _size(data, offset, kind)
        if size > len(data) - offset:
            raise RemoteProtocolError(f"field {number} is cut short")
        yield number, kind, data[offset : offset + size]
        offset += size


def _size(data: bytes, offset: int, kind: int) -> tuple[int, int]:
    if kind == LENGTH_DELIMITED:
        return decode_varint(data, offset)
    if kind in _FIXED_SIZE:
        return _FIXED_SIZE[kind], offset
    raise RemoteProtocolError(f"wire type {kind} is not supported")


def as_int(number: int, value: int | bytes) -> int:
    """Check that a known field came as a varint."""
    if not isinstance(value, int):
        raise RemoteProtocolError(f"field {number} must be a varint")
    return value


def as_bytes(number: int, kind: int, value: int | bytes) -> bytes:
    """Check that a known field came length-delimited."""
    if kind != LENGTH_DELIMITED or not isinstance(value, bytes):
        raise RemoteProtocolError(f"field {number} must be length-delimited")
    return value


def as_string(number: int, kind: int, value: int | bytes) -> str:
    """Check that a known field came length-delimited and is UTF-8."""
    try:
        return as_bytes(number, kind, value).decode()
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"field {number} is not UTF-8") from error
