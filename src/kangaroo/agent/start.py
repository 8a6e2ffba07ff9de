"""The first code of the guest's PID 1: make imports cheap, then start the agent.

What the agent imports lies in one file (`kangaroo.guest.bundle` makes it), by name. Of an import
from the file system the search, the look at the file and the reads take longer than to run most
modules, on a disk of which nothing is cached yet. Whatever is not in the bundle is found as ever.

Nothing is imported here that is not built in, `__future__` included: it would come from a file.
"""

import gc
import marshal
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

BUNDLE = "/usr/lib/kangaroo/agent.bundle"


class Bundle:
    """Finds and loads modules. By name it has a package's directory, or "", and the byte code."""

    def __init__(self, modules: dict[str, tuple[str, bytes]]) -> None:
        self._modules = modules

    def find_spec(
        self,
        name: str,
        path: "Sequence[str] | None" = None,  # noqa: ARG002 - the import system passes it
        target: "ModuleType | None" = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if name not in self._modules:
            return None
        directory, _ = self._modules[name]
        # A loader by its methods; the class that says so would come from a file.
        spec = ModuleSpec(name, self, is_package=bool(directory))  # type: ignore[arg-type]
        if directory:
            spec.submodule_search_locations = [directory]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """The import system's own kind of module will do."""

    def exec_module(self, module: "ModuleType") -> None:
        _, code = self._modules.pop(module.__name__)
        exec(marshal.loads(code), module.__dict__)  # noqa: S102, S302 - the image's own


if __name__ == "__main__":
    gc.disable()
    with open(BUNDLE, "rb") as file:
        sys.meta_path.insert(0, Bundle(marshal.load(file)))  # noqa: S302 - the image's own
    from kangaroo.agent.main import main

    main()
