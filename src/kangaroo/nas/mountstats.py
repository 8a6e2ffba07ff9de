"""The NFS client's own counters, `/proc/<pid>/mountstats` (fs/nfs/super.c nfs_show_stats,
net/sunrpc/stats.c rpc_clnt_show_stats, net/sunrpc/xprtsock.c).

A guest's text is a stranger's: it is bounded, and ValueError is all that comes of it. What a newer
kernel adds is passed over; what is known must have its known shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from kangaroo.linux.mountinfo import unescape
from kangaroo.nas.guest_mount import NFS_FSTYPES

_T = TypeVar("_T")

# One NFS mount shows about 6 KiB; its longest lines are its options and its events.
SECTION_LIMIT = 64 << 10

# Blanks in names are escaped; a path ends at one.
_HEADER = re.compile(r"^device (\S*) mounted on (\S+) with fstype (\S+)", re.MULTILINE)
_NUMBER = re.compile(r"[0-9]{1,20}")  # unsigned, 64 bits
_OPERATION = re.compile(r"[A-Z0-9_]{1,32}")
_OPERATIONS_LIMIT = 128  # NFS 4.2 has about 70
_TRANSPORTS_LIMIT = 256  # nconnect is at most 16, a trunk a few times that

# Where sends and receives stand in a transport's line, and the connections made, if it connects.
_TRANSPORT_FIELDS = {"tcp": (5, 6, 2), "rdma": (5, 6, 2), "udp": (2, 3, None)}
_SERVER_READ, _SERVER_WRITTEN = 4, 5  # of the line `bytes:`


@dataclass(frozen=True, slots=True)
class Operation:
    """What one kind of NFS request came to. The times are sums over all requests."""

    operations: int
    transmissions: int  # more than operations where some were sent again
    major_timeouts: int
    sent_bytes: int
    received_bytes: int
    queue_ms: int  # waiting to be sent
    rtt_ms: int  # from sent to answered
    execute_ms: int  # from asked for to done
    errors: int  # answered with an error; 0 before Linux 5.3

    @property
    def retransmissions(self) -> int:
        """How often a request was sent again."""
        return max(0, self.transmissions - self.operations)


@dataclass(frozen=True, slots=True)
class Statistics:
    """The counters of one NFS mount since it was mounted. Mounts of one superblock show the same;
    transports are shared by all mounts of a server.
    """

    source: str
    mount_point: str
    fstype: str
    read_bytes: int  # from the server
    written_bytes: int  # to the server
    requests: int  # of all transports
    replies: int
    connections: int
    operations: Mapping[str, Operation]


def parse(text: str, wanted: Callable[[str], bool] | None = None) -> tuple[Statistics, ...]:
    """The NFS mounts in `text`, in its order, all or those whose mount point is `wanted`.

    Raises ValueError naming what cannot be read.
    """
    return tuple(
        _statistics(unescape(source), unescape(mount_point), fstype, lines)
        for source, mount_point, fstype, lines in _sections(text)
        if fstype in NFS_FSTYPES and (wanted is None or wanted(unescape(mount_point)))
    )


def parse_one(text: str) -> Statistics:
    """The one NFS mount in what a guest says. Raises ValueError for more, less, or too long."""
    if len(text) > SECTION_LIMIT:
        raise ValueError(f"{len(text)} characters of counters are too many")
    found = parse(text)
    if len(found) != 1:
        raise ValueError(f"counters of {len(found)} mounts instead of one")
    return found[0]


def _sections(text: str) -> Iterator[tuple[str, str, str, list[str]]]:
    starts = list(_HEADER.finditer(text))
    for index, match in enumerate(starts):
        end = starts[index + 1].start() if index + 1 < len(starts) else len(text)
        if end - match.end() > SECTION_LIMIT:
            raise ValueError(f"the counters of {match[2][:100]!r} are too long")
        yield match[1], match[2], match[3], text[match.end() : end].split("\n")[1:]


def _statistics(source: str, mount_point: str, fstype: str, lines: list[str]) -> Statistics:
    read = written = 0
    requests = replies = connections = transports = 0
    operations: dict[str, Operation] = {}
    remaining = iter(lines)
    for line in remaining:
        key, _, rest = line.strip().partition(":")
        if key == "bytes":
            figures = _numbers(rest.split(), line)
            read, written = _fields(figures, (_SERVER_READ, _SERVER_WRITTEN), line)
        elif key == "xprt":
            transports += 1
            sent, received, connected = _transport(rest, line)
            requests, replies = requests + sent, replies + received
            connections += connected
        elif key == "per-op statistics":
            operations = dict(_operations(remaining))
    if transports > _TRANSPORTS_LIMIT:
        raise ValueError(f"more than {_TRANSPORTS_LIMIT} transports")
    return Statistics(
        source=source,
        mount_point=mount_point,
        fstype=fstype,
        read_bytes=read,
        written_bytes=written,
        requests=requests,
        replies=replies,
        connections=connections,
        operations=operations,
    )


def _transport(rest: str, line: str) -> tuple[int, int, int]:
    kind, *words = rest.split()[:8] or [""]
    where = _TRANSPORT_FIELDS.get(kind)
    if where is None:  # a kind that is not known here
        return 0, 0, 0
    sends, receives, connects = where
    # Only what is asked for is read: the idle time may be negative.
    sent, received = (_number(word, line) for word in _fields(words, (sends, receives), line))
    if connects is None:
        return sent, received, 0
    return sent, received, _number(words[connects], line)


def _operations(lines: Iterator[str]) -> Iterator[tuple[str, Operation]]:
    count = 0
    for line in lines:
        name, colon, rest = line.strip().partition(":")
        if not colon or not _OPERATION.fullmatch(name):
            if line.strip():
                raise ValueError(f"not an operation: {line[:100]!r}")
            continue
        count += 1
        if count > _OPERATIONS_LIMIT:
            raise ValueError(f"more than {_OPERATIONS_LIMIT} operations")
        figures = _numbers(rest.split(), line)
        if len(figures) < 8:
            raise ValueError(f"too few figures: {line[:100]!r}")
        yield name, Operation(*(*figures, 0)[:9])


def _fields(figures: list[_T], places: tuple[int, ...], line: str) -> list[_T]:
    if len(figures) <= max(places):
        raise ValueError(f"too few figures: {line[:100]!r}")
    return [figures[place] for place in places]


def _numbers(words: list[str], line: str) -> list[int]:
    return [_number(word, line) for word in words]


def _number(word: str, line: str) -> int:
    if not _NUMBER.fullmatch(word):
        raise ValueError(f"{word[:40]!r} is no counter: {line[:100]!r}")
    return int(word)
