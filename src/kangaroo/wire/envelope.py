"""The messages inside request and response frames: ttrpc.Request, ttrpc.Response and
google.rpc.Status.

Decoding skips unknown fields, as protobuf asks, and refuses everything else that is out of shape
with `RemoteProtocolError`.
"""

from __future__ import annotations

from typing import NamedTuple

from kangaroo.wire.errors import RemoteProtocolError
from kangaroo.wire.protobuf import (
    as_bytes,
    as_int,
    as_string,
    encode_bytes,
    encode_int,
    encode_string,
    fields,
    signed,
)

_DETAIL_LIMIT = 16  # of one status


class StatusDetail(NamedTuple):
    """A google.protobuf.Any."""

    type_url: str
    value: bytes

    def encode(self) -> bytes:
        """Return the protobuf encoding."""
        return encode_string(1, self.type_url) + encode_bytes(2, self.value)

    @classmethod
    def decode(cls, data: bytes) -> StatusDetail:
        """Read the protobuf encoding."""
        type_url, content = "", b""
        for number, kind, value in fields(data):
            if number == 1:
                type_url = as_string(number, kind, value)
            elif number == 2:
                content = as_bytes(number, kind, value)
        return cls(type_url, content)


class Status(NamedTuple):
    """How a call ended: `code` is a gRPC code (`kangaroo.wire.status.Code`), 0 for success."""

    code: int
    message: str = ""
    details: tuple[StatusDetail, ...] = ()

    def encode(self) -> bytes:
        """Return the protobuf encoding."""
        # A message may name a path, which need not be UTF-8; protobuf's strings are.
        message = self.message.encode(errors="backslashreplace").decode()
        parts = [encode_int(1, self.code), encode_string(2, message)]
        parts += [encode_bytes(3, detail.encode()) for detail in self.details]
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Status:
        """Read the protobuf encoding."""
        code, message = 0, ""
        details: list[StatusDetail] = []
        for number, kind, value in fields(data):
            if number == 1:
                code = signed(as_int(number, value))
            elif number == 2:
                message = as_string(number, kind, value)
            elif number == 3:
                if len(details) == _DETAIL_LIMIT:
                    raise RemoteProtocolError(f"a status has more than {_DETAIL_LIMIT} details")
                details.append(StatusDetail.decode(as_bytes(number, kind, value)))
        return cls(code, message, tuple(details))


class Request(NamedTuple):
    """A call. `timeout_ns` 0 means without a deadline."""

    service: str
    method: str
    payload: bytes = b""
    timeout_ns: int = 0
    metadata: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """Return the protobuf encoding."""
        parts = [encode_string(1, self.service), encode_string(2, self.method)]
        if self.payload:
            parts.append(encode_bytes(3, self.payload))
        parts.append(encode_int(4, self.timeout_ns))
        parts += [
            encode_bytes(5, encode_string(1, key) + encode_string(2, text))
            for key, text in self.metadata
        ]
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Read the protobuf encoding."""
        service = method = ""
        payload, timeout_ns, metadata = b"", 0, []
        for number, kind, value in fields(data):
            if number == 1:
                service = as_string(number, kind, value)
            elif number == 2:
                method = as_string(number, kind, value)
            elif number == 3:
                payload = as_bytes(number, kind, value)
            elif number == 4:
                timeout_ns = signed(as_int(number, value))
            elif number == 5:
                metadata.append(_decode_pair(as_bytes(number, kind, value)))
        return cls(service, method, payload, timeout_ns, tuple(metadata))


class Response(NamedTuple):
    """The answer to a call. A missing status is success."""

    payload: bytes = b""
    status: Status | None = None

    def encode(self) -> bytes:
        """Return the protobuf encoding."""
        status = b"" if self.status is None else encode_bytes(1, self.status.encode())
        return status + (encode_bytes(2, self.payload) if self.payload else b"")

    @classmethod
    def decode(cls, data: bytes) -> Response:
        """Read the protobuf encoding."""
        payload, status = b"", None
        for number, kind, value in fields(data):
            if number == 1:
                status = Status.decode(as_bytes(number, kind, value))
            elif number == 2:
                payload = as_bytes(number, kind, value)
        return cls(payload, status)


def _decode_pair(data: bytes) -> tuple[str, str]:
    key = text = ""
    for number, kind, value in fields(data):
        if number == 1:
            key = as_string(number, kind, value)
        elif number == 2:
            text = as_string(number, kind, value)
    return key, text
