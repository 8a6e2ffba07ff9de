"""Kangaroo's errors as gRPC codes: the one table of the CSI driver."""

from __future__ import annotations

import errno

import grpc

from kangaroo import errors

_BY_KIND: dict[type[errors.KangarooError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.CommandFailed: grpc.StatusCode.INTERNAL,
}

_BY_MOUNT_ERRNO: dict[int | None, grpc.StatusCode] = {
    errno.EINVAL: grpc.StatusCode.INVALID_ARGUMENT,
    errno.EPROTONOSUPPORT: grpc.StatusCode.FAILED_PRECONDITION,
    errno.ENOENT: grpc.StatusCode.NOT_FOUND,
    errno.ENODEV: grpc.StatusCode.FAILED_PRECONDITION,
    errno.ENOTDIR: grpc.StatusCode.FAILED_PRECONDITION,
    errno.ELOOP: grpc.StatusCode.FAILED_PRECONDITION,
    errno.ENAMETOOLONG: grpc.StatusCode.INVALID_ARGUMENT,
    errno.ESTALE: grpc.StatusCode.UNAVAILABLE,
    errno.EACCES: grpc.StatusCode.PERMISSION_DENIED,
    errno.EPERM: grpc.StatusCode.PERMISSION_DENIED,
    errno.EIO: grpc.StatusCode.UNAVAILABLE,
    errno.ECONNREFUSED: grpc.StatusCode.UNAVAILABLE,
    errno.ECONNRESET: grpc.StatusCode.UNAVAILABLE,
    errno.EHOSTUNREACH: grpc.StatusCode.UNAVAILABLE,
    errno.ENETUNREACH: grpc.StatusCode.UNAVAILABLE,
    errno.ETIMEDOUT: grpc.StatusCode.UNAVAILABLE,
}


def code_of(error: errors.KangarooError) -> grpc.StatusCode:
    """The code by which a caller of CSI tells what to do."""
    if isinstance(error, errors.MountFailed):
        return _BY_MOUNT_ERRNO.get(error.errno, grpc.StatusCode.INTERNAL)
    for kind in type(error).__mro__:
        if kind in _BY_KIND:
            return _BY_KIND[kind]
    return grpc.StatusCode.INTERNAL
