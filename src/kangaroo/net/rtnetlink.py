"""`IPRoute` of pyroute2, without the rest of it.

The package's `__init__` imports every protocol that it knows, a database among them: 85 of 130 ms
of processor time that each pod's shim would pay. Nothing that IPRoute needs is defined there, so an
empty package stands in while its modules are imported; who imports pyroute2 itself later gets the
real one.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyroute2.iproute.linux import IPRoute
else:

    def _import_iproute() -> type:
        spec = importlib.util.find_spec("pyroute2")
        if "pyroute2" not in sys.modules and spec is not None:
            empty = ModuleType("pyroute2")
            empty.__path__ = spec.submodule_search_locations
            empty.__spec__ = spec
            sys.modules["pyroute2"] = empty
            try:
                return importlib.import_module("pyroute2.iproute.linux").IPRoute
            finally:
                del sys.modules["pyroute2"]
        return importlib.import_module("pyroute2.iproute.linux").IPRoute

    IPRoute = _import_iproute()

__all__ = ["IPRoute"]
