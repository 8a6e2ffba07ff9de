"""Envelopes: round trips, agreement with the protobuf library, and refusal of broken input."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from kangaroo.wire import protobuf
from kangaroo.wire.envelope import Request, Response, Status, StatusDetail
from kangaroo.wire.errors import RemoteProtocolError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
int64 = st.integers(-(2**63), 2**63 - 1)
requests = st.builds(
    Request,
    service=text,
    method=text,
    payload=st.binary(max_size=200),
    timeout_ns=int64,
    metadata=st.lists(st.tuples(text, text), max_size=3).map(tuple),
)
details = st.builds(StatusDetail, type_url=text, value=st.binary(max_size=50))
statuses = st.builds(
    Status,
    code=st.integers(-(2**31), 2**31 - 1),
    message=text,
    details=st.lists(details, max_size=3).map(tuple),
)
responses = st.builds(Response, payload=st.binary(max_size=200), status=st.none() | statuses)


@given(requests)
def test_request_round_trip(request: Request) -> None:
    assert Request.decode(request.encode()) == request


@given(responses)
def test_response_round_trip(response: Response) -> None:
    assert Response.decode(response.encode()) == response


@given(st.binary(max_size=100))
def test_noise_is_decoded_or_refused(data: bytes) -> None:
    for message in (Request, Response, Status):
        try:
            message.decode(data)
        except RemoteProtocolError:
            pass


@given(requests, st.integers(6, 1000), st.binary(max_size=20))
def test_unknown_fields_are_skipped(request: Request, number: int, content: bytes) -> None:
    unknown = [
        protobuf.encode_bytes(number, content),
        protobuf.encode_int(number, 7),
        protobuf.encode_varint(number << 3 | protobuf.FIXED64) + bytes(8),
        protobuf.encode_varint(number << 3 | protobuf.FIXED32) + bytes(4),
    ]
    data = b"".join([unknown[0], unknown[2], request.encode(), unknown[1], unknown[3]])
    assert Request.decode(data) == request


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("0a05616263", "field 1 is cut short"),
        ("0a", "varint is cut short"),
        ("08 01", "field 1 must be length-delimited"),
        ("0a02fffe", "field 1 is not UTF-8"),
        ("22 00", "field 4 must be a varint"),
        ("0b", "wire type 3"),
        ("00", "field number 0"),
        ("20 ffffffffffffffffff7f", "longer than 64 bits"),
        ("20 ffffffffffffffffffffff", "longer than 10 bytes"),
    ],
)
def test_broken_request_is_refused(data: str, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        Request.decode(bytes.fromhex(data))


def test_a_status_of_very_many_details_is_refused() -> None:
    """They take a peer two bytes each, and us a hundred."""
    assert len(Status.decode(b"\x1a\x00" * 16).details) == 16
    with pytest.raises(RemoteProtocolError, match="more than 16 details"):
        Status.decode(b"\x1a\x00" * 17)


def test_a_message_that_is_not_utf8_is_told_all_the_same() -> None:
    """It may name a path (mountinfo has those of other encodings with surrogates)."""
    told = Status.decode(Status(13, "mount nas:/caf\udce9 failed").encode())
    assert told.message == "mount nas:/caf\\udce9 failed"


def _request_class() -> Any:
    """ttrpc.Request as the protobuf library builds it from the published field numbers."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    pair = file.message_type.add(name="KeyValue")
    for number, name in enumerate(["key", "value"], 1):
        pair.field.add(name=name, number=number, type=kinds.TYPE_STRING, label=1)
    request = file.message_type.add(name="Request")
    types = [kinds.TYPE_STRING, kinds.TYPE_STRING, kinds.TYPE_BYTES, kinds.TYPE_INT64]
    names = ["service", "method", "payload", "timeout_nano"]
    for number, (name, kind) in enumerate(zip(names, types, strict=True), 1):
        request.field.add(name=name, number=number, type=kind, label=1)
    request.field.add(
        name="metadata", number=5, type=kinds.TYPE_MESSAGE, type_name=".t.KeyValue", label=3
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Request"))


REQUEST_CLASS = _request_class()


@given(requests)
def test_request_agrees_with_the_protobuf_library(request: Request) -> None:
    peer = REQUEST_CLASS.FromString(request.encode())
    assert (peer.service, peer.method, peer.payload) == request[:3]
    assert peer.timeout_nano == request.timeout_ns
    assert tuple((pair.key, pair.value) for pair in peer.metadata) == request.metadata
    assert Request.decode(peer.SerializeToString()) == request


@given(details)
def test_detail_agrees_with_any(detail: StatusDetail) -> None:
    peer = any_pb2.Any.FromString(detail.encode())
    assert (peer.type_url, peer.value) == detail
    assert StatusDetail.decode(peer.SerializeToString()) == detail
