"""Regenerate `src/kangaroo/wire/gen/` from the .proto files beside this script.

The .proto files lie in a directory tree that equals the Python package, so the generated imports
are absolute and need no rewriting. gRPC stubs are made for the two gRPC services only; the shim
speaks ttrpc and needs messages alone. Run with the development environment's Python: `make proto`.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

SOURCE = Path(__file__).resolve().parent
PACKAGE = "kangaroo/wire/gen"
OUTPUT = SOURCE.parent / "src"
WITH_GRPC = frozenset({"csi.proto", "registration.proto"})


def generate(proto: Path) -> int:
    """Run protoc for one file; return its exit status."""
    name = f"{PACKAGE}/{proto.name}"
    arguments = [
        "protoc",
        f"-I{SOURCE}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={OUTPUT}",
        f"--pyi_out={OUTPUT}",
    ]
    if proto.name in WITH_GRPC:
        arguments.append(f"--grpc_python_out={OUTPUT}")
    return int(protoc.main([*arguments, name]))


def main() -> int:
    """Generate every file; the first failure ends it."""
    for proto in sorted((SOURCE / PACKAGE).glob("*.proto")):
        status = generate(proto)
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
