"""The entry point of `containerd-shim-kangaroo-v2`.

containerd runs it as `start` (print the address of the pod's shim) and `delete` (clean up after a
shim that is gone); `daemon` is the shim itself, which `start` launches. Each imports only what it
uses.
"""

from __future__ import annotations

import os
import sys

from kangaroo.errors import KangarooError
from kangaroo.runtime.options import ShimOptions, parse

NAME = "containerd-shim-kangaroo-v2"
_DELETE_NICENESS = -15


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status. Errors go to standard error, which containerd shows
    to the user.
    """
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        return _run(options)
    except (KangarooError, OSError) as error:
        sys.stderr.write(f"{NAME}: {error}\n")
        return 1


def _run(options: ShimOptions) -> int:
    if options.version:
        return _write(f"{NAME}:\n  Version: {_version()}\n".encode())
    if options.info:
        return _write(_runtime_info())
    if options.command == "start":
        from kangaroo.runtime.start import start

        return _write(start(options, _task_options()).encode())
    if options.command == "delete":
        # containerd kills it after 5 s, also on a node that is too busy to get it done, and then
        # keeps the bundle until it starts anew.
        try:
            os.setpriority(os.PRIO_PROCESS, 0, _DELETE_NICENESS)
        except OSError:
            pass
        from kangaroo.runtime.delete import delete

        return _write(delete(options))
    if options.command == "daemon":
        from kangaroo.runtime.daemon import run

        return run(options)
    sys.stderr.write(f"usage: {NAME} -namespace NS -address SOCKET -id ID start|delete\n")
    return 2


def _task_options() -> bytes:
    return b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()


def _write(data: bytes) -> int:
    os.write(1, data)
    return 0


def _version() -> str:
    import kangaroo

    return str(getattr(kangaroo, "__version__", "unknown"))


def _runtime_info() -> bytes:
    """containerd.types.RuntimeInfo {name = 1, version = 2 {version = 1}}."""
    from kangaroo.wire.protobuf import encode_bytes, encode_string

    version = encode_string(1, _version())
    return encode_string(1, "io.containerd.kangaroo.v2") + encode_bytes(2, version)


if __name__ == "__main__":
    sys.exit(main())
