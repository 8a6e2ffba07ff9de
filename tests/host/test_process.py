"""Child processes: what they return, and that none outlives its deadline."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kangaroo.errors import CommandFailed, DeadlineExceeded
from kangaroo.linux import process


def run_async(*argv: str, timeout_s: float = 10, stdin: str | None = None) -> str:
    return asyncio.run(process.run(argv, timeout_s=timeout_s, input=stdin))


def run_sync(*argv: str, timeout_s: float = 10, stdin: str | None = None) -> str:
    return process.run_sync(argv, timeout_s=timeout_s, input=stdin)


Run = Callable[..., str]
both = pytest.mark.parametrize("run", [run_async, run_sync])


@both
def test_output_is_returned_and_standard_error_is_not(run: Run) -> None:
    assert run("sh", "-c", "echo out; echo err >&2") == "out\n"


@both
def test_input_larger_than_a_pipe(run: Run) -> None:
    text = "ü" * 300_000
    assert run("cat", stdin=text) == text


@both
def test_a_child_that_reads_no_input(run: Run) -> None:
    assert run("true", stdin="x" * 300_000) == ""


@both
def test_failure_carries_argv_status_and_output(run: Run) -> None:
    with pytest.raises(CommandFailed) as caught:
        run("sh", "-c", "echo out; echo why >&2; exit 3")
    assert caught.value.argv[0] == "sh"
    assert caught.value.status == 3
    assert (caught.value.stderr, caught.value.stdout) == ("why\n", "out\n")
    assert caught.value.output == "why\nout\n"


@both
def test_a_signal_is_a_failure(run: Run) -> None:
    with pytest.raises(CommandFailed) as caught:
        run("sh", "-c", "kill -9 $$")
    assert caught.value.status == -9


@both
def test_an_absent_program(run: Run) -> None:
    with pytest.raises(FileNotFoundError):
        run("/absent/program")


@both
def test_output_is_bounded(run: Run) -> None:
    size = 3 * process.OUTPUT_LIMIT_BYTES
    assert len(run("head", "-c", str(size), "/dev/zero")) == process.OUTPUT_LIMIT_BYTES


@both
def test_of_standard_error_the_end_is_kept(run: Run) -> None:
    size = 3 * process.OUTPUT_LIMIT_BYTES
    with pytest.raises(CommandFailed) as caught:
        run("sh", "-c", f"head -c {size} /dev/zero >&2; echo why >&2; exit 1")
    assert len(caught.value.stderr) == process.OUTPUT_LIMIT_BYTES
    assert caught.value.stderr.endswith("why\n")


@both
def test_past_the_deadline_the_whole_group_dies(run: Run, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 60 & echo $$ $! > {pids}; echo said >&2; wait"
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"(?s)sh -c.*not done within 0\.5 s: said"):
        run("sh", "-c", script, timeout_s=0.5)
    assert time.monotonic() - started < 3
    leader, grandchild = map(int, pids.read_text().split())
    assert process.ended(leader)
    # Nobody here reaps the grandchild: SIGKILL was sent to it, and takes its time.
    assert process.ended(grandchild, timeout_s=10)


@both
def test_a_daemon_that_holds_the_pipe_is_not_waited_for(run: Run, tmp_path: Path) -> None:
    """As rpc.statd started by mount.nfs: its own session, our pipe."""
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    try:
        assert run("sh", "-c", f"setsid sleep 60 & echo $! > {pid_file}; echo done") == "done\n"
        assert time.monotonic() - started < 5
        assert not process.ended(int(pid_file.read_text()))
    finally:
        os.kill(int(pid_file.read_text()), 9)


def test_cancellation_kills_and_propagates(tmp_path: Path) -> None:
    fifo = tmp_path / "ready"
    os.mkfifo(fifo)

    async def scenario() -> int:
        command = ("sh", "-c", f"echo $$ > {fifo}; exec sleep 60")
        task = asyncio.create_task(process.run(command, timeout_s=60))
        pid = int(await asyncio.to_thread(fifo.read_text))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pid

    assert process.ended(asyncio.run(scenario()))


def test_many_at_once_do_not_wait_for_each_other() -> None:
    async def scenario() -> float:
        started = time.monotonic()
        hung = [process.run(("sleep", "60"), timeout_s=1) for _ in range(20)]
        quick = process.run(("true",), timeout_s=10)
        results = await asyncio.gather(*hung, quick, return_exceptions=True)
        assert all(isinstance(result, DeadlineExceeded) for result in results[:-1])
        assert results[-1] == ""
        return time.monotonic() - started

    assert asyncio.run(scenario()) < 8


def test_a_child_that_does_not_die_is_left_behind_and_reaped_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Uninterruptible sleep cannot be made here: the kill is withheld instead."""
    withheld: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", lambda pid, signal: withheld.append(pid))
        patch.setattr(process, "_KILL_TIMEOUT_S", 0.2)
        with pytest.raises(DeadlineExceeded, match="left behind"):
            run_async("sleep", "60", timeout_s=0.2)
    pid = withheld[0]
    assert process.reap_left_behind() == [pid]
    pidfd = os.pidfd_open(pid)
    os.kill(pid, 9)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    os.close(pidfd)
    assert process.reap_left_behind() == []


def test_the_environment_is_ours_with_plain_messages() -> None:
    assert run_sync("sh", "-c", "echo $LC_ALL") == "C\n"
    given = process.run_sync(("/usr/bin/env",), timeout_s=5, env={"A": "1"})
    assert given == "A=1\n"


def test_run_sync_costs_no_asyncio() -> None:
    script = "import sys; import kangaroo.linux.process; print('asyncio' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = process.run_sync((sys.executable, "-c", script), timeout_s=20, env=environment)
    assert printed == "False\n"


def hear(*argv: str, timeout_s: float) -> list[str]:
    lines: list[str] = []
    asyncio.run(process.run(argv, timeout_s=timeout_s, on_line=lines.append))
    return lines


def test_lines_are_handed_over_and_each_begins_the_deadline_anew() -> None:
    script = "for n in 1 2 3 4; do sleep 0.4; echo $n; done; printf rest"
    started = time.monotonic()
    assert hear("sh", "-c", script, timeout_s=1.2) == ["1", "2", "3", "4"]
    assert time.monotonic() - started > 1.2


def test_lines_of_any_length_and_number_are_handed_over() -> None:
    long = "x" * 200_000
    script = f"printf '%s\\n' {long[:100_000]}{long[:20_000]}; seq 300000"
    lines = hear("sh", "-c", script, timeout_s=30)
    assert (len(lines[0]), len(lines), lines[-1]) == (120_000, 300_001, "300000")


def test_a_child_that_says_nothing_more_is_killed() -> None:
    with pytest.raises(DeadlineExceeded, match="not done within"):
        hear("sh", "-c", "echo begun; sleep 60", timeout_s=0.5)
