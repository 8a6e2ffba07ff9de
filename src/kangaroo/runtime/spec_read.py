"""A bundle's config.json, and to which sandbox its annotations assign it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from kangaroo.errors import InvalidRequest, NotFound

CONTAINER_TYPE = "io.kubernetes.cri.container-type"
SANDBOX_ID = "io.kubernetes.cri.sandbox-id"

POD = "pod"
MEMBER = "member"
SINGLE = "single"

_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class Grouping(NamedTuple):
    """`kind` is POD for a pod's sandbox container, MEMBER for a container in a pod, SINGLE for one
    without a pod.

    `sandbox_id` names the sandbox; it is the container's own id for POD and SINGLE.
    """

    kind: str
    sandbox_id: str


def read_spec(bundle: str) -> dict[str, Any]:
    """Read config.json. Raises NotFound when there is none, InvalidRequest when it is not a JSON
    object.
    """
    path = f"{bundle}/config.json"
    try:
        with open(path, "rb") as file:
            spec = json.load(file)
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    except ValueError as error:
        raise InvalidRequest(path, f"not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise InvalidRequest(path, "not a JSON object")
    return spec


def grouping(spec: dict[str, Any], container_id: str) -> Grouping:
    """Say to which sandbox the container belongs. Raises InvalidRequest naming the annotation."""
    annotations = spec.get("annotations") or {}
    kind = annotations.get(CONTAINER_TYPE)
    if kind is None:
        return Grouping(SINGLE, check_id(container_id))
    if kind == "sandbox":
        return Grouping(POD, check_id(container_id))
    if kind == "container" and SANDBOX_ID in annotations:
        return Grouping(MEMBER, check_id(annotations[SANDBOX_ID]))
    raise InvalidRequest(
        CONTAINER_TYPE, f"{kind!r} with {SANDBOX_ID} {annotations.get(SANDBOX_ID)!r}"
    )


def check_id(name: str) -> str:
    """Return an id that is safe as one path component. Raises InvalidRequest otherwise."""
    if not name or len(name) > 76 or name[0] in ".-" or not _ID_CHARACTERS.issuperset(name):
        raise InvalidRequest("id", f"{name!r} is not a valid container id")
    return name
