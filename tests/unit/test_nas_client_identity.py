"""The identity of a guest towards a server of NFS 4."""

from __future__ import annotations

import pytest

from kangaroo.nas.client_identity import kernel_parameter

SANDBOX = "7b47fb7c5464e030f5456a54389a77e44c078fecf3aad9f05391a10074640380"


def test_sandboxes_of_a_pod_are_one_client() -> None:
    uid = "2d8c1b9e-3f0a-4c55-9a3e-7d1f6b0c2a11"
    assert kernel_parameter(uid, SANDBOX) == f"nfs.nfs4_unique_id={uid}"


@pytest.mark.parametrize("uid", [None, "", "u init=/bin/sh", "u" * 64, 'u"', "u\n"])
def test_without_a_usable_uid_it_is_the_sandbox(uid: str | None) -> None:
    assert kernel_parameter(uid, SANDBOX) == f"nfs.nfs4_unique_id={SANDBOX[:32]}"
