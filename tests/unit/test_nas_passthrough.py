"""Annotations and placeholders."""

from __future__ import annotations

import pytest

from kangaroo.errors import InvalidRequest
from kangaroo.linux import mountinfo
from kangaroo.nas.passthrough import (
    ANNOTATION_ENABLE,
    ANNOTATION_FALLBACK,
    PassthroughPolicy,
    policy,
)
from kangaroo.nas.placeholder import PLACEHOLDER_SOURCE, is_placeholder


def test_off_by_default() -> None:
    assert policy({}) == PassthroughPolicy(enabled=False, fallback_virtiofs=False)
    assert policy({ANNOTATION_ENABLE: "false"}) == policy({})


def test_on_with_and_without_fallback() -> None:
    assert policy({ANNOTATION_ENABLE: "true"}) == PassthroughPolicy(enabled=True)
    both = {ANNOTATION_ENABLE: "true", ANNOTATION_FALLBACK: "virtiofs"}
    assert policy(both) == PassthroughPolicy(enabled=True, fallback_virtiofs=True)


@pytest.mark.parametrize("value", ["yes", "True", "True ", " true", "1", "", "true\n", "TRUE"])
@pytest.mark.parametrize("name", [ANNOTATION_ENABLE, ANNOTATION_FALLBACK])
def test_other_values_are_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        policy({name: value})
    assert name in str(caught.value)
    assert f'"{value}"' in str(caught.value)


@pytest.mark.parametrize(
    ("fstype", "source", "expected"),
    [
        ("tmpfs", PLACEHOLDER_SOURCE, True),
        ("tmpfs", "tmpfs", False),
        ("nfs", "kangaroo-nas", False),
    ],
)
def test_placeholder(fstype: str, source: str, expected: bool) -> None:
    (entry,) = mountinfo.parse(f"5 4 0:9 / /x rw - {fstype} {source} rw,size=4k\n")
    assert is_placeholder(entry) is expected
