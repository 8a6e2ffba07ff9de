"""What a pod's annotations say about NAS passthrough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kangaroo.errors import InvalidRequest

ANNOTATION_ENABLE = "storage.alibabacloud.com/enable_nas_passthrough"
ANNOTATION_FALLBACK = "kangaroo.io/nas-passthrough-fallback"


@dataclass(frozen=True, slots=True)
class PassthroughPolicy:
    """Whether NAS volumes are mounted in the guest, and what happens when the guest cannot."""

    enabled: bool = False
    fallback_virtiofs: bool = False


def policy(annotations: Mapping[str, str]) -> PassthroughPolicy:
    """The pod's policy; off when nothing is said.

    Strict, because a value that is silently read as "off" costs its user hours: only `"true"` and
    `"false"` are accepted for the switch, only `"virtiofs"` and `"none"` for the fallback. Raises
    InvalidRequest that names the annotation and the value.
    """
    enabled = _choice(annotations, ANNOTATION_ENABLE, {"true": True, "false": False})
    fallback = _choice(annotations, ANNOTATION_FALLBACK, {"virtiofs": True, "none": False})
    return PassthroughPolicy(enabled=enabled, fallback_virtiofs=fallback)


def _choice(annotations: Mapping[str, str], name: str, choices: Mapping[str, bool]) -> bool:
    value = annotations.get(name)
    if value is None:
        return False
    if value not in choices:
        allowed = " or ".join(f'"{choice}"' for choice in choices)
        raise InvalidRequest(f"annotation {name}", f'"{value}" is not {allowed}')
    return choices[value]
