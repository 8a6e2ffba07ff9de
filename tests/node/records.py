"""What a pod writes to its volume, and what of it the NAS must have afterwards. Pure.

Each start of the container is a life of its own, with a file of its own: a name that was never used
before. A life writes numbered records of one length; each is fsynced, then reported on standard
output, where containerd's log keeps it. When told to end it writes more, and an end that says how
many there are. So from a file's name and length follows all that is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

# Written at the end: what a pod has its grace period for.
LAST = 400

SCRIPT = f"""
life=$(cat /proc/sys/kernel/random/uuid) || exit 1
mkdir -p "/data/$POD" || exit 1
file=/data/$POD/$life
echo "$life" > /tmp/life
number=0
ending=
trap 'ending=1' TERM
until [ "$ending" ]; do
    number=$((number + 1))
    printf '%s %08d\\n' "$life" $number |
        dd of="$file" oflag=append conv=notrunc,fsync 2>/tmp/dd || {{ cat /tmp/dd >&2; exit 1; }}
    echo "$life $number"
    sleep 0.5 & wait $!
done
last=$((number + {LAST}))
{{
    while [ $number -lt $last ]; do
        number=$((number + 1))
        printf '%s %08d\\n' "$life" $number
    done
    printf 'end %08d\\n' $number
}} >> "$file"
"""


@dataclass
class Promises:
    """What the test knows of the lives of one pod: the last number that each reported, and those
    that were told to end while nothing was wrong, which must be whole.
    """

    reported: dict[str, int] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)

    def hear(self, reported: Mapping[str, int]) -> None:
        """Take a report in. An older one takes nothing back."""
        for life, number in reported.items():
            self.reported[life] = max(number, self.reported.get(life, 0))


def record(life: str, number: int) -> bytes:
    return b"%s %08d\n" % (life.encode(), number)


def broken(files: Mapping[str, bytes], promises: Promises) -> list[str]:
    """What is not as promised in a pod's files, by name."""
    found = [
        f"{life}: no file, and {n} were reported"
        for life, n in promises.reported.items()
        if life not in files
    ]
    found += [
        f"{life}: no file, and it had to be whole"
        for life in promises.whole
        if life not in files and life not in promises.reported
    ]
    for life, content in files.items():
        found += (
            f"{life}: {what}"
            for what in _wrong(
                life, content, promises.reported.get(life, 0), life in promises.whole
            )
        )
    return found


def _wrong(life: str, content: bytes, reported: int, whole: bool) -> Iterator[str]:
    length = len(record(life, 1))
    numbers = len(content) // length
    expected = b"".join(record(life, number + 1) for number in range(numbers + 1))
    end = b"end %08d\n" % numbers
    if content == expected[: numbers * length] + end:
        if numbers < reported:
            yield f"ends after {numbers} records, and {reported} were reported"
        return
    if whole:
        yield f"is not whole: {len(content)} bytes, {_tail(content)}"
    safe = reported * length
    if content[:safe] != expected[:safe]:
        yield f"lost some of {reported} reported records: {len(content)} bytes, {_tail(content)}"
    if not _may_be(content[safe:], expected[safe:], length):
        yield f"has what was never written: {_tail(content)}"


def _may_be(content: bytes, expected: bytes, length: int) -> bool:
    """Whether an end that was cut off may look like this: pages arrive in any order, so a part may
    be missing, as zeros; the end may be there, too.
    """
    for start in range(0, len(content), length):
        piece = content[start : start + length]
        if not _holds(piece, expected[start : start + length]) and not _is_end(piece):
            return False
    return True


def _holds(piece: bytes, expected: bytes) -> bool:
    return all(byte in (0, right) for byte, right in zip(piece, expected, strict=False))


def _is_end(piece: bytes) -> bool:
    return len(piece) <= len(b"end 00000000\n") and (b"end " + piece[4:])[: len(piece)] == piece


def _tail(content: bytes) -> str:
    return f"the end is {content[-60:]!r}"
