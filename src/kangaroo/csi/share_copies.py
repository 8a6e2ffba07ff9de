"""A copy on a share that is either whole or not there: `making/NAME` in the driver's own directory.

When all of a copy is written through, its record says so (`whole`), and then it is renamed to its
place. So what stands in a place is whole, and after a kill at any point there is either a copy to
begin again or one to move. Standard library and `kangaroo.linux` only.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from functools import partial

from kangaroo.csi import share_trash, tree_copy
from kangaroo.csi.share_records import (
    DIRECTORY,
    PRIVATE_DIRECTORY,
    Absent,
    Busy,
    Refused,
    exists,
    opened,
    private,
)
from kangaroo.csi.tree_copy import Progress, Unfit
from kangaroo.linux.openat2 import open_beneath

_MAKING = f"{PRIVATE_DIRECTORY}/making"
_LINKS = ".links"  # beside it, see tree_copy.copy
_MODE = 0o700


def of_volume(token: str) -> str:
    """The name of a volume's copy."""
    return f"volume-{token}"


def of_snapshot(token: str) -> str:
    """The name of a snapshot's."""
    return f"snapshot-{token}"


def make(
    root: int, name: str, source: str, progress: Progress, *, give_up: Callable[[], None]
) -> None:
    """Copy the directory `source` of the share. When this returns, the copy is whole.

    What an earlier attempt left is thrown away first; so is what a failure leaves, and `give_up` is
    called then. Another node may take the copy over: then what is there is that one's, and Busy is
    raised. Raises Absent when there is no `source`, Refused, Unfit and OSError; a repeat begins
    again.
    """
    tell = partial(progress.tell, progress)
    mine: os.stat_result | None = None

    def clean_up() -> None:
        _require_mine(root, name, mine)
        clear(root, name, tell)
        give_up()

    clear(root, name, tell)
    with (
        given_up((Absent, Unfit, OSError), clean_up),
        private(root, _MAKING) as making,
        opened(_source(root, source)) as found,
    ):
        with _made(making, name) as tree:
            mine = os.fstat(tree)
            with _made(making, f"{name}{_LINKS}") as links:
                tree_copy.copy(found, tree, links, progress)
        _require_mine(root, name, mine)
        _throw(root, making, f"{name}{_LINKS}", name, tell)
        os.fsync(making)
        _require_mine(root, name, mine)


@contextlib.contextmanager
def given_up(
    kinds: type[Exception] | tuple[type[Exception], ...], give_up: Callable[[], None]
) -> Iterator[None]:
    """Call `give_up` for an error of these kinds, which is raised whether that succeeds or not;
    only Busy takes its place.
    """
    try:
        yield
    except kinds as error:
        try:
            give_up()
        except Busy as busy:
            raise busy from error
        except (Refused, OSError):
            pass
        raise


def _require_mine(root: int, name: str, mine: os.stat_result | None) -> None:
    """Raises Busy unless the copy that is there is `mine`, or none is there and none was made.

    The directory is opened anew: only then does a client of NFS look at what others did in it.
    """
    found = None
    with private(root, _MAKING) as making, contextlib.suppress(FileNotFoundError):
        found = os.stat(name, dir_fd=making, follow_symlinks=False)
    if found is None and mine is None:
        return
    if found is None or mine is None or not os.path.samestat(found, mine):
        raise Busy(f"{_MAKING}/{name} is another process's by now")


def waits(root: int, name: str) -> bool:
    """Whether the copy is not at its place yet."""
    return exists(root, f"{_MAKING}/{name}")


def place(root: int, name: str, parent: int, new: str) -> None:
    """Move the whole copy to its place, unless that was done already.

    Raises Refused when something else stands there, Busy when the copy is in neither place.
    """
    with private(root, _MAKING) as making:
        try:
            os.rename(name, new, src_dir_fd=making, dst_dir_fd=parent)
        except FileNotFoundError as error:
            if not exists(parent, new):
                raise Busy(f"{_MAKING}/{name} was taken away by another process") from error
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise Refused(f"something stands where the copy is to go: {new}") from error
    os.fsync(parent)


def clear(root: int, name: str, tell: Callable[[], None] = lambda: None) -> None:
    """Delete what there is of a copy that is not at its place."""
    with private(root, _MAKING) as making:
        share_trash.throw(root, name, making, _trash(name))
        _throw(root, making, f"{name}{_LINKS}", name, tell)


def _throw(root: int, making: int, entry: str, name: str, tell: Callable[[], None]) -> None:
    share_trash.throw(root, entry, making, _trash(name))
    share_trash.empty(root, _trash(name), tell)


def _trash(name: str) -> str:
    return f"making-{name}"


def _source(root: int, path: str) -> int:
    try:
        return open_beneath(root, path, DIRECTORY, follow=False)
    except FileNotFoundError as error:
        raise Absent(f"{path} is gone") from error


@contextlib.contextmanager
def _made(directory: int, name: str) -> Iterator[int]:
    os.mkdir(name, _MODE, dir_fd=directory)
    with opened(os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)) as fd:
        yield fd
