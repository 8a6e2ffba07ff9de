"""TAP devices (linux/if_tun.h, Documentation/networking/tuntap.rst)."""

from __future__ import annotations

import fcntl
import os
import struct

TUN_PATH = "/dev/net/tun"

_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFNAMSIZ = 16


def create(name: str) -> int:
    """Create the TAP device `name` in the calling thread's network namespace; return its
    descriptor.

    The device goes when its last descriptor is closed, so nothing has to remove it. It carries the
    virtio-net header that vhost-net and QEMU's offloads need. Raises OSError.
    """
    encoded = name.encode("ascii")
    if not 0 < len(encoded) < _IFNAMSIZ:
        raise ValueError(f"interface name {name!r} is not 1 to {_IFNAMSIZ - 1} bytes")
    fd = os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", encoded, flags))
    except BaseException:
        os.close(fd)
        raise
    return fd
