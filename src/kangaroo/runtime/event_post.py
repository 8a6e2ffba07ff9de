"""Post Kubernetes events on a pod: a program of its own, whose whole life is one batch.

    event_post KUBECONFIG < {"pod": {namespace, name, uid}, "events": [{type, reason, message}, …]}

TLS, HTTP and the kubeconfig's YAML cost time and memory that a pod's shim shall not hold; its
parent gives it a deadline (pod_events). Exit status 0 when the API server took all of them,
otherwise what it said on standard error.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from kangaroo.errors import KangarooError, Unavailable
from kangaroo.runtime.kubeconfig import ApiAccess, load

COMPONENT = "kangaroo-runtime"
_TIMEOUT_S = 10.0
_ANSWER_LIMIT_BYTES = 4096


def main() -> int:
    """Read the batch, post it, return the exit status."""
    try:
        batch = json.load(sys.stdin)
        post(load(Path(sys.argv[1])), batch["pod"], batch["events"])
    except (KangarooError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def post(access: ApiAccess, pod: Mapping[str, str], events: list[Mapping[str, str]]) -> None:
    """Create one Event for each of `events`, over one connection. Raises Unavailable with the API
    server's words when it refuses one, OSError when it is not there.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    address = urlsplit(access.server)
    path = f"{address.path}/api/v1/namespaces/{quote(pod['namespace'], safe='')}/events"
    headers = {"Content-Type": "application/json", "User-Agent": COMPONENT}
    if access.token is not None:
        headers["Authorization"] = f"Bearer {access.token}"
    connection = http.client.HTTPSConnection(
        address.hostname or "", address.port, timeout=_TIMEOUT_S, context=_tls(access)
    )
    try:
        for event in events:
            body = json.dumps(document(pod, event, host=socket.gethostname(), now=now))
            connection.request("POST", path, body.encode(), headers)
            answer = connection.getresponse()
            text = answer.read(_ANSWER_LIMIT_BYTES)
            answer.read()
            if answer.status != http.client.CREATED:
                raise Unavailable(
                    f"POST {access.server}{path}: {answer.status} {answer.reason}: "
                    f"{text.decode(errors='replace').strip()}"
                )
    except http.client.HTTPException as error:
        raise Unavailable(f"POST {access.server}{path}: {error!r}") from error
    finally:
        connection.close()


def document(
    pod: Mapping[str, str], event: Mapping[str, str], *, host: str, now: str
) -> dict[str, Any]:
    """A core/v1 Event on the pod, found by `kubectl describe`: by name, namespace and uid."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{pod['name']}.", "namespace": pod["namespace"]},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", **pod},
        "type": event["type"],
        "reason": event["reason"],
        "message": event["message"],
        "source": {"component": COMPONENT, "host": host},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _tls(access: ApiAccess) -> ssl.SSLContext:
    data = None if access.authority is None else access.authority.decode()
    context = ssl.create_default_context(cadata=data)
    if access.certificate is not None:
        with _as_file(access.certificate) as certificate:
            if access.key is None:
                context.load_cert_chain(certificate)
            else:
                with _as_file(access.key) as key:
                    context.load_cert_chain(certificate, key)
    return context


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path for what OpenSSL reads from files only. It is in memory: no key touches a disk."""
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
