"""The guest's real-time clock, by adjtimex(2). How far off it is the runtime says, which reads it
and the node's (kangaroo.runtime.guest_clock).
"""

from __future__ import annotations

import ctypes

from kangaroo.linux import libc

_SECOND_NS = 1_000_000_000

# include/uapi/linux/timex.h
_ADJ_OFFSET = 0x0001
_ADJ_STATUS = 0x0010
_ADJ_TIMECONST = 0x0020
_ADJ_SETOFFSET = 0x0100
_ADJ_NANO = 0x2000
_STA_PLL = 0x0001


class _Timex(ctypes.Structure):
    _fields_ = (
        ("modes", ctypes.c_uint),
        *((name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")),
        ("status", ctypes.c_int),
        *((name, ctypes.c_long) for name in ("constant", "precision", "tolerance")),
        *((name, ctypes.c_long) for name in ("seconds", "fraction", "tick", "ppsfreq", "jitter")),
        ("shift", ctypes.c_int),
        *((name, ctypes.c_long) for name in ("stabil", "jitcnt", "calcnt", "errcnt", "stbcnt")),
        ("tai", ctypes.c_int),
        ("reserved", ctypes.c_int * 11),
    )


def step(offset_ns: int) -> None:
    """Put the clock forward, or back when `offset_ns` is negative, at once. Raises OSError."""
    seconds, fraction = divmod(offset_ns, _SECOND_NS)
    request = _Timex(modes=_ADJ_SETOFFSET | _ADJ_NANO, seconds=seconds, fraction=fraction)
    libc.call("adjtimex", ctypes.byref(request))


def slew(offset_ns: int, interval_s: int) -> None:
    """Have the kernel's phase-locked loop (RFC 5905, 12) take the offset away little by little, and
    learn from it how fast the clock runs. Told again every `interval_s`, a power of two. The kernel
    takes half a second for the most. Raises OSError.
    """
    request = _Timex(
        modes=_ADJ_OFFSET | _ADJ_STATUS | _ADJ_TIMECONST | _ADJ_NANO,
        offset=offset_ns,
        status=_STA_PLL,
        constant=interval_s.bit_length() - 1,
    )
    libc.call("adjtimex", ctypes.byref(request))
