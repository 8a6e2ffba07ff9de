"""The example manifest and its variants, as plain objects.

The manifest is applied as it stands; only `${nas-server-address}` is filled in. Variants for
comparison are made from the parsed objects, so they differ from the example in what is named here
and in nothing else.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kangaroo.errors import InvalidRequest
from kangaroo.nas.passthrough import ANNOTATION_ENABLE

SERVER_PLACEHOLDER = "${nas-server-address}"

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Variant:
    """How a Deployment differs from the example's."""

    name: str
    runtime_class: str | None  # None: the cluster's default
    passthrough: bool
    image: str | None = None  # None: the example's
    replicas: int = 1
    grace_s: int = 1  # the example's `tail` does not hear SIGTERM: waiting for it shows nothing


def fill(manifest: str, server: str) -> str:
    """The manifest with the NAS server's address in it. Raises InvalidRequest when it has no place
    for one.
    """
    if SERVER_PLACEHOLDER not in manifest:
        raise InvalidRequest("manifest", f"has no {SERVER_PLACEHOLDER}")
    return manifest.replace(SERVER_PLACEHOLDER, server)


def objects(text: str) -> tuple[Manifest, ...]:
    """The objects that `kubectl … -o json` printed: one after the other, or a List."""
    found: list[Manifest] = []
    for value in _documents(text):
        found.extend(value["items"] if value.get("kind") == "List" else [value])
    return tuple(found)


def of_kind(found: tuple[Manifest, ...], kind: str) -> Manifest:
    """The one object of this kind. Raises InvalidRequest when there is none or more than one."""
    matching = [value for value in found if value.get("kind") == kind]
    if len(matching) != 1:
        raise InvalidRequest("manifest", f"has {len(matching)} objects of kind {kind}, not one")
    return matching[0]


def variant(deployment: Manifest, wanted: Variant) -> Manifest:
    """A Deployment like the given one, under its own name and labels, changed as `wanted` says."""
    made = copy.deepcopy(deployment)
    labels = {"app": wanted.name}
    made["metadata"] = {"name": wanted.name}
    made.pop("status", None)
    spec = made["spec"]
    spec["replicas"] = wanted.replicas
    spec["selector"] = {"matchLabels": labels}
    template = spec["template"]
    annotations = dict(template["metadata"].get("annotations") or {})
    annotations.pop(ANNOTATION_ENABLE, None)
    if wanted.passthrough:
        annotations[ANNOTATION_ENABLE] = "true"
    template["metadata"] = {"labels": labels, "annotations": annotations}
    template["spec"].pop("runtimeClassName", None)
    if wanted.runtime_class is not None:
        template["spec"]["runtimeClassName"] = wanted.runtime_class
    template["spec"]["terminationGracePeriodSeconds"] = wanted.grace_s
    if wanted.image is not None:
        for container in template["spec"]["containers"]:
            container["image"] = wanted.image
    return made


def _documents(text: str) -> Iterator[Manifest]:
    decoder = json.JSONDecoder()
    rest = text.lstrip()
    while rest:
        value, end = decoder.raw_decode(rest)
        yield value
        rest = rest[end:].lstrip()
