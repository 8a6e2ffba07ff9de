"""What a StorageClass may say, in the words of both peers, and what is refused by name."""

from __future__ import annotations

from collections import Counter

import pytest

from kangaroo.csi import storage_class
from kangaroo.csi.share_records import OnDelete
from kangaroo.csi.storage_class import Provisioning, VolumeAs
from kangaroo.csi.volume_id import token_of
from kangaroo.errors import InvalidRequest

NAME = "pvc-6a4f3a2c-0000-4000-8000-000000000000"
META = {
    "csi.storage.k8s.io/pvc/name": "data",
    "csi.storage.k8s.io/pvc/namespace": "shop",
    "csi.storage.k8s.io/pv/name": NAME,
}


def parse(parameters: dict[str, str] | None = None, name: str = NAME, **more: str) -> Provisioning:
    given = {"server": "192.0.2.1", "path": "/share"} if parameters is None else parameters
    return storage_class.parse({**given, **more}, name)


def refused(parameters: dict[str, str] | None = None, **more: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(parameters, **more)
    return caught.value


def test_defaults() -> None:
    made = parse()
    assert made.share.source == "192.0.2.1:/share"
    assert (made.volume_as, made.subdir) == (VolumeAs.SUBPATH, NAME)
    assert (made.permissions, made.on_delete) == (0o777, OnDelete.ARCHIVE)
    assert made.context == {"server": "192.0.2.1", "path": f"/share/{NAME}"}


def test_a_class_of_csi_driver_nfs() -> None:
    made = parse(
        {
            "server": "nas.example.com",
            "share": "/",
            "subDir": "${pvc.metadata.namespace}/${pvc.metadata.name}",
            "mountPermissions": "0770",
            "onDelete": "retain",
            **META,
        }
    )
    assert made.share.source == "nas.example.com:/"
    assert made.subdir == "shop/data"
    assert made.context["path"] == "/shop/data"
    assert (made.permissions, made.on_delete) == (0o770, OnDelete.RETAIN)


def test_a_class_of_the_alibaba_driver() -> None:
    made = parse(
        {
            "volumeAs": "subpath",
            "server": "nas.example.com:/k8s/",
            "archiveOnDelete": "false",
            "vers": "4.1",
            "options": "hard,timeo=70",
            "mode": "755",
            "modeType": "recursive",
        }
    )
    assert made.share.source == "nas.example.com:/k8s"
    assert made.share.version == "4.1"
    assert made.on_delete is OnDelete.DELETE
    assert made.context == {
        "server": "nas.example.com",
        "path": f"/k8s/{NAME}",
        "vers": "4.1",
        "options": "hard,timeo=70",
        "mode": "755",
        "modeType": "recursive",
    }


def test_the_share_is_mounted_in_the_version_of_the_mount_options() -> None:
    """A class of csi-driver-nfs says it there; a server may have no other."""
    own = {"server": "192.0.2.1", "share": "/csi"}
    made = storage_class.parse(own, NAME, mount_options=["nfsvers=4.1", "noresvport"])
    assert (made.share.version, made.share.path) == ("4.1", "/csi")
    assert "vers" not in made.context  # the PersistentVolume has the options themselves
    with pytest.raises(InvalidRequest) as refused:
        storage_class.parse(own, NAME, mount_options=["bg"])
    assert refused.value.field == "mountOptions"


def test_the_share_itself() -> None:
    made = parse(volumeAs="sharepath")
    assert (made.subdir, made.context["path"]) == ("", "/share")
    assert "subDir" in refused(volumeAs="sharepath", subDir="x").field


def test_volumes_are_spread_evenly_and_always_the_same_way() -> None:
    servers = {"server": "192.0.2.1:/a, 192.0.2.2:/b,[2001:db8::3]:/c"}
    names = [f"pvc-{n}" for n in range(3000)]
    first = [parse(servers, name).share.source for name in names]
    assert first == [parse(servers, name).share.source for name in names]
    counts = Counter(first)
    assert set(counts) == {"192.0.2.1:/a", "192.0.2.2:/b", "[2001:db8::3]:/c"}
    assert min(counts.values()) > 900
    assert [share.source for share in storage_class.shares(servers)] == [
        "192.0.2.1:/a",
        "192.0.2.2:/b",
        "[2001:db8::3]:/c",
    ]


@pytest.mark.parametrize(
    ("parameters", "mount_options"),
    [
        ({"vers": "4.1"}, ()),
        ({"options": "vers=4.1,noresvport"}, ()),
        ({"options": "v4.1"}, ()),
        ({"vers": "4.2"}, ("hard,minorversion=1",)),
        ({}, ("nfsvers=4.1",)),
    ],
)
def test_capacity_is_asked_for_in_the_version_of_the_volumes(
    parameters: dict[str, str], mount_options: tuple[str, ...]
) -> None:
    """A server may have no other."""
    own = {"server": "192.0.2.1", "path": "/csi", **parameters}
    made = storage_class.parse(own, "pvc-1", mount_options=mount_options).share
    (asked,) = storage_class.shares(own, mount_options=mount_options)
    assert (asked, asked.version) == (made, "4.1")


@pytest.mark.parametrize(
    ("parameters", "kept"),
    [
        ({}, OnDelete.ARCHIVE),
        ({"archiveOnDelete": "true"}, OnDelete.ARCHIVE),
        ({"archiveOnDelete": "false"}, OnDelete.DELETE),
        ({"onDelete": "retain", "archiveOnDelete": "true"}, OnDelete.RETAIN),
        ({"onDelete": "delete", "archiveOnDelete": "true"}, OnDelete.DELETE),
        ({"onDelete": "archive", "archiveOnDelete": "false"}, OnDelete.ARCHIVE),
        ({"ondelete": "delete"}, OnDelete.DELETE),
    ],
)
def test_on_delete_wins_over_archive_on_delete(parameters: dict[str, str], kept: OnDelete) -> None:
    assert parse(None, **parameters).on_delete is kept


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"regionId": "cn-1"}, "parameters.regionId"),
        ({"Server": "192.0.2.2"}, "parameters.Server"),
        ({"server": ""}, "parameters.server"),
        ({"server": "192.0.2.1,"}, "parameters.server"),
        ({"server": "192.0.2.1,192.0.2.1"}, "parameters.server"),
        ({"server": "192.0.2.1:/other"}, "parameters.server"),
        ({"server": "2001:db8::1"}, "parameters.server"),
        ({"share": "/other"}, "parameters.share"),
        ({"path": "share"}, "parameters.path"),
        ({"path": "/a/../b"}, "parameters.path"),
        ({"vers": "5"}, "parameters.vers"),
        ({"options": "a b"}, "parameters.options"),
        ({"mode": "999"}, "parameters.mode"),
        ({"modeType": "deep"}, "parameters.modeType"),
        ({"volumeAs": "filesystem"}, "parameters.volumeAs"),
        ({"mountPermissions": "rwx"}, "parameters.mountPermissions"),
        ({"archiveOnDelete": "yes"}, "parameters.archiveOnDelete"),
        ({"onDelete": "keep"}, "parameters.onDelete"),
        ({"subDir": "../out"}, "parameters.subDir"),
        ({"subDir": "/abs"}, "parameters.subDir"),
        ({"subDir": "a//b"}, "parameters.subDir"),
        ({"subDir": "a/./b"}, "parameters.subDir"),
        ({"subDir": "a\0b"}, "parameters.subDir"),
        ({"subDir": "x" * 256}, "parameters.subDir"),
        ({"subDir": ".kangaroo/volumes"}, "parameters.subDir"),
        ({"subDir": "${pvc.metadata.uid}"}, "parameters.subDir"),
        ({"subDir": "${pvc.metadata.name}"}, "parameters.subDir"),
    ],
)
def test_what_is_wrong_is_named(parameters: dict[str, str], field: str) -> None:
    assert refused(None, **parameters).field == field


def test_a_variable_cannot_bring_in_a_path() -> None:
    hostile = META | {"csi.storage.k8s.io/pvc/name": "../../etc"}
    assert refused(None, subDir="${pvc.metadata.name}", **hostile).field == "parameters.subDir"


@pytest.mark.parametrize("name", ["..", ".", "a/b", ".kangaroo", "x" * 200, "ü", "-rf", "a\0"])
def test_a_name_that_would_be_an_odd_directory_is_hashed(name: str) -> None:
    assert parse(None, name).subdir == token_of(name)


def test_a_copy_goes_where_its_source_is_if_the_class_has_that() -> None:
    parameters = {"server": "192.0.2.1:/a,192.0.2.2:/b"}
    for share in (("192.0.2.1", "/a"), ("192.0.2.2", "/b")):
        for number in range(8):
            found = storage_class.parse(parameters, f"pvc-{number}", share).share
            assert (found.server, found.path) == share
    elsewhere = storage_class.parse(parameters, "pvc-1", ("192.0.2.3", "/a"))
    assert elsewhere == storage_class.parse(parameters, "pvc-1")
