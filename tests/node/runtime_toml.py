"""The runtime's configuration on a node of the lab, changed for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kangaroo_lab.node import Node

CONFIG = "/etc/kangaroo/runtime.toml"


@contextmanager
def with_keys(node: Node, **values: float) -> Iterator[None]:
    """Sandboxes that start in the block have these keys, beside those that the file has."""
    lines = "".join(f"{key} = {value}\n" for key, value in values.items())
    node.exec(["sh", "-ec", f"cp -p {CONFIG} {CONFIG}.before; cat >> {CONFIG}"], input=lines)
    try:
        yield
    finally:
        node.exec(["mv", f"{CONFIG}.before", CONFIG])
