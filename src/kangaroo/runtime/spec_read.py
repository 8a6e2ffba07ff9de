"""A bundle's config.json, and to which sandbox its annotations assign it."""

from __future__ import annotations

import json

from kangaroo.errors import InvalidRequest, NotFound
from kangaroo.runtime.paths import check_id

TYPE_CHECKING = False  # importing typing costs `start` as much as reading the specification
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

CONTAINER_TYPE = "io.kubernetes.cri.container-type"
SANDBOX_ID = "io.kubernetes.cri.sandbox-id"

POD = "pod"
MEMBER = "member"
SINGLE = "single"


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


def grouping(spec: Mapping[str, Any], container_id: str) -> tuple[str, str]:
    """Return the kind and the sandbox's id. Raises InvalidRequest naming the annotation.

    POD is a pod's sandbox container, MEMBER a container in a pod, SINGLE one without a pod. The
    sandbox of POD and SINGLE has the container's own id.
    """
    annotations = spec.get("annotations") or {}
    kind = annotations.get(CONTAINER_TYPE)
    if kind is None:
        return SINGLE, check_id(container_id)
    if kind == "sandbox":
        return POD, check_id(container_id)
    if kind == "container" and SANDBOX_ID in annotations:
        return MEMBER, check_id(annotations[SANDBOX_ID])
    raise InvalidRequest(
        CONTAINER_TYPE, f"{kind!r} with {SANDBOX_ID} {annotations.get(SANDBOX_ID)!r}"
    )
