"""vsock: the socket family between a host and its guests (man 7 vsock, linux/vhost.h)."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import struct

VHOST_VSOCK_PATH = "/dev/vhost-vsock"

# _IOW(VHOST_VIRTIO = 0xAF, 0x60, __u64)
_VHOST_VSOCK_SET_GUEST_CID = 0x4008AF60
# As user ids these are nobody's either: they lie between what systemd gives to containers and to
# foreign images (UIDS-GIDS in systemd's documentation).
FIRST_GUEST_CID = 0x70000000
LAST_GUEST_CID = 0x7FFDFFFF
_CID_ATTEMPTS = 64
_FIRST_PORT = 1024
_PORT_ATTEMPTS = 64


def open_guest_cid() -> tuple[int, int]:
    """Reserve an unused context id for a new guest; return `(fd, cid)`.

    The kernel holds the id for as long as the vhost-vsock descriptor is open, in this process or in
    a child that got it. Ids are drawn at random so that a guest that dies and another that starts
    do not soon share one.

    Raises OSError when /dev/vhost-vsock cannot be opened or every drawn id was taken.
    """
    fd = os.open(VHOST_VSOCK_PATH, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fd, _claim_cid(fd)
    except BaseException:
        os.close(fd)
        raise


def _claim_cid(fd: int) -> int:
    for _ in range(_CID_ATTEMPTS):
        cid = FIRST_GUEST_CID + secrets.randbelow(LAST_GUEST_CID - FIRST_GUEST_CID + 1)
        try:
            fcntl.ioctl(fd, _VHOST_VSOCK_SET_GUEST_CID, struct.pack("=Q", cid))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return cid
    raise OSError(errno.EADDRINUSE, "no free vsock context id", VHOST_VSOCK_PATH)


def listen(backlog: int = 64) -> socket.socket:
    """A listening vsock socket on a port drawn at random; `getsockname()[1]` is the port.

    Every guest reaches every listener, and the ports that the kernel gives are consecutive: a guest
    that knows its own would know its neighbours'. Raises OSError.
    """
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _bind(sock)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket) -> None:
    for _ in range(_PORT_ATTEMPTS):
        port = _FIRST_PORT + secrets.randbelow(socket.VMADDR_PORT_ANY - _FIRST_PORT)
        try:
            sock.bind((socket.VMADDR_CID_ANY, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return
    raise OSError(errno.EADDRINUSE, "no free vsock port")
