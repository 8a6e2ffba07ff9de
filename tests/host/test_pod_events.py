"""Events of a pod, posted by the real child process to an API server of our own, over TLS."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kangaroo.runtime import recovery, state
from kangaroo.runtime.pod_events import PodEvents, PodName, Reason
from kangaroo.runtime.state import ProcessIdentity, SandboxState, VolumeState
from kangaroo_lab.pki import Pki, kubeconfig

pytestmark = pytest.mark.host

POD = PodName("shop", "web-0", "5d5c8a0f")


class ApiServer:
    """Takes what is posted to it, or refuses."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self.status = 201
        self.port = 0


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    made = Pki(tmp_path_factory.mktemp("pki"))
    made.create_authority()
    made.issue("server", subject="kube-apiserver", names=["IP:127.0.0.1"])
    made.issue("node", subject="system:node:n", organisation="system:nodes")
    return made


@contextmanager
def serving(pki: Pki) -> Iterator[ApiServer]:
    """An API server that asks clients for a certificate."""
    server = ApiServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.posted.append((self.path, json.loads(body)))
            answer = b'{"kind": "Status", "reason": "Forbidden"}' if server.status > 201 else b"{}"
            self.send_response(server.status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            pass

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pki.certificate("ca"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(pki.certificate("server"), pki.key("server"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.socket = context.wrap_socket(listener.socket, server_side=True)
        server.port = listener.server_address[1]
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()


def config(directory: Path, pki: Pki, port: int) -> Path:
    path = directory / "kubelet.kubeconfig"
    path.write_text(
        kubeconfig(
            server=f"https://127.0.0.1:{port}",
            authority=str(pki.certificate("ca")),
            certificate=str(pki.certificate("node")),
            key=str(pki.key("node")),
        )
    )
    return path


def tell(kubeconfig: Path | None, *messages: str, pod: PodName | None = POD) -> None:
    async def main() -> None:
        events = PodEvents(pod, kubeconfig)
        for message in messages:
            events.tell(Reason.FALLBACK, message)
        await events.flush()

    asyncio.run(main())


def test_events_are_of_the_pod_and_say_what_happened(tmp_path: Path, pki: Pki) -> None:
    with serving(pki) as server:
        tell(config(tmp_path, pki, server.port), "first", "x" * 5000)
    assert [path for path, _ in server.posted] == ["/api/v1/namespaces/shop/events"] * 2
    first, second = (document for _, document in server.posted)
    assert first["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "shop",
        "name": "web-0",
        "uid": "5d5c8a0f",
    }
    assert (first["type"], first["reason"]) == ("Warning", "NASPassthroughFallback")
    assert first["message"] == "first"
    assert first["source"] == {"component": "kangaroo-runtime", "host": socket.gethostname()}
    assert first["metadata"] == {"generateName": "web-0.", "namespace": "shop"}
    assert second["message"] == "x" * 2048


def test_a_refusal_is_logged_and_harms_nobody(
    tmp_path: Path, pki: Pki, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(pki) as server, caplog.at_level(logging.WARNING):
        server.status = 403
        tell(config(tmp_path, pki, server.port), "refused")
    assert len(server.posted) == 1
    assert "refused" in caplog.text
    assert "Forbidden" in caplog.text


def test_a_server_that_is_not_there_is_logged(
    tmp_path: Path, pki: Pki, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(pki) as server:
        path = config(tmp_path, pki, server.port)
    with caplog.at_level(logging.WARNING):
        tell(path, "nobody hears")
    assert "nobody hears" in caplog.text


def test_a_guest_that_is_killed_after_its_shim_has_its_volumes_named(
    tmp_path: Path, pki: Pki
) -> None:
    volume = VolumeState("nas-1", "10.0.0.9:/csi", "nfs", (), ())
    directory = tmp_path / "sandbox"
    directory.mkdir()
    with serving(pki) as server, subprocess.Popen(["sleep", "1000"]) as guest:
        lost = SandboxState(
            "s1",
            pod_uid=POD.uid,
            pod_namespace=POD.namespace,
            pod_name=POD.name,
            qemu=ProcessIdentity.of(guest.pid),
            volumes=(volume,),
        )
        state.save(directory, lost)
        path = config(tmp_path, pki, server.port)
        recovery.cleanup(directory, flush_s=0.1, events_kubeconfig=path)
        assert guest.wait() == -signal.SIGKILL
    ((_, event),) = server.posted
    assert event["reason"] == "NASVolumeNotFlushed"
    assert event["message"].startswith("10.0.0.9:/csi: ")
    assert event["involvedObject"]["uid"] == POD.uid
    assert not directory.exists()


@pytest.mark.parametrize("pod", [None, POD])
def test_without_a_pod_or_a_kubeconfig_nothing_runs(
    tmp_path: Path, pod: PodName | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        tell(tmp_path / "absent" if pod is None else None, "nothing", pod=pod)
    assert "event_post" not in caplog.text
