"""Volumes or snapshots of several shares, a page at a time.

They are ordered by share and token, and a page's token is the id of its last entry: so it stays
good when entries come and go, also that one.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from kangaroo.csi.share import Look, Page
from kangaroo.csi.share_records import Record, Snapshot
from kangaroo.csi.volume_id import Kind, VolumeId
from kangaroo.errors import Aborted, InvalidRequest, MountFailed
from kangaroo.nas.volume import NasVolume

_R = TypeVar("_R", Record, Snapshot)

# What a server says of a share that it does not have (some deny what they do not have).
_NOT_THERE = (errno.ENOENT, errno.EACCES)


@dataclass(frozen=True, slots=True)
class Listed(Generic[_R]):
    """An entry, with its id."""

    id: VolumeId
    look: Look[_R]


@dataclass(frozen=True, slots=True)
class Listing(Generic[_R]):
    """How one kind of things is listed: how ids are read, what asks a share for a page, which of
    its entries are kept, and whether a share that is not there can be left out.
    """

    kind: Kind
    decode: Callable[[str], VolumeId | None]
    ask: Callable[[NasVolume, str, int], Awaitable[Page[_R]]]
    keep: Callable[[Look[_R]], bool]
    forget: Callable[[NasVolume], bool]

    async def page(
        self, shares: Sequence[NasVolume], max_entries: int, starting_token: str
    ) -> tuple[list[Listed[_R]], str]:
        """A page, and the token of the next one, empty after the last.

        All shares are asked at once; one that does not answer fails the listing, for without it
        volumes would seem to be gone. Raises InvalidRequest, Aborted for a token that is none, and
        what `ask` raises.
        """
        if max_entries < 0:
            raise InvalidRequest("max_entries", "negative")
        start = self._start(starting_token)
        asked = [share for share in shares if share.source >= start[0]]
        pages = (
            self._of_share(share, start[1] if share.source == start[0] else "", max_entries)
            for share in asked
        )
        answers = await asyncio.gather(*pages, return_exceptions=True)
        found: list[Listed[_R]] = []
        for share, answer in zip(asked, answers, strict=True):
            if not isinstance(answer, BaseException):
                found += answer
            elif not (_not_there(answer) and self.forget(share)):
                raise answer
        if not max_entries or len(found) <= max_entries:
            return found, ""
        page = found[:max_entries]
        return page, str(page[-1].id)

    def _start(self, token: str) -> tuple[str, str]:
        """The share and the token after which the page begins."""
        if not token:
            return "", ""
        last = self.decode(token)
        if last is None:
            raise Aborted(
                f"starting_token {token!r} is none that was given out",
                hint="begin again without one",
            )
        return f"{last.server}:{last.base}", last.token

    async def _of_share(self, share: NasVolume, after: str, max_entries: int) -> list[Listed[_R]]:
        """The entries of a share; one more than are wanted, by which it is known that there are."""
        found: list[Listed[_R]] = []
        more = True
        while more and not (max_entries and len(found) > max_entries):
            page = await self.ask(share, after, max_entries + 1 if max_entries else 0)
            for look in page.looks:
                named = self._id(share, look)
                if named is not None and self.keep(look):
                    found.append(Listed(named, look))
                after = look.token
            more = page.more
        return found

    def _id(self, share: NasVolume, look: Look[_R]) -> VolumeId | None:
        """The id of an entry: the one that was given out for it. None for an entry of the same
        share under another name, where that is listed.
        """
        made = VolumeId(self.kind, share.version, share.server, share.path, look.token)
        known = None if look.record is None else self.decode(look.record.id)
        if known is None or known.token != look.token:
            return made
        return known if (known.server, known.base) == (made.server, made.base) else None


def _not_there(error: BaseException) -> bool:
    return isinstance(error, MountFailed) and error.errno in _NOT_THERE
