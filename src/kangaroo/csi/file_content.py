"""The content of a file, copied with its holes.

It is shared with the source where the file system can (FICLONE), else copied where it lies
(copy_file_range(2), which NFS 4.2 does on the server), else read and written. Standard library
only.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator

_FICLONE = 0x40049409  # _IOW(0x94, 9, int), linux/fs.h
# One copy_file_range, which the server does in one go: progress is told between them.
_STEP_BYTES = 16 << 20
_BLOCK_BYTES = 1 << 20  # the largest rsize
# How much may wait to be written through: all of it at the end would be a long time without a step.
_UNSYNCED_BYTES = 64 << 20
_ZEROS = bytes(64 << 10)  # the hole that is looked for where the file system tells of none

_NEVER = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS})
_NOT_THIS = frozenset({errno.EXDEV, errno.EINVAL, errno.EPERM, errno.EIO})


class Contents:
    """Copies the content of files, by the best way that the file system was found to have.

    `moved` is called with the number of bytes at each step.
    """

    def __init__(self, moved: Callable[[int], None]) -> None:
        self._moved = moved
        self._can_clone = True
        self._can_copy = True
        self._unsynced = 0

    def copy(self, source: int, target: int) -> None:
        """Make the empty file `target` have the content of `source`, and write it through.

        Of a file that changes meanwhile, what is there of its first size is copied. Raises OSError.
        """
        status = os.fstat(source)
        size = status.st_size
        if size and not self._clone(source, target, size):
            sparse = status.st_blocks * 512 < size
            told = not sparse or next(_data(source, size), None) != (0, size)
            for start, end in _data(source, size) if sparse else [(0, size)]:
                if told:
                    start = self._copy_range(source, target, start, end)  # noqa: PLW2901
                self._read_and_write(source, target, start, end, skip_zeros=not told)
            os.ftruncate(target, min(size, os.fstat(source).st_size))
        os.fsync(target)
        self._unsynced = 0

    def _step(self, target: int, size: int) -> None:
        self._unsynced += size
        if self._unsynced >= _UNSYNCED_BYTES:
            os.fdatasync(target)
            self._unsynced = 0
        self._moved(size)

    def _clone(self, source: int, target: int, size: int) -> bool:
        if not self._can_clone:
            return False
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError as error:
            if error.errno not in _NEVER | _NOT_THIS:
                raise
            self._can_clone = error.errno not in _NEVER
            return False
        self._moved(size)
        return True

    def _copy_range(self, source: int, target: int, start: int, end: int) -> int:
        """Copy what can be copied within the kernel or the server; where the rest begins."""
        while self._can_copy and start < end:
            step = min(end - start, _STEP_BYTES)
            try:
                done = os.copy_file_range(source, target, step, start, start)
            except OSError as error:
                if error.errno not in _NEVER | _NOT_THIS:
                    raise
                self._can_copy = error.errno not in _NEVER
                break
            if not done:
                break
            start += done
            self._step(target, done)
        return start

    def _read_and_write(
        self, source: int, target: int, start: int, end: int, *, skip_zeros: bool
    ) -> None:
        while start < end:
            block = os.pread(source, min(end - start, _BLOCK_BYTES), start)
            if not block:
                return  # it was cut off meanwhile
            piece = len(_ZEROS) if skip_zeros else len(block)
            for at in range(0, len(block), piece):
                part = block[at : at + piece]
                if not (skip_zeros and _ZEROS.startswith(part)):
                    _write(target, part, start + at)
            start += len(block)
            self._step(target, len(block))


def _write(fd: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, offset)
        rest, offset = rest[done:], offset + done


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the file has data, as far as its file system tells: all of it, where it does not."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more data
                return
            raise
        if start < size:
            yield start, min(end, size)
        position = end
