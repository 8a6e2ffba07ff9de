"""A registration that kubelet could not complete is offered again."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from pathlib import Path

from kangaroo.csi.config import Config
from kangaroo.csi.registration import Registration
from kangaroo.wire.gen import registration_pb2


class Told:
    """A loop's `call_later`, written down."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    def __call__(self, delay: float, *_: object) -> None:
        self.delays.append(delay)


def test_a_failed_registration_is_offered_again_ever_later(tmp_path: Path) -> None:
    registration = Registration(Config(kubelet_registry_dir=str(tmp_path)))
    told = Told()

    async def notify(*outcomes: bool) -> None:
        asyncio.get_running_loop().call_later = told  # type: ignore[method-assign,assignment]
        for registered in outcomes:
            status = registration_pb2.RegistrationStatus(plugin_registered=registered)
            await registration.NotifyRegistrationStatus(status, None)  # type: ignore[arg-type]

    asyncio.run(notify(False, False, True, False))
    assert told.delays == [2.0, 4.0, 2.0]


def test_offering_again_makes_a_new_directory_entry_of_the_same_socket() -> None:
    # Not in tmp_path: the path of a socket is 107 bytes at most.
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        config = Config(kubelet_registry_dir=directory)
        path = config.registration_path
        listener.bind(str(path))
        before = path.stat()
        Registration(config).offer_again()
        after = path.stat()
        assert after.st_ino == before.st_ino
        assert after.st_ctime_ns > before.st_ctime_ns
        assert list(Path(directory).iterdir()) == [path]


def test_offering_again_after_the_end_does_nothing(tmp_path: Path) -> None:
    Registration(Config(kubelet_registry_dir=str(tmp_path))).offer_again()
    assert list(tmp_path.iterdir()) == []
