"""By what a server of NFS 4 tells guests apart."""

from __future__ import annotations

import re

_PARAMETER = "nfs.nfs4_unique_id"
# What can stand on a command line, and fits what the module takes (NFS4_CLIENT_ID_UNIQ_LEN).
_ID = re.compile(r"[A-Za-z0-9._-]{1,63}")


def kernel_parameter(pod_uid: str | None, sandbox_id: str) -> str:
    """The kernel parameter that makes a guest a client of its own (fs/nfs/nfs4proc.c).

    Without it a client goes by its host name, and that is the pod's: two pods of one name in two
    namespaces would be one client to the server, which takes from each what the other did not
    claim. By the pod's uid a later sandbox of the pod is the same client, started anew: the server
    gives up at once what the earlier one held. Without a pod it is the sandbox's id.
    """
    if pod_uid is not None and _ID.fullmatch(pod_uid):
        return f"{_PARAMETER}={pod_uid}"
    return f"{_PARAMETER}={sandbox_id[:32]}"
