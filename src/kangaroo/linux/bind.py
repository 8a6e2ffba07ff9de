"""`mount.bind` as a program of its own: where the source's server is dead it hangs, and a child can
be given up.

    python -m kangaroo.linux.bind rw|ro SOURCE TARGET
"""

from __future__ import annotations

import sys

from kangaroo.linux import mount


def main() -> int:
    """Bind SOURCE, with the mounts beneath it, on TARGET."""
    access, source, target = sys.argv[1:]
    try:
        mount.bind(source, target, recursive=True, read_only=access == "ro")
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
