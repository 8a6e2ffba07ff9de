"""The runtime's configuration on a node of the lab, changed for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kangaroo_lab.node import Node

CONFIG = "/etc/kangaroo/runtime.toml"
_MARK = "  # for a while"


@contextmanager
def with_keys(node: Node, **values: float) -> Iterator[None]:
    """Sandboxes that start in the block have these keys, beside those that the file has; not within
    another such block. What one left that was killed is gone.
    """
    text = node.exec(["cat", CONFIG]).stdout
    _write(node, changed(text, values))
    try:
        yield
    finally:
        _write(node, changed(text, {}))


def changed(text: str, values: Mapping[str, float]) -> str:
    """A configuration with these keys in place of those that an earlier block has put there."""
    kept = [line for line in text.splitlines() if not line.endswith(_MARK)]
    added = [f"{key} = {value}{_MARK}" for key, value in values.items()]
    return "".join(f"{line}\n" for line in (*kept, *added))


def _write(node: Node, text: str) -> None:
    """By a rename: a shim that starts reads the old or the new."""
    node.exec(["sh", "-c", f"cat >{CONFIG}.new && mv {CONFIG}.new {CONFIG}"], input=text)
