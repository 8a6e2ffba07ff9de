"""Requests of the Controller service that lead to no share: answered, or refused by name."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kangaroo.csi.config import Config
from kangaroo.csi.controller import Controller
from kangaroo.csi.errors_map import code_of
from kangaroo.csi.volume_id import LIMIT_BYTES
from kangaroo.errors import InvalidRequest, KangarooError
from kangaroo.wire.gen import csi_pb2 as csi

NO_CONTEXT: Any = None
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
LED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "ABORTED"}


def answer(directory: Path, method: str, fields: dict[str, Any]) -> str:
    """The code by which a driver answers that knows no share."""
    request = getattr(csi, f"{method}Request")()
    json_format.ParseDict(fields, request)
    controller = Controller(Config(work_dir=str(directory)))
    try:
        asyncio.run(getattr(controller, method)(request, NO_CONTEXT))
    except KangarooError as error:
        return code_of(error).name
    return "OK"


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("DeleteSnapshot", "snapshot_id"),
        ("GetSnapshot", "snapshot_id"),
        ("ListSnapshots", "snapshot_id"),
        ("ListSnapshots", "source_volume_id"),
        ("ListSnapshots", "starting_token"),
        ("ListVolumes", "starting_token"),
    ],
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT)
def test_any_text_is_answered(tmp_path: Path, method: str, field: str, text: str) -> None:
    assert answer(tmp_path, method, {field: text}) in LED


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, kind=st.sampled_from(["snapshot", "volume"]), name=TEXT)
def test_any_source_is_answered(tmp_path: Path, text: str, kind: str, name: str) -> None:
    parameters = {"server": "192.0.2.1", "path": "/csi"}
    request = {
        "name": name,
        "volume_capabilities": [{"mount": {}, "access_mode": {"mode": "MULTI_NODE_MULTI_WRITER"}}],
        "parameters": parameters,
        "volume_content_source": {kind: {f"{kind}_id": text}},
    }
    assert answer(tmp_path, "CreateVolume", request) in {"INVALID_ARGUMENT", "NOT_FOUND"}
    asked = {"name": name, "source_volume_id": text}
    assert answer(tmp_path, "CreateSnapshot", asked) in {"INVALID_ARGUMENT", "NOT_FOUND"}


@pytest.mark.parametrize("method", ["CreateVolume", "CreateSnapshot"])
def test_a_name_is_no_longer_than_the_specification_allows(tmp_path: Path, method: str) -> None:
    named = getattr(csi, f"{method}Request")(name="ü" * (LIMIT_BYTES // 2) + "x")
    controller = Controller(Config(work_dir=str(tmp_path)))
    with pytest.raises(InvalidRequest, match="name: longer than 128 bytes"):
        asyncio.run(getattr(controller, method)(named, NO_CONTEXT))
