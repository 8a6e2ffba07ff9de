"""ARCHITECTURE.md names functions: each must be where it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
NAMED = re.compile(r"`([a-z_]+/[a-z_]+\.py)` `([A-Za-z_.]+)`")


def named() -> list[tuple[str, str]]:
    text = (CHECKOUT / "ARCHITECTURE.md").read_text()
    return sorted(set(NAMED.findall(text)))


def defined(module: Path) -> set[str]:
    """The functions, classes and methods of a module."""
    found = set()
    for item in ast.parse(module.read_text()).body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(item.name)
        if isinstance(item, ast.ClassDef):
            methods = (ast.FunctionDef, ast.AsyncFunctionDef)
            found |= {f"{item.name}.{one.name}" for one in item.body if isinstance(one, methods)}
    return found


def test_the_seven_steps_are_named() -> None:
    assert len(named()) >= 10


@pytest.mark.parametrize(("module", "function"), named())
def test_a_named_function_is_there(module: str, function: str) -> None:
    assert function in defined(CHECKOUT / "src" / "kangaroo" / module)
