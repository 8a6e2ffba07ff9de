"""Log files that are cut while they are written."""

from __future__ import annotations

import subprocess
from pathlib import Path

from kangaroo.runtime import log_files


def test_a_file_that_is_being_written_is_cut(tmp_path: Path) -> None:
    """Its writer goes on at the start; the last of what was there stays beside."""
    log = tmp_path / "shim.log"
    with (
        log.open("ab") as output,
        subprocess.Popen(
            ["sh", "-c", "while read line; do echo $line >&2; echo; done"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
        ) as writer,
    ):

        def say(text: str) -> None:
            assert writer.stdin is not None
            assert writer.stdout is not None
            writer.stdin.write(f"{text}\n".encode())
            writer.stdin.flush()
            writer.stdout.readline()

        say("first")
        log_files.cut(log, limit_bytes=6)
        assert log.read_text() == "first\n"
        say("second")
        log_files.cut(log, limit_bytes=7)
        say("third")
        assert writer.stdin is not None
        writer.stdin.close()
    assert log.read_text() == "third\n"
    assert (tmp_path / "shim.log.1").read_text() == "second\n"
