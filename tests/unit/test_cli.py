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
