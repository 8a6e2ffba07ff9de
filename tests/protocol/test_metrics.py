"""The driver's metrics: real gRPC calls, real shims' sockets, real and hostile HTTP."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.protocol.fake_shim import deaf, directory, healthy, odd, sandbox, shim, two

from kangaroo.csi import metrics_http
from kangaroo.csi.config import Config
from kangaroo.csi.main import main as driver
from kangaroo.csi.server import serving
from kangaroo.errors import FailedPrecondition
from kangaroo.wire.gen import csi_pb2 as csi
from kangaroo.wire.gen import csi_pb2_grpc

__all__ = ["directory"]  # a fixture


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def configured(directory: Path, port: int, **changes: Any) -> Config:
    return Config(
        driver_name="nas.test",
        kubelet_plugins_dir=f"{directory}/plugins",
        kubelet_registry_dir=f"{directory}/registry",
        kubelet_pods_dir=f"{directory}/pods",
        sandboxes_dir=f"{directory}/sandboxes",
        work_dir=f"{directory}/work",
        metrics_address=f"127.0.0.1:{port}",
        **{"probe_timeout_s": 0.2, **changes},
    )


def play(
    directory: Path, scenario: Callable[[int], Awaitable[None]], path: str = "/metrics"
) -> None:
    """Run a scenario beside the driver; it gets the port of the metrics."""

    async def main() -> None:
        port = free_port()
        async with asyncio.timeout(30), serving(configured(directory, port, metrics_path=path)):
            await scenario(port)

    asyncio.run(main())


async def raw(port: int, request: bytes) -> bytes:
    """What is answered to these bytes, until the driver closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def get(port: int, path: str = "/metrics") -> str:
    """The document. Raises ConnectionError for any other answer, or none."""
    answer = await raw(port, f"GET {path} HTTP/1.1\r\nHost: node\r\n\r\n".encode())
    head, _, body = answer.decode().partition("\r\n\r\n")
    if not head.startswith("HTTP/1.1 200 "):
        raise ConnectionError(head)
    assert "text/plain; version=0.0.4" in head
    return body


async def scrape(port: int) -> dict[tuple[str, ...], float]:
    """Samples by name and their labels' values, in the order of the labels' names."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(await get(port))
        for sample in family.samples
    }


def test_calls_are_counted_by_method_and_code(directory: Path) -> None:
    async def scenario(port: int) -> None:
        before = await scrape(port)
        assert not [key for key in before if key[0] == "kangaroo_csi_calls_total"]
        target = f"unix:{directory}/plugins/nas.test/csi.sock"
        async with grpc.aio.insecure_channel(target) as channel:
            identity = csi_pb2_grpc.IdentityStub(channel)  # type: ignore[no-untyped-call]
            node = csi_pb2_grpc.NodeStub(channel)  # type: ignore[no-untyped-call]
            for _ in range(3):
                await identity.Probe(csi.ProbeRequest(), timeout=10)
            with pytest.raises(grpc.aio.AioRpcError):
                await node.NodePublishVolume(csi.NodePublishVolumeRequest(), timeout=10)
            with pytest.raises(grpc.aio.AioRpcError):
                await node.NodeStageVolume(csi.NodeStageVolumeRequest(), timeout=10)
        after = await scrape(port)
        calls = {key[1:]: after[key] for key in after if key[0] == "kangaroo_csi_calls_total"}
        assert calls == {
            ("OK", "Probe"): 3,
            ("INVALID_ARGUMENT", "NodePublishVolume"): 1,
            ("UNIMPLEMENTED", "NodeStageVolume"): 1,
        }
        assert after["kangaroo_csi_call_duration_seconds_count", "Probe"] == 3
        assert after["kangaroo_csi_call_duration_seconds_bucket", "120.0", "Probe"] == 3
        assert after["kangaroo_csi_calls_in_flight", "Probe"] == 0
        assert after["kangaroo_csi_calls_in_flight", "NodePublishVolume"] == 0

    play(directory, scenario)


def volume(name: str) -> tuple[str, ...]:
    return ("/csi", f"uid-{name}", "192.0.2.1", f"{name}/nas-1", f"pv-{name}", "guest")


def test_guests_tell_and_those_that_do_not_hold_nobody_up(directory: Path) -> None:
    async def scenario(port: int) -> None:
        sandbox(directory, "gone")
        async with (
            shim(directory, "good", healthy),
            shim(directory, "deaf", deaf),
            shim(directory, "odd", odd),
            shim(directory, "two", two),
        ):
            started = time.monotonic()
            found = await scrape(port)
            assert time.monotonic() - started < 5
        answers = {key[1:]: found[key] for key in found if key[0] == "kangaroo_nfs_volume_answers"}
        expected = {volume("good"): 1.0}
        expected |= {volume(name): 0.0 for name in ("deaf", "odd", "two", "gone")}
        assert answers == expected
        assert found["kangaroo_csi_scrape_errors_total", "guest"] == 4
        assert found["kangaroo_nfs_read_bytes_total", *volume("good")] == 500
        export, *others = volume("good")
        assert found["kangaroo_nfs_operations_total", export, "READ", *others] == 8
        assert found["kangaroo_nfs_mounts", "kubernetes.io/csi", "192.0.2.1", "guest"] == 5

    play(directory, scenario)


def test_those_who_ask_together_are_answered_from_one_reading(directory: Path) -> None:
    async def scenario(port: int) -> None:
        asked = 0

        async def counting(request: dict[str, Any]) -> dict[str, Any]:
            nonlocal asked
            asked += 1
            return await healthy(request)

        async with shim(directory, "good", counting):
            await asyncio.gather(*(get(port) for _ in range(8)))
        assert asked == 1

    play(directory, scenario)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: n\r\n\r\n", b"200"),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", b"200"),
        (b"HEAD /metrics HTTP/1.1\r\nHost: n\r\n\r\n", b"200"),
        (b"GET / HTTP/1.1\r\nHost: n\r\n\r\n", b"404"),
        (b"GET /metrics/../etc HTTP/1.1\r\nHost: n\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nHost: n\r\nContent-Length: 9999999\r\n\r\nx", b"405"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nHost: n\r\nX: " + b"a" * 20000, b"431"),
        (b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: n\r\n\r\n", b"431"),
    ],
)
def test_requests(directory: Path, request_: bytes, status: bytes) -> None:
    async def scenario(port: int) -> None:
        answer = await raw(port, request_)
        assert answer.split(b" ")[1:2] == [status]
        assert (b"kangaroo_csi_build_info{" in answer) == (
            status == b"200" and request_.startswith(b"GET")
        )

    play(directory, scenario)


def test_another_path(directory: Path) -> None:
    async def scenario(port: int) -> None:
        assert "kangaroo_csi_build_info" in await get(port, "/driver/metrics")
        with pytest.raises(ConnectionError, match="404"):
            await get(port)

    play(directory, scenario, path="/driver/metrics")


def test_idle_connections_are_few_and_hold_neither_calls_nor_the_end_up(directory: Path) -> None:
    async def scenario(port: int) -> None:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        refused = 0
        for reader, _ in idle[16:]:
            try:
                refused += await reader.read() == b""
            except ConnectionError:
                refused += 1
        assert refused == 24
        target = f"unix:{directory}/plugins/nas.test/csi.sock"
        async with grpc.aio.insecure_channel(target) as channel:
            identity = csi_pb2_grpc.IdentityStub(channel)  # type: ignore[no-untyped-call]
            await identity.Probe(csi.ProbeRequest(), timeout=5)
        for _, writer in idle[:8]:
            writer.close()
            await writer.wait_closed()
        while True:  # the driver sees the ends one after the other
            try:
                assert "kangaroo_csi_build_info" in await get(port)
                break
            except ConnectionError:
                continue
        for _, writer in idle[8:]:
            writer.close()

    play(directory, scenario)


def test_a_request_that_does_not_come_is_not_waited_for(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_http, "_REQUEST_S", 0.1)

    async def scenario(port: int) -> None:
        assert await raw(port, b"GET /metrics HTTP/1.1\r\nHost") == b""

    play(directory, scenario)


def test_a_port_that_is_taken_is_a_clear_error(directory: Path) -> None:
    async def main(port: int) -> None:
        async with serving(configured(directory, port)):
            raise AssertionError

    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(FailedPrecondition, match="in use") as caught,
    ):
        asyncio.run(main(taken.getsockname()[1]))
    assert str(caught.value).startswith("metrics_address: 127.0.0.1 port ")
    assert not (directory / "plugins").exists()


def test_the_driver_ends_with_that_error(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = directory / "csi.toml"
        config.write_text(
            f'kubelet_plugins_dir = "{directory}/plugins"\n'
            f'kubelet_registry_dir = "{directory}/registry"\n'
            f'metrics_address = "127.0.0.1:{taken.getsockname()[1]}"\n'
        )
        assert driver(["--config", str(config)]) == 1
    assert "kangaroo-csi: metrics_address: 127.0.0.1 port " in capsys.readouterr().err
