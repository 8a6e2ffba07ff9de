"""What the agent sets up before it serves."""

from __future__ import annotations

import resource

import pytest

from kangaroo.agent import boot


def test_limits_are_no_lower_than_those_that_containerd_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    boot.raise_limits()
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert limits == {
        resource.RLIMIT_NOFILE: (1 << 20, 1 << 20),
        resource.RLIMIT_CORE: unlimited,
        resource.RLIMIT_NPROC: unlimited,
    }
