"""The command line: what arrives where."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kangaroo.cli.main import parser


@pytest.mark.parametrize(
    "words",
    [
        ["-n", "default", "get", "pods"],
        ["get", "pods", "-n", "default"],
        ["exec", "pod", "--", "sh", "-c", "true"],
        ["--help"],
    ],
)
def test_kubectl_gets_its_arguments_whole(words: list[str]) -> None:
    assert parser().parse_args(["lab", "kubectl", *words]).arguments == words


@pytest.mark.parametrize(
    ("verb", "name", "words"),
    [
        (["kubectl"], "arguments", ["get", "pods"]),
        (["exec", "node1"], "command", ["ls", "--", "-l"]),
    ],
)
def test_two_dashes_before_a_command_are_no_part_of_it(
    verb: list[str], name: str, words: list[str]
) -> None:
    for before in ([], ["--"]):
        arguments = parser().parse_args(["lab", *verb, *before, *words])
        assert getattr(arguments, name) == words


def test_a_reader_that_goes_ends_a_verb_without_a_word(tmp_path: Path) -> None:
    """`kangaroo lab status | head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "kangaroo.cli.main", "lab", "status"],
        env={**os.environ, "KANGAROO_LAB": str(tmp_path)},
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")
