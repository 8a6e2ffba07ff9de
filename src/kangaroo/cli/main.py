"""`kangaroo`: the verbs. Each package registers its own; one that is not there is left out.

A registered verb sets `run`, a function of the parsed arguments that returns the exit status.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from kangaroo import __version__
from kangaroo.errors import CommandFailed, KangarooError

# Modules with `register(subparsers)`, in the order of the help text. On a node there is no lab.
_VERBS = (
    "kangaroo.cli.node_verbs",
    "kangaroo.guest.verbs",
    "kangaroo_lab.verbs",
    "kangaroo_lab.demo_verbs",
)
_TAIL_LINES = 40
_INTERRUPTED = 130
_BROKEN_PIPE = 141  # as a shell says of a program that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; its exit status. 1 and the cause on standard error for a failure, in one line;
    what a command said comes before it.
    """
    arguments = parser().parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if arguments.debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    run: Callable[[argparse.Namespace], int | None] = arguments.run
    try:
        status = run(arguments) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # `kangaroo volumes | head`. What is still buffered has nowhere to go at the exit, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except (KangarooError, OSError) as error:
        if arguments.debug:
            raise
        _report(error)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


def _report(error: KangarooError | OSError) -> None:
    if isinstance(error, CommandFailed) and not error.shown:
        before = error.log.splitlines()[-_TAIL_LINES:-1]  # the last line is in `brief`
        sys.stderr.writelines(f"    {line}\n" for line in before)
        error.shown = True
    text = error.brief if isinstance(error, KangarooError) and error.shown else str(error)
    print(f"kangaroo: {text}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The command line with the verbs of the packages that are installed."""
    top = argparse.ArgumentParser(
        prog="kangaroo", description="NFS volumes mounted in the guest of VM-sandboxed pods."
    )
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument("--debug", action="store_true", help="log every command; show tracebacks")
    verbs = top.add_subparsers(metavar="VERB", required=True)
    for name in _VERBS:
        _register(name, verbs)
    return top


def _register(name: str, verbs: Any) -> None:
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None or importlib.util.find_spec(name) is None:
        return
    importlib.import_module(name).register(verbs)


if __name__ == "__main__":
    sys.exit(main())
