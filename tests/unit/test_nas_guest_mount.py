"""From a line of the node's mount table to the mount in the guest."""

from __future__ import annotations

import re

import pytest

from kangaroo.errors import InvalidRequest, Unsupported
from kangaroo.linux import mountinfo
from kangaroo.nas.guest_mount import GuestMount, from_mount, split_source

# As Linux 6.12 shows them.
V3 = (
    "rw,vers=3,rsize=1048576,wsize=1048576,namlen=255,hard,nolock,noresvport,proto=tcp,timeo=600,"
    "retrans=2,sec=sys,mountaddr=192.0.2.1,mountvers=3,mountport=20048,mountproto=tcp,"
    "local_lock=all,addr=192.0.2.1"
)
V42 = (
    "rw,vers=4.2,rsize=1048576,wsize=1048576,namlen=255,hard,proto=tcp,timeo=600,retrans=2,"
    "sec=sys,clientaddr=198.51.100.7,local_lock=none,addr=192.0.2.1"
)
POD = "10.244.1.9"
POD6 = "fd00::9"


def guest(
    super_options: str, *, source: str = "nas:/csi", options: str = "rw,relatime", fstype: str = ""
) -> GuestMount:
    fstype = fstype or ("nfs4" if "vers=4" in super_options else "nfs")
    line = f"40 26 0:45 / /target {options} shared:2 - {fstype} {source} {super_options}\n"
    (entry,) = mountinfo.parse(line)
    return from_mount(entry, guest_addresses=(POD, POD6))


def test_version_3() -> None:
    mount = guest(V3)
    assert mount.options == (
        "vers=3,rsize=1048576,wsize=1048576,hard,nolock,noresvport,proto=tcp,timeo=600,retrans=2,"
        "sec=sys,mountproto=tcp,mountvers=3,mountport=20048,addr=192.0.2.1"
    )
    assert (mount.fstype, mount.flags, mount.version) == ("nfs", (), "3")
    assert (mount.source, mount.server, mount.path) == ("nas:/csi", "nas", "/csi")


def test_version_4_calls_back_to_the_guest() -> None:
    mount = guest(V42)
    assert mount.options == (
        "vers=4.2,rsize=1048576,wsize=1048576,hard,proto=tcp,timeo=600,retrans=2,sec=sys,"
        f"clientaddr={POD},addr=192.0.2.1"
    )
    assert (mount.fstype, mount.version) == ("nfs4", "4.2")


def test_minor_version_shown_apart() -> None:
    assert guest(V42.replace("vers=4.2", "vers=4,minorversion=1")).version == "4.1"


def test_mountd_found_over_udp_is_asked_again_over_tcp() -> None:
    mount = guest(V3.replace("mountproto=tcp", "mountproto=udp"))
    assert "mountproto=tcp" in mount.options
    assert "mountport" not in mount.options


def test_ipv6() -> None:
    shown = V3.replace("192.0.2.1", "2001:db8::1").replace("proto=tcp", "proto=tcp6")
    mount = guest(shown, source="[2001:db8::1]:/csi")
    assert (mount.server, mount.path) == ("2001:db8::1", "/csi")
    assert "proto=tcp6" in mount.options
    assert mount.options.endswith("mountproto=tcp6,mountvers=3,mountport=20048,addr=2001:db8::1")


def test_an_ipv6_server_calls_back_to_the_guests_ipv6_address() -> None:
    shown = V42.replace("192.0.2.1", "2001:db8::1").replace("proto=tcp", "proto=tcp6")
    mount = guest(shown, source="[2001:db8::1]:/csi")
    assert f"clientaddr={POD6}" in mount.options.split(",")
    assert mount.guest_address == POD6
    assert guest(V42).guest_address == POD


def test_a_blank_in_the_path_is_undone_and_stays() -> None:
    mount = guest(V3, source=r"nas:/a\040b\134c/\303\251")
    assert (mount.source, mount.path) == ("nas:/a b\\c/é", "/a b\\c/é")


@pytest.mark.parametrize(
    "kept", ["port=2049", "nconnect=4", "sync", "write=eager", "lookupcache=none", "actimeo_new=7"]
)
def test_what_is_not_the_node_s_own_is_kept(kept: str) -> None:
    """Also options that are not known here: nothing is lost in silence."""
    assert kept in guest(f"{V3},{kept}").options.split(",")


@pytest.mark.parametrize(
    "dropped",
    [
        *("fsc", "seclabel", 'context="a:b:c0,c1"', "namlen=255", "clientaddr=192.0.2.7"),
        "fatal_neterrors=none",  # of Linux 6.15 and later, on every mount
        "rdirplus=force",
    ],
)
def test_what_is_the_node_s_own_is_dropped(dropped: str) -> None:
    assert dropped not in guest(f"{V3},{dropped}").options


def test_local_locks_are_kept_when_they_do_not_follow() -> None:
    assert "local_lock=flock" in guest(V42.replace("local_lock=none", "local_lock=flock")).options
    assert "local_lock=all" in guest(V3.replace("nolock,", "")).options
    assert "local_lock" not in guest(V3).options


@pytest.mark.parametrize("local", ["none", "flock", "posix"])
def test_version_3_with_locks_of_the_server_is_refused(local: str) -> None:
    shown = V3.replace("nolock,", "").replace("local_lock=all", f"local_lock={local}")
    with pytest.raises(Unsupported, match="locks of NFS version 3"):
        guest(shown)


def test_flags() -> None:
    every = ("nosuid", "nodev", "noexec", "noatime", "nodiratime")
    assert guest(V3, options=f"rw,{','.join(every)}").flags == every
    assert guest(V3, options="rw,relatime").flags == ()
    assert guest(V3, options="ro,relatime").flags == ("ro",)
    assert guest(f"ro{V3[2:]}").flags == ("ro",)
    assert "ro" not in guest(f"ro{V3[2:]}").options.split(",")


@pytest.mark.parametrize("flag", ["nosymfollow", "idmapped"])
def test_a_flag_that_the_guest_cannot_keep_up_is_refused(flag: str) -> None:
    with pytest.raises(Unsupported, match=flag):
        guest(V3, options=f"rw,{flag},relatime")


def test_volume_id_names_equal_mounts_equally() -> None:
    same = guest(V3)
    assert re.fullmatch(r"nas-[0-9a-f]{16}", same.volume_id)
    assert same.volume_id == guest(V3).volume_id
    others = (guest(V3, source="nas:/csi/b"), guest(V3, options="ro"), guest(V42))
    assert len({same.volume_id, *(other.volume_id for other in others)}) == 4


@pytest.mark.parametrize("security", ["krb5", "krb5i", "krb5p"])
def test_kerberos_is_refused(security: str) -> None:
    with pytest.raises(Unsupported, match=security):
        guest(V42.replace("sec=sys", f"sec={security}"))


@pytest.mark.parametrize("option", ["xprtsec=mtls", "xprtsec=tls"])
def test_tls_is_refused_not_dropped(option: str) -> None:
    with pytest.raises(Unsupported, match=option):
        guest(f"{V42},{option}")


def test_rdma_is_refused() -> None:
    with pytest.raises(Unsupported, match="proto=rdma"):
        guest(V3.replace("proto=tcp", "proto=rdma"))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.1.7", "::1", "::ffff:127.0.0.1"])
def test_a_helper_on_the_node_is_not_taken_for_the_guests_own(address: str) -> None:
    """As those of clouds' NAS are, who encrypt: `mount` shows the NAS's name, and loopback."""
    with pytest.raises(Unsupported, match=f"address {address} .*node's loopback"):
        guest(V42.replace("addr=192.0.2.1", f"addr={address},port=20049"))


@pytest.mark.parametrize(
    ("source", "fstype", "shown"),
    [("tmpfs", "tmpfs", "rw"), ("nas", "nfs", V3), ("nas:/x", "nfs", "rw,addr=192.0.2.1")],
)
def test_what_cannot_be_a_nas_mount(source: str, fstype: str, shown: str) -> None:
    with pytest.raises(InvalidRequest):
        guest(shown, source=source, fstype=fstype)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("nas:/", ("nas", "/")),
        ("nas:", ("nas", "/")),
        ("nas:/a:b", ("nas", "/a:b")),
        ("[::1]:/a", ("::1", "/a")),
    ],
)
def test_split_source(source: str, parts: tuple[str, str]) -> None:
    assert split_source(source) == parts


@pytest.mark.parametrize("source", ["", "nas", ":/a", "[::1/a", "[::1]/a"])
def test_split_source_refuses(source: str) -> None:
    with pytest.raises(InvalidRequest):
        split_source(source)
