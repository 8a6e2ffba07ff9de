"""What mount.nfs says, as errors, and errors as gRPC codes."""

from __future__ import annotations

import errno

import grpc
import pytest

from kangaroo import errors
from kangaroo.csi import mount_errors
from kangaroo.csi.errors_map import code_of
from kangaroo.nas import volume

VOLUME = volume.parse({"server": "192.0.2.1", "path": "/csi", "options": "nolock"})
Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("said", "number", "code"),
    [
        (
            "mount.nfs: access denied by server while mounting 192.0.2.1:/csi",
            errno.EACCES,
            Code.PERMISSION_DENIED,
        ),
        (
            "mount.nfs: mounting x failed, reason given by server: No such file or directory",
            errno.ENOENT,
            Code.NOT_FOUND,
        ),
        (
            "mount.nfs: Failed to resolve server nas.invalid: Name or service not known",
            errno.EHOSTUNREACH,
            Code.UNAVAILABLE,
        ),
        (
            "mount.nfs: Resource temporarily unavailable for nas.invalid:/csi on /t",
            errno.EHOSTUNREACH,
            Code.UNAVAILABLE,
        ),
        (
            "mount.nfs: Connection refused for 192.0.2.1:/csi on /t",
            errno.ECONNREFUSED,
            Code.UNAVAILABLE,
        ),
        ("mount.nfs: No route to host for 192.0.2.1:/csi", errno.EHOSTUNREACH, Code.UNAVAILABLE),
        ("mount.nfs: Connection timed out for x", errno.ETIMEDOUT, Code.UNAVAILABLE),
        (
            "mount.nfs: requested NFS version or transport protocol is not supported for x",
            errno.EPROTONOSUPPORT,
            Code.FAILED_PRECONDITION,
        ),
        (
            "mount.nfs: an incorrect mount option was specified for x",
            errno.EINVAL,
            Code.INVALID_ARGUMENT,
        ),
        ("mount.nfs: mount system call failed for /t", errno.EIO, Code.UNAVAILABLE),
        ("mount: /t: unknown filesystem type 'nfs'.", errno.ENODEV, Code.FAILED_PRECONDITION),
        ("mount.nfs: No such device", errno.ENODEV, Code.FAILED_PRECONDITION),
        ("mount.nfs: File name too long", errno.ENAMETOOLONG, Code.INVALID_ARGUMENT),
        ("mount.nfs: Too many levels of symbolic links", errno.ELOOP, Code.FAILED_PRECONDITION),
        ("mount.nfs: Stale file handle", errno.ESTALE, Code.UNAVAILABLE),
        ("mount.nfs: something new", None, Code.INTERNAL),
        ("", None, Code.INTERNAL),
    ],
)
def test_causes(said: str, number: int | None, code: grpc.StatusCode) -> None:
    error = mount_errors.from_command(VOLUME, errors.CommandFailed(("mount",), 32, said + "\n"))
    assert error.errno == number
    assert code_of(error) is code
    assert "192.0.2.1:/csi" in str(error)
    assert "vers=3,nolock" in str(error)
    assert said in str(error)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequest("server", "missing"), Code.INVALID_ARGUMENT),
        (errors.NotFound("x"), Code.NOT_FOUND),
        (errors.AlreadyExists("x"), Code.ALREADY_EXISTS),
        (errors.FailedPrecondition("x"), Code.FAILED_PRECONDITION),
        (errors.DeadlineExceeded("x"), Code.DEADLINE_EXCEEDED),
        (errors.Unavailable("x"), Code.UNAVAILABLE),
        (errors.CommandFailed(("x",), 1, ""), Code.INTERNAL),
        (errors.KangarooError("x"), Code.INTERNAL),
    ],
)
def test_codes(error: errors.KangarooError, code: grpc.StatusCode) -> None:
    assert code_of(error) is code
