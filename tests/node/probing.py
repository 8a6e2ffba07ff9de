"""The program `probe` (kangaroo_lab/data/probe) in pods: on its own, or led step by step."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kangaroo_lab import artefacts
from kangaroo_lab.conversation import Conversation, conversation

if TYPE_CHECKING:
    from tests.node.pods import Space

PROGRAM = "probe"
# Of a whole set of observations on an emulated node, over virtio-fs.
RUN_S = 400
ANSWER_S = 150
# What is observed where there is no time for all of it, which takes minutes on an emulated node.
CORE = (
    *("name-of-255-bytes", "hard-link", "symlink", "fifo", "unix-socket", "device"),
    *("rename-over-open-file", "unlink-open-file", "unlink-mapped-file"),
    *("rmdir-with-open-unlinked-file", "create-exclusive", "append-by-two-descriptors"),
    *("sparse-file", "punch-hole", "seek-hole-and-data", "xattr-user", "xattr-list"),
    *("times-set", "time-of-a-write", "flock-by-another-process"),
    *("flock-exclusive-on-a-read-only-descriptor", "flock-against-fcntl"),
    *("fcntl-by-another-process", "lease", "mmap-shared-write", "mmap-shared-sees-write"),
    *("direct-io", "inotify", "directory-emptied-while-listed", "statfs-type"),
)


def install(directory: Path) -> None:
    """Put the program into a directory of the NAS, from where every pod can run it."""
    shutil.copyfile(artefacts.probe(), directory / PROGRAM)
    (directory / PROGRAM).chmod(0o755)


def observe(
    space: Space, pod: str, directory: str, *, program: str, only: Sequence[str] = ()
) -> dict[str, str]:
    """Observations of a pod in a directory, all or these: name → outcome."""
    argv = [program, "run", "-dir", directory, "-only", ",".join(only)]
    lines = space.run(pod, shlex.join(argv), timeout_s=RUN_S).stdout.splitlines()
    return {said["observation"]: said["outcome"] for said in map(json.loads, lines)}


def crowd(space: Space, pod: str, directory: str, *, program: str) -> dict[str, int]:
    """What a pod finds in a directory of very many files."""
    argv = [program, "crowd", "-dir", directory]
    found: dict[str, int] = json.loads(space.run(pod, shlex.join(argv), timeout_s=RUN_S).stdout)
    return found


class Actor:
    """The program in a pod, which does one thing after the other as it is told."""

    def __init__(self, talk: Conversation, pod: str) -> None:
        self._talk = talk
        self._pod = pod

    def __call__(self, verb: str, *words: str) -> str:
        """Have it done; the outcome."""
        answer = self._talk.ask([verb, *words], timeout_s=ANSWER_S)
        assert isinstance(answer, str)
        return answer

    def expect(self, verb: str, *words: str) -> None:
        """Have done what prepares an observation."""
        answer = self(verb, *words)
        assert answer == "ok", f"{self._pod}: {verb} {words}: {answer}"


@contextlib.contextmanager
def acting(space: Space, pod: str, program: str) -> Iterator[Actor]:
    """An actor in the pod, for the block; its paths are absolute."""
    with conversation(space.argv("exec", "-i", pod, "--", program, "act", "-dir", "/")) as talk:
        yield Actor(talk, pod)


def documented(page: Path, heading: str) -> list[Mapping[str, str]]:
    """The rows of the first table after a heading, by the titles of its columns; texts between
    backticks without them.
    """
    _, _, after = page.read_text().partition(f"\n{heading}\n")
    lines = [line for line in after.splitlines() if line]
    start = next(n for n, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    titles, _, *rows = table
    return [dict(zip(titles, row, strict=True)) for row in rows]
