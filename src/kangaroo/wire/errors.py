"""Violations of the wire protocol.

`LocalProtocolError` is a bug on this side: the call that raised it changed nothing.
`RemoteProtocolError` means that the peer cannot be trusted to be in step any more: the connection
must be closed.
"""

from __future__ import annotations

from kangaroo.errors import KangarooError


class ProtocolError(KangarooError):
    """Root of the two."""


class LocalProtocolError(ProtocolError):
    """Our side asked for something that the protocol does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow."""
