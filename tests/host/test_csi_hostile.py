"""Whatever a request says, the driver answers with OK or a code of gRPC that says what is wrong.

Every verb of the Node and the Controller service gets requests of which some fields are valid and
some are not. The driver runs in a network namespace without a network and in a mount namespace of
its own, so nothing that it tries reaches anything.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.host.test_csi import Driver, start, stop

from kangaroo.csi.volume_id import Kind, VolumeId, token_of
from kangaroo.linux import mountinfo
from kangaroo.wire.gen import csi_pb2 as csi

ALONE = ("unshare", "--net", "--mount", "--propagation", "private")
NODE, CONTROLLER = (csi.DESCRIPTOR.services_by_name[name] for name in ("Node", "Controller"))
VERBS = [method for service in (NODE, CONTROLLER) for method in service.methods]
PROPER = set(grpc.StatusCode) - {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
CALL_S = 30
# Requests of each verb; more of them where time is no object.
EXAMPLES = int(os.environ.get("EXAMPLES", "60"))
# What errors call a field by the manifest that it comes from.
WRITTEN_AS = {
    "volume_context": ("volumeAttributes",),
    "volume_capability": ("mountOptions",),
    "volume_capabilities": ("mountOptions",),
    "secrets": ("mountOptions",),
}

PROVISIONED = VolumeId(Kind.DIRECTORY, "3", "192.0.2.1", "/csi", token_of("pvc-1")).encode()
SNAPSHOT = VolumeId(Kind.SNAPSHOT, "3", "192.0.2.1", "/csi", token_of("snapshot-1")).encode()
ATTRIBUTES = {
    "server": "192.0.2.1",
    "path": "/csi",
    "vers": "4.1",
    "options": "hard",
    "mode": "750",
}
PARAMETERS = {"server": "192.0.2.1", "path": "/csi", "onDelete": "delete"}

NASTY = (
    *("", " ", "\0", "a\0b", ".", "..", "../../etc", "/..", "//", "-o", "--help", "~", "*", "%s%n"),
    *("a,b", "a b", "a=b", "$(id)", "`id`", "${pvc.metadata.name}", "'", '"', "\\", "\r\n", "\t"),
    *("\nINFO forged line", "\x1b[2J", "é", "e\u0301", "\uff0e\uff0e\uff0f", "\u2028", "\u202e/x"),
    *("\ufeff", "\U0001f998", "\ud7ff", "x" * 129, "x" * 5000, "\u00fc" * 3000, "/" + "x" * 300),
    *("/" + "a/" * 3000, "x" * 200_000, "[::1]", "[fe80::1%eth0]", "999.1.1.1", "3", "-1", "01777"),
    *(PROVISIONED + "x", PROVISIONED.replace("csi", "..%2f"), "k1:d:3:::", "k1:s:3:x:/:", "true"),
)
TEXTS = st.one_of(st.sampled_from(NASTY), st.text(max_size=40))
NUMBERS = st.one_of(
    st.sampled_from((0, -1, 1, 2**31 - 1, -(2**31))), st.integers(-(2**31), 2**31 - 1)
)
BIG_NUMBERS = st.one_of(NUMBERS, st.sampled_from((2**63 - 1, -(2**63), 1 << 40)))
KEYS = st.one_of(
    st.sampled_from((*ATTRIBUTES, *PARAMETERS, "modeType", "subDir", "volumeAs", "mountOptions")),
    st.sampled_from(("csi.storage.k8s.io/ephemeral", "csi.storage.k8s.io/pvc/name", "Server")),
    TEXTS,
)


@dataclass(frozen=True)
class Place:
    """The driver, and the directory that its targets are in."""

    driver: Driver
    targets: Path

    @property
    def log(self) -> list[str]:
        return self.driver.log().splitlines()

    def mounts(self) -> set[int]:
        """In the driver's own namespace; of the machine's, one may go when its directory does."""
        table = mountinfo.read(f"/proc/{self.driver.process.pid}/mountinfo")
        return {entry.mount_id for entry in table}

    def tree(self) -> list[str]:
        return sorted(str(path) for path in self.targets.rglob("*"))

    @functools.cached_property
    def valid(self) -> dict[str, Any]:
        """A value for each field that a request needs, by its name."""
        capability = csi.VolumeCapability(
            mount=csi.VolumeCapability.MountVolume(mount_flags=["timeo=70"]),
            access_mode={"mode": csi.VolumeCapability.AccessMode.MULTI_NODE_MULTI_WRITER},
        )
        target = str(self.targets / "target")
        return {
            "name": "pvc-1",
            "volume_id": PROVISIONED,
            "source_volume_id": PROVISIONED,
            "snapshot_id": SNAPSHOT,
            "target_path": target,
            "volume_path": target,
            "volume_capability": capability,
            "volume_capabilities": [capability],
            "volume_context": ATTRIBUTES,
            "parameters": PARAMETERS,
            "capacity_range": csi.CapacityRange(required_bytes=1 << 30),
        }

    @functools.cached_property
    def paths(self) -> st.SearchStrategy[str]:
        """What the driver may be told to unmount and remove. It would, so nothing of others'."""
        odd = ("", "/", "//", "/.", "relative", "/a/../b", "/a\0b", "/" + "x/" * 2500)
        inside = TEXTS.map(lambda text: f"{self.targets}/{text}")
        loop = st.just(f"{self.targets}/loop/x")
        return st.one_of(st.sampled_from((*odd, "/dev/null/x", "/proc/self/x")), inside, loop)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="kcsi-") as directory:
        targets = Path(directory) / "targets"
        targets.mkdir()
        (targets / "kept").touch()  # nobody takes the directory itself for a target
        (targets / "loop").symlink_to("loop")
        driver = start(Path(directory), *ALONE)
        yield Place(driver, targets)
        stop(driver)


def hostile(field: Any, place: Place) -> st.SearchStrategy[Any]:
    """Values of a field, of the right type, for a wrong one does not get past the decoder."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        values = st.one_of(TEXTS, st.sampled_from((*ATTRIBUTES.values(), *PARAMETERS.values())))
        return st.dictionaries(KEYS, values, max_size=6)
    if field.is_repeated:
        return st.lists(single(field, place), max_size=3)
    return single(field, place)


def single(field: Any, place: Place) -> st.SearchStrategy[Any]:
    if field.name.endswith("_path"):
        return place.paths
    if field.message_type is not None:
        return messages(field.message_type, place)
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return TEXTS
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_INT64:
            return BIG_NUMBERS
        case _:
            return NUMBERS  # int32, and enums, which are open


def messages(descriptor: Any, place: Place) -> st.SearchStrategy[Any]:
    fields = {field.name: hostile(field, place) for field in descriptor.fields}
    return st.fixed_dictionaries({}, optional=fields).map(
        functools.partial(filled, GetMessageClass(descriptor))
    )


def filled(kind: type[Message], values: dict[str, Any]) -> Message:
    """A message of these values; of fields of which only one may be set, the last stays."""
    message = kind()
    for name, value in values.items():
        message.MergeFrom(kind(**{name: value}))
    return message


def call(place: Place, verb: Any, request: Message) -> tuple[grpc.StatusCode, str]:
    path = f"/{verb.containing_service.full_name}/{verb.name}"
    invoke: Any = place.driver.channel.unary_unary(
        path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(verb.output_type).FromString,
    )
    try:
        invoke(request, timeout=CALL_S)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def names_one(text: str, fields: Iterable[str]) -> bool:
    """Whether an error begins, after the volume, with one of these fields of the request."""
    known = {alias for field in fields for alias in (field, *WRITTEN_AS.get(field, ()))}
    return any(re.search(rf"(^|: ){name}[.:]", text) for name in known)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_answer_is_a_proper_code_and_names_the_field(place: Place, verb: Any) -> None:
    kind = GetMessageClass(verb.input_type)
    fields = {field.name: hostile(field, place) for field in verb.input_type.fields}
    valid = {name: value for name, value in place.valid.items() if name in fields}
    if verb.name == "CreateSnapshot":
        del valid["parameters"]  # a class of snapshots has none
    mounts, tree = place.mounts(), place.tree()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def answers(data: st.DataObject) -> None:
        names = st.sets(st.sampled_from(sorted(fields)), max_size=3) if fields else st.just(set())
        changed = {name: data.draw(fields[name], name) for name in sorted(data.draw(names))}
        request = filled(kind, {**valid, **changed})
        code, text = call(place, verb, request)
        assert code in PROPER, text
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            assert names_one(text, changed), text
        assert place.mounts() <= mounts
        assert place.tree() == tree

    answers()


def test_no_traceback_and_no_line_that_a_request_wrote(place: Place) -> None:
    """After all the others. A line begins with the time; what a request says cannot end one."""
    lines = place.log
    assert len(lines) > len(VERBS)
    odd = [line for line in lines if not re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ ", line)]
    assert odd[:3] == []
    assert [line for line in lines if "unexpected error" in line][:3] == []
