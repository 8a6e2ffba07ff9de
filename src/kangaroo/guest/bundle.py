"""Pack what the agent imports into one file, for `kangaroo.agent.start`.

Run by the guest's own Python with the guest's tree as its home, when the byte code is compiled:
`python3 -I -S bundle.py OUTPUT`. What this imports from files would be missing in the bundle, so
nothing is imported before the agent that is not built in, `__future__` included.
"""

import marshal
import sys

_HEADER_BYTES = 16  # of a .pyc file (PEP 552)


def bundle(tree: str) -> dict[str, tuple[str, bytes]]:
    """By name, in the order of import: a package's directory in the guest or "", and byte code."""
    before = set(sys.modules)
    import kangaroo.agent.main  # noqa: F401, PLC0415 - to see what it imports

    found = {}
    for name, module in list(sys.modules.items()):
        spec = module.__spec__
        if name in before or spec is None or not spec.cached:
            continue
        with open(spec.cached, "rb") as file:  # noqa: PTH123 - see above
            code = file.read()[_HEADER_BYTES:]
        (directory,) = spec.submodule_search_locations or ("",)
        found[name] = (directory.removeprefix(tree), code)
    return found


if __name__ == "__main__":
    with open(sys.argv[1], "wb") as output:  # noqa: PTH123
        marshal.dump(bundle(sys.prefix.removesuffix("/usr")), output)
