"""The command line: what arrives where."""

from __future__ import annotations

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
