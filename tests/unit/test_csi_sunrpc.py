"""The node's slot table: raised, never lowered, and never a reason not to start."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from kangaroo.csi import sunrpc


def raised(setting: Path, entries: int) -> str:
    asyncio.run(sunrpc.raise_slot_table(entries, setting))
    return setting.read_text()


def test_raised_and_not_lowered(tmp_path: Path) -> None:
    setting = tmp_path / "tcp_slot_table_entries"
    setting.write_text("2\n")
    assert raised(setting, 0) == "2\n"
    assert raised(setting, 128) == "128\n"
    assert raised(setting, 16) == "128\n"


@pytest.mark.parametrize("text", ["", "many\n"])
def test_a_failure_is_logged(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    setting = tmp_path / "tcp_slot_table_entries"
    setting.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert raised(setting, 128) == text
    assert "slot table not raised tcp_slot_table_entries=128" in caplog.text
