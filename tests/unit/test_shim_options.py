"""The shim's command line, its runtime options and the grouping of containers."""

from __future__ import annotations

import pytest

from kangaroo.errors import InvalidRequest
from kangaroo.runtime.options import DEFAULT_CONFIG_PATH, config_path, parse
from kangaroo.runtime.spec_read import (
    CONTAINER_TYPE,
    MEMBER,
    POD,
    SANDBOX_ID,
    SINGLE,
    grouping,
)
from kangaroo.wire.protobuf import encode_bytes, encode_string


def test_what_containerd_passes() -> None:
    words = "-namespace k8s.io -address /run/c.sock -publish-binary /bin/c -id x -debug start"
    assert vars(parse(words.split())) == {
        "command": "start",
        "sandbox_id": "x",
        "namespace": "k8s.io",
        "address": "/run/c.sock",
        "publish_binary": "/bin/c",
        "debug": True,
    }


def test_go_flag_styles() -> None:
    options = parse(["--id=x", "-bundle", "/b", "--debug=false", "delete"])
    assert (options.command, options.sandbox_id, options.bundle) == ("delete", "x", "/b")
    assert not options.debug
    assert parse(["-v"]).version
    assert parse(["-info"]).info
    assert parse([]).config == DEFAULT_CONFIG_PATH


@pytest.mark.parametrize("words", [["-nonsense"], ["start", "delete"], ["-id=x", "-x=y"]])
def test_unknown_words_are_refused(words: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        parse(words)


def _any(type_url: str, value: bytes) -> bytes:
    return encode_string(1, type_url) + encode_bytes(2, value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"", None),
        (_any("runtimeoptions.v1.Options", encode_string(2, "/etc/k.toml")), "/etc/k.toml"),
        (_any("t/runtimeoptions.v1.Options", encode_string(2, "/etc/k.toml")), "/etc/k.toml"),
        (_any("runtimeoptions.v1.Options", b""), None),
        (_any("containerd.runc.v1.Options", encode_string(2, "/etc/k.toml")), None),
        (b"\xff\xff", None),
    ],
)
def test_config_path_from_containerd(given: bytes, expected: str | None) -> None:
    assert config_path(given) == expected


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        (None, (SINGLE, "me")),
        ({CONTAINER_TYPE: "sandbox", SANDBOX_ID: "me"}, (POD, "me")),
        ({CONTAINER_TYPE: "container", SANDBOX_ID: "pod"}, (MEMBER, "pod")),
    ],
)
def test_grouping(annotations: dict[str, str] | None, expected: tuple[str, str]) -> None:
    assert grouping({"annotations": annotations}, "me") == expected


@pytest.mark.parametrize(
    "annotations",
    [
        {CONTAINER_TYPE: "container"},
        {CONTAINER_TYPE: "other", SANDBOX_ID: "pod"},
        {CONTAINER_TYPE: "container", SANDBOX_ID: "../pod"},
        {CONTAINER_TYPE: "container", SANDBOX_ID: ""},
        {CONTAINER_TYPE: "container", SANDBOX_ID: "a" * 77},
    ],
)
def test_grouping_refuses(annotations: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        grouping({"annotations": annotations}, "me")
