"""Both ends of a ttrpc connection against each other, in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kangaroo.wire.connection import (
    MAX_OPEN_STREAMS,
    ClientConnection,
    RequestReceived,
    ResponseReceived,
    ServerConnection,
)
from kangaroo.wire.envelope import Request, Response, Status, StatusDetail
from kangaroo.wire.errors import LocalProtocolError, RemoteProtocolError
from kangaroo.wire.frame import MAX_PAYLOAD_BYTES, Frame, FrameType, encode_frame
from kangaroo.wire.status import Code

calls = st.lists(st.tuples(st.text("abc", min_size=1), st.binary(max_size=50)), max_size=4)


@given(calls, st.data())
def test_calls_split_at_every_byte(sent: list[tuple[str, bytes]], data: st.DataObject) -> None:
    client, server = ClientConnection(), ServerConnection()
    opened = [client.request("s", method, payload, 5) for method, payload in sent]
    stream = b"".join(chunk for _, chunk in opened)
    cut = data.draw(st.integers(0, len(stream)))
    events = server.receive(stream[:cut]) + server.receive(stream[cut:])
    assert [(e.method, e.payload) for e in events] == sent
    assert [e.stream_id for e in events] == [stream_id for stream_id, _ in opened]

    order = data.draw(st.permutations(events))
    replies = b"".join(server.respond(e.stream_id, e.payload[::-1]) for e in order)
    answers = [a for byte in replies for a in client.receive(bytes([byte]))]
    expected = [ResponseReceived(e.stream_id, e.payload[::-1], Status(Code.OK)) for e in order]
    assert answers == expected


def test_request_carries_everything() -> None:
    server = ServerConnection()
    envelope = Request("svc", "Do", b"p", 7, (("k", "v"),)).encode()
    [event] = server.receive(encode_frame(Frame(5, FrameType.REQUEST, 0, envelope)))
    assert event == RequestReceived(5, "svc", "Do", b"p", 7, (("k", "v"),))


def test_failure_carries_code_message_and_details() -> None:
    client, server = ClientConnection(), ServerConnection()
    stream_id, data = client.request("s", "m", b"")
    server.receive(data)
    status = Status(Code.NOT_FOUND, "no such thing", (StatusDetail("kind", b"facts"),))
    [answer] = client.receive(server.fail(stream_id, status))
    assert answer == ResponseReceived(stream_id, b"", status)


def _request_frame(stream_id: int, *, flags: int = 0, kind: int = FrameType.REQUEST) -> bytes:
    return encode_frame(Frame(stream_id, kind, flags, Request("s", "m").encode()))


@pytest.mark.parametrize(
    "data",
    [
        _request_frame(2),
        _request_frame(3) + _request_frame(3),
        _request_frame(3) + _request_frame(1),
        _request_frame(1, flags=2),
        _request_frame(1, kind=FrameType.DATA),
        _request_frame(1, kind=FrameType.RESPONSE),
        encode_frame(Frame(1, FrameType.REQUEST, 0, b"\x0a\x05")),
    ],
    ids=["even", "reused", "decreasing", "streaming", "data", "response", "garbage"],
)
def test_server_refuses(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        ServerConnection().receive(data)


def test_unknown_frame_types_are_ignored() -> None:
    unknown = encode_frame(Frame(1, 9, 0, b"future"))
    assert ServerConnection().receive(unknown) == []
    assert ClientConnection().receive(unknown) == []


def test_server_bounds_open_calls() -> None:
    server = ServerConnection()
    for index in range(MAX_OPEN_STREAMS):
        server.receive(_request_frame(2 * index + 1))
    with pytest.raises(RemoteProtocolError, match="more than 1024 calls"):
        server.receive(_request_frame(2 * MAX_OPEN_STREAMS + 1))


def test_server_answers_each_stream_once() -> None:
    server = ServerConnection()
    server.receive(_request_frame(1))
    server.respond(1, b"")
    with pytest.raises(LocalProtocolError, match="stream 1 is not open"):
        server.respond(1, b"")
    with pytest.raises(LocalProtocolError, match="stream 3 is not open"):
        server.fail(3, Status(Code.INTERNAL))


def test_oversize_answer_leaves_the_stream_open_to_fail() -> None:
    server = ServerConnection()
    server.receive(_request_frame(1))
    with pytest.raises(LocalProtocolError, match="exceeds"):
        server.respond(1, bytes(MAX_PAYLOAD_BYTES))
    assert server.fail(1, Status(Code.RESOURCE_EXHAUSTED))


def test_an_oversize_failure_is_cut() -> None:
    server, client = ServerConnection(), ClientConnection()
    stream_id, request = client.request("s", "m", b"")
    server.receive(request)
    status = Status(Code.INTERNAL, "x" * MAX_PAYLOAD_BYTES, (StatusDetail("t", b"v"),))
    (answer,) = client.receive(server.fail(stream_id, status))
    assert answer.status.code == Code.INTERNAL
    assert 1000 < len(answer.status.message) < 10_000


def test_a_failure_must_have_a_code() -> None:
    server = ServerConnection()
    server.receive(_request_frame(1))
    with pytest.raises(LocalProtocolError):
        server.fail(1, Status(Code.OK))


def test_client_drops_the_answer_to_a_forgotten_call_once() -> None:
    client, server = ClientConnection(), ServerConnection()
    stream_id, data = client.request("s", "m", b"")
    client.forget(stream_id)
    client.forget(stream_id)
    server.receive(data)
    reply = server.respond(stream_id, b"late")
    assert client.receive(reply) == []
    with pytest.raises(RemoteProtocolError, match="not open"):
        client.receive(reply)


def test_client_refuses_answers_and_requests_it_did_not_ask_for() -> None:
    reply = encode_frame(Frame(1, FrameType.RESPONSE, 0, Response().encode()))
    with pytest.raises(RemoteProtocolError, match="not open"):
        ClientConnection().receive(reply)
    with pytest.raises(RemoteProtocolError, match="a server sent"):
        ClientConnection().receive(_request_frame(1))


def test_client_bounds_open_and_forgotten_calls() -> None:
    client = ClientConnection()
    for _ in range(MAX_OPEN_STREAMS):
        client.forget(client.request("s", "m", b"")[0])
    with pytest.raises(LocalProtocolError, match="calls are open"):
        client.request("s", "m", b"")


def test_oversize_request_is_not_opened() -> None:
    client = ClientConnection()
    with pytest.raises(LocalProtocolError, match="exceeds"):
        client.request("s", "m", bytes(MAX_PAYLOAD_BYTES))
    assert client.request("s", "m", b"")[0] == 1
