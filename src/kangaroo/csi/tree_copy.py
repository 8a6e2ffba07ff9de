"""A copy of a directory tree: contents with their holes, modes, owners, times, extended attributes,
access control lists, hard links, and every kind of entry.

Both trees are gone through by descriptors, one name at a time, and no symbolic link is followed: a
tree that changes meanwhile, or was made to lead astray, leads nowhere else. Neither depth nor size
of a tree costs recursion or memory, beyond the names of the directories still to be gone into.
Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kangaroo.csi.file_content import Contents

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO may have taken the file's place
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_UNFINISHED_DIRECTORY_MODE = 0o700
_UNFINISHED_FILE_MODE = 0o600

# How many directories are held open on the way down; deeper ones are come back to by "..".
_OPEN_LEVELS = 64

# What an entry comes to that was removed, or whose name another has taken. To ESTALE comes also
# everything on a server that is away for a moment: so it is asked again what is there.
_GONE = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
_ATTEMPTS = 5  # of an entry whose name others take again and again
_POSIX_ACCESS_LISTS = ("system.posix_acl_access", "system.posix_acl_default")
# How the client of NFS 4 shows a server's access control list, in the words of the protocol.
_NFS4_ACCESS_LIST = "system.nfs4_acl"
_ACCESS_LISTS = (*_POSIX_ACCESS_LISTS, _NFS4_ACCESS_LIST)
_NAMED = 5


class Unfit(Exception):
    """A tree that cannot be copied as it is."""


@dataclass(slots=True)
class Progress:
    """What was done so far; `tell` is called at each step, and only then.

    `vanished` entries were there when their directory was read and then no more; some by name.
    """

    tell: Callable[[Progress], None] = lambda _: None
    files: int = 0
    bytes: int = 0
    vanished: int = 0
    vanished_names: list[str] = field(default_factory=list)

    def add(self, *, files: int = 0, size: int = 0) -> None:
        self.files += files
        self.bytes += size
        self.tell(self)

    def miss(self, path: str) -> None:
        self.vanished += 1
        if len(self.vanished_names) < _NAMED:
            self.vanished_names.append(path)
        self.tell(self)


def copy(source: int, target: int, links: int, progress: Progress) -> None:
    """Make the empty directory `target` a copy of the directory `source`.

    `links` is another empty directory on the same file system: files that have several names are
    found there again. What is left in it is of no use afterwards. All is written through before
    this returns. What vanishes meanwhile is left out and told: what its directory, asked again, no
    longer has. Raises Unfit and OSError, naming the entry; then `target` is half a copy.
    """
    walk = _Walk(links, progress)
    try:
        for empty in (target, links):
            _disinherit(empty)
        walk.into("", os.dup(source), os.dup(target))
        while walk.levels:
            walk.step()
    except OSError as error:
        raise OSError(error.errno, error.strerror, walk.path(str(error.filename or ""))) from error
    finally:
        walk.close()


@dataclass(slots=True)
class _Level:
    """A directory on the way down, and those in it that are still to be gone into."""

    name: str
    status: os.stat_result
    target_status: os.stat_result
    todo: dict[str, None]  # a directory that changes while it is read may list a name twice
    fds: tuple[int, int] | None

    def close(self) -> None:
        for fd in self.fds or ():
            os.close(fd)
        self.fds = None


class _Walk:
    def __init__(self, links: int, progress: Progress) -> None:
        self.levels: list[_Level] = []
        self._links = links
        self._progress = progress
        self._contents = Contents(lambda size: progress.add(size=size))

    def path(self, name: str = "") -> str:
        """Where the walk is, for people."""
        names = [level.name for level in self.levels[1:]]
        return os.fsencode("/".join([*names, name] if name else names)).decode(errors="replace")

    def into(self, name: str, source: int, target: int) -> None:
        """Take a pair of directories over, and copy what in them is no directory."""
        level = _Level(name, os.fstat(source), os.fstat(target), {}, (source, target))
        if len(self.levels) > _OPEN_LEVELS:
            self.levels[-1].close()
        self.levels.append(level)
        self._progress.add(files=1)
        with os.scandir(source) as entries:
            for entry in entries:
                self._copy_entry(level, entry.name, source, target)

    def step(self) -> None:
        """Go down or up by one directory, or up out of those that were removed meanwhile."""
        try:
            if self.levels[-1].todo:
                self._down()
            else:
                self._up()
        except OSError as error:
            removed = self._removed() if error.errno in _GONE else 0
            if not removed:
                raise
            while len(self.levels) > removed:
                if len(self.levels) == removed + 1:
                    self._progress.miss(self.path())
                self._up(removed=True)

    def _down(self) -> None:
        """Go into the next directory of the current one."""
        name, _ = self.levels[-1].todo.popitem()
        above, into = self._current()
        try:
            source = os.open(name, _DIRECTORY, dir_fd=above)
        except OSError as error:
            stale = error.errno == errno.ESTALE
            if error.errno not in _GONE or (stale and _there(name, above)):
                raise
            self._progress.miss(self.path(name))
            return
        try:
            if os.fstat(source).st_dev != self.levels[0].status.st_dev:
                raise Unfit(f"{self.path(name)} is another file system")
            os.mkdir(name, _UNFINISHED_DIRECTORY_MODE, dir_fd=into)
            target = os.open(name, _DIRECTORY, dir_fd=into)
        except BaseException:
            os.close(source)
            raise
        self.into(name, source, target)

    def _up(self, *, removed: bool = False) -> None:
        """The current directory is done; or it was removed, then what was copied of it stays."""
        source, target = self._current()
        level = self.levels[-1]
        _finish(None if removed else source, target, level.status)
        above = self.levels[-2] if len(self.levels) > 1 else None
        if above is not None and above.fds is None:
            # From one that was removed no way leads up, and of the source above nothing is wanted.
            found = os.dup(source) if removed else self._above(source, above.status)
            above.fds = (found, self._above(target, above.target_status))
        level.close()
        self.levels.pop()

    def _removed(self) -> int:
        """The level that was removed from the source, with all that are below it; 0 for none.

        The nearest directory above that answers says so. Of the root nobody does.
        """
        for number in range(len(self.levels) - 1, 0, -1):
            level, above = self.levels[number], self.levels[number - 1].fds
            if above is None:
                continue
            try:
                found = os.stat(level.name, dir_fd=above[0], follow_symlinks=False)
            except FileNotFoundError:
                return number
            except OSError:
                continue
            return 0 if os.path.samestat(found, level.status) else number
        return 0

    def close(self) -> None:
        for level in self.levels:
            level.close()

    def _current(self) -> tuple[int, int]:
        fds = self.levels[-1].fds
        assert fds is not None, "the current directory is open"
        return fds

    def _above(self, fd: int, known: os.stat_result) -> int:
        """The directory above, if it is the one that the walk came from."""
        above = os.open("..", _DIRECTORY, dir_fd=fd)
        if not os.path.samestat(os.fstat(above), known):
            os.close(above)
            raise Unfit(f"{self.path()} was moved while it was copied")
        return above

    def _copy_entry(self, level: _Level, name: str, source: int, target: int) -> None:
        """Copy an entry, or what takes its name meanwhile: so do most programs save a file."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._copy_what_is_there(level, name, source, target)
            except FileExistsError:
                if attempt == _ATTEMPTS:
                    raise
                os.unlink(name, dir_fd=target)  # the name was listed twice
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                if not _there(name, source):
                    self._progress.miss(self.path(name))
                    return
                if attempt == _ATTEMPTS:
                    raise
            else:
                return

    def _copy_what_is_there(self, level: _Level, name: str, source: int, target: int) -> None:
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            level.todo[name] = None
            self._progress.tell(self._progress)
        elif stat.S_ISREG(status.st_mode):
            self._copy_file(name, source, target)
        else:
            link = os.readlink(name, dir_fd=source) if stat.S_ISLNK(status.st_mode) else ""
            self._place(status, name, target, lambda into, new: _make_odd(status, link, into, new))

    def _copy_file(self, name: str, source: int, target: int) -> None:
        with _opened(os.open(name, _READ, dir_fd=source)) as fd:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                self._progress.miss(self.path(name))
                return

            def make(into: int, new: str) -> None:
                with _opened(os.open(new, _CREATE, _UNFINISHED_FILE_MODE, dir_fd=into)) as made:
                    try:
                        self._contents.copy(fd, made)
                        _finish(fd, made, status)
                    except OSError:
                        _discard(new, into)  # the source may have gone amid
                        raise

            self._place(status, name, target, make)

    def _place(
        self, status: os.stat_result, name: str, target: int, make: Callable[[int, str], None]
    ) -> None:
        """Make the entry `name`, or give its name to what was made for another name of it.

        Size and time are part of what it is known by: its number may come to be another file's.
        """
        self._progress.add(files=1)
        if status.st_nlink < 2:
            make(target, name)
            return
        known = f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
        with contextlib.suppress(FileNotFoundError):
            _link(known, self._links, name, target)
            return
        make(self._links, known)
        _link(known, self._links, name, target)


def _make_odd(status: os.stat_result, link: str, into: int, name: str) -> None:
    """Make a symbolic link, or a FIFO, socket or device."""
    if stat.S_ISLNK(status.st_mode):
        os.symlink(link, name, dir_fd=into)
    else:
        kind = stat.S_IFMT(status.st_mode)
        os.mknod(name, kind | _UNFINISHED_FILE_MODE, status.st_rdev, dir_fd=into)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=into, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        # Of what cannot be opened the mode is set through an O_PATH descriptor.
        with _opened(os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=into)) as fd:
            Path(f"/proc/self/fd/{fd}").chmod(stat.S_IMODE(status.st_mode))
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=into, follow_symlinks=False)


def _discard(name: str, directory: int) -> None:
    """Remove half a file. One that stays must never be taken for an entry that has vanished."""
    try:
        os.unlink(name, dir_fd=directory)
    except OSError as error:
        raise OSError(errno.EIO, f"half a copy stays: {error.strerror}", name) from error


def _finish(source: int | None, target: int, status: os.stat_result) -> None:
    """Owner, mode (which a change of the owner may clear), attributes if there is a `source` that
    has them, and at last the times.
    """
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    if source is not None:
        _copy_attributes(source, target)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.fsync(target)


def _disinherit(directory: int) -> None:
    """Take from an empty directory what it has from a default access control list above it: all
    that is made in it would have that, too, beside what its source has.
    """
    for name in _attributes(directory):
        if name in _POSIX_ACCESS_LISTS:
            os.removexattr(directory, name)


def _attributes(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def _copy_attributes(source: int, target: int) -> None:
    for name in _attributes(source):
        if not name.startswith("user.") and name not in _ACCESS_LISTS:
            continue
        try:
            value = os.getxattr(source, name)
            # Every file has one. Where it says what the mode does, the mode has made it.
            if name != _NFS4_ACCESS_LIST or value != os.getxattr(target, name):
                os.setxattr(target, name, value)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENODATA):
                raise


def _link(name: str, directory: int, new: str, into: int) -> None:
    os.link(name, new, src_dir_fd=directory, dst_dir_fd=into, follow_symlinks=False)


def _there(name: str, directory: int) -> bool:
    """Raises OSError when the directory does not answer: then nothing is known of what is in it."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
