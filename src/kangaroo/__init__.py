"""Kangaroo: NFS volumes mounted in the guest kernel of sandboxed pods."""

__version__ = "0.1.0"
