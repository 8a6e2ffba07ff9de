"""The two ends of a ttrpc connection as state machines: bytes in, events out. No I/O.

Only unary calls: neither containerd's Task API nor the agent protocol streams. Both ends hold at
most `MAX_OPEN_STREAMS` calls, and a peer that goes past a limit or breaks an order gets a
`RemoteProtocolError`, after which the connection must be closed.
"""

from __future__ import annotations

from typing import NamedTuple

from kangaroo.wire.envelope import Request, Response, Status
from kangaroo.wire.errors import LocalProtocolError, RemoteProtocolError
from kangaroo.wire.frame import (
    MAX_PAYLOAD_BYTES,
    MAX_STREAM_ID,
    Frame,
    FrameDecoder,
    FrameType,
    encode_frame,
)
from kangaroo.wire.status import Code

MAX_OPEN_STREAMS = 1024
_CUT_MESSAGE = 4096  # characters


class RequestReceived(NamedTuple):
    """A call that the peer made; answer it by `stream_id`, once."""

    stream_id: int
    service: str
    method: str
    payload: bytes
    timeout_ns: int
    metadata: tuple[tuple[str, str], ...]


class ResponseReceived(NamedTuple):
    """The answer to the call on `stream_id`. `status.code` is 0 when it succeeded."""

    stream_id: int
    payload: bytes
    status: Status


class ServerConnection:
    """The end that answers."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self._open: set[int] = set()
        self._last_stream_id = 0

    def receive(self, data: bytes) -> list[RequestReceived]:
        """Take bytes from the peer; return the calls that they complete."""
        events = []
        for frame in self._decoder.feed(data):
            if frame.type == FrameType.REQUEST:
                events.append(self._request(frame))
            elif frame.type in (FrameType.RESPONSE, FrameType.DATA):
                raise RemoteProtocolError(
                    f"stream {frame.stream_id}: a client sent a frame of type {frame.type}"
                )
        return events

    def respond(self, stream_id: int, payload: bytes) -> bytes:
        """Return the bytes of a success.

        Raises `LocalProtocolError` when the stream is not open or the payload too large; in the
        latter case the stream stays open and can still be failed.
        """
        return self._finish(stream_id, Response(payload))

    def fail(self, stream_id: int, status: Status) -> bytes:
        """Return the bytes of a failure; one that no frame holds loses its details and the end of
        its message. Raises `LocalProtocolError` when the stream is not open.
        """
        if status.code == Code.OK:
            raise LocalProtocolError("a failure needs a code that is not OK")
        if len(Response(status=status).encode()) > MAX_PAYLOAD_BYTES:
            status = Status(status.code, status.message[:_CUT_MESSAGE])
        return self._finish(stream_id, Response(status=status))

    def _request(self, frame: Frame) -> RequestReceived:
        stream_id = frame.stream_id
        if stream_id % 2 != 1 or stream_id <= self._last_stream_id:
            raise RemoteProtocolError(
                f"stream id {stream_id} after {self._last_stream_id} is not odd and increasing"
            )
        if frame.flags:
            raise RemoteProtocolError(f"stream {stream_id}: streaming calls are not supported")
        if len(self._open) >= MAX_OPEN_STREAMS:
            raise RemoteProtocolError(f"more than {MAX_OPEN_STREAMS} calls are open")
        request = Request.decode(frame.payload)
        self._last_stream_id = stream_id
        self._open.add(stream_id)
        return RequestReceived(stream_id, *request)

    def _finish(self, stream_id: int, response: Response) -> bytes:
        if stream_id not in self._open:
            raise LocalProtocolError(f"stream {stream_id} is not open")
        data = encode_frame(Frame(stream_id, FrameType.RESPONSE, 0, response.encode()))
        self._open.discard(stream_id)
        return data


class ClientConnection:
    """The end that calls."""

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self._open: set[int] = set()
        self._forgotten: set[int] = set()
        self._next_stream_id = 1

    def request(
        self, service: str, method: str, payload: bytes, timeout_ns: int = 0
    ) -> tuple[int, bytes]:
        """Open a call; return its stream id and the bytes to send.

        Raises `LocalProtocolError` when the payload is too large or too many calls are unanswered.
        """
        stream_id = self._next_stream_id
        if len(self._open) + len(self._forgotten) >= MAX_OPEN_STREAMS:
            raise LocalProtocolError(f"more than {MAX_OPEN_STREAMS} calls are open")
        if stream_id > MAX_STREAM_ID:
            raise LocalProtocolError("the connection has no stream ids left")
        envelope = Request(service, method, payload, timeout_ns).encode()
        data = encode_frame(Frame(stream_id, FrameType.REQUEST, 0, envelope))
        self._next_stream_id += 2
        self._open.add(stream_id)
        return stream_id, data

    def forget(self, stream_id: int) -> None:
        """Give a call up: its answer, should it still come, is dropped. A repeat does nothing."""
        if stream_id in self._open:
            self._open.discard(stream_id)
            self._forgotten.add(stream_id)

    def receive(self, data: bytes) -> list[ResponseReceived]:
        """Take bytes from the peer; return the answers that they complete."""
        events = []
        for frame in self._decoder.feed(data):
            if frame.type == FrameType.RESPONSE:
                event = self._response(frame)
                if event is not None:
                    events.append(event)
            elif frame.type in (FrameType.REQUEST, FrameType.DATA):
                raise RemoteProtocolError(
                    f"stream {frame.stream_id}: a server sent a frame of type {frame.type}"
                )
        return events

    def _response(self, frame: Frame) -> ResponseReceived | None:
        if frame.stream_id in self._forgotten:
            self._forgotten.discard(frame.stream_id)
            return None
        if frame.stream_id not in self._open:
            raise RemoteProtocolError(f"an answer on stream {frame.stream_id}, which is not open")
        response = Response.decode(frame.payload)
        self._open.discard(frame.stream_id)
        return ResponseReceived(
            frame.stream_id, response.payload, response.status or Status(Code.OK)
        )
