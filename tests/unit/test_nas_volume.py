"""What a PersistentVolume may say, and what is refused before anything runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kangaroo.errors import InvalidRequest
from kangaroo.nas import volume
from kangaroo.nas.volume import NasVolume


def parse(*mount_options: str, read_only: bool = False, **attributes: str) -> NasVolume:
    defaults = {"server": "192.0.2.1", "path": "/csi"}
    return volume.parse(defaults | attributes, mount_options, read_only=read_only)


def refused(*mount_options: str, **attributes: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(*mount_options, read_only=False, **attributes)
    return caught.value


def test_the_example_manifest() -> None:
    parsed = parse(options="noresvport,nolock", vers="3")
    assert parsed.source == "192.0.2.1:/csi"
    assert parsed.option_string == "vers=3,noresvport,nolock"


def test_defaults_without_options() -> None:
    assert parse().option_string == (
        "vers=3,nolock,proto=tcp,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport"
    )
    assert parse(server="[fd00::1]").option_string == parse().option_string.replace("tcp", "tcp6")
    assert "nolock" not in parse(vers="4.0").options
    assert parse(options="none").option_string == "vers=3"
    assert parse("ro").option_string == parse(read_only=True).option_string
    assert parse("ro").option_string.endswith("noresvport,ro")


def test_mount_options_override_by_what_they_are_about() -> None:
    parsed = parse("vers=4.1", "soft,lock", options="hard,nolock,timeo=50", vers="3")
    assert parsed.version == "4.1"
    assert parsed.options == ("timeo=50", "soft", "lock")


def test_connections_and_encryption_are_the_kernel_s_affair() -> None:
    parsed = parse("xprtsec=mtls", options="nconnect=8,max_connect=16,xprtsec=tls", vers="4.2")
    assert parsed.option_string == "vers=4.2,nconnect=8,max_connect=16,xprtsec=mtls"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("vers=4.0,noresvport", "4.0"),
        ("nfsvers=3", "3"),
        ("v4.1", "4.1"),
        ("vers=4,minorversion=2", "4.2"),
        ("vers=3.0", "3"),
    ],
)
def test_version_among_the_options(text: str, version: str) -> None:
    assert parse(options=text).version == version


@pytest.mark.parametrize(
    ("vers", "text"), [("3", "vers=4.0"), ("", "vers=3,nfsvers=4"), ("", "vers=3,minorversion=1")]
)
def test_contradicting_versions_are_refused(vers: str, text: str) -> None:
    assert refused(vers=vers, options=text).field.startswith("volumeAttributes.")


@pytest.mark.parametrize("vers", ["5", "2", "4.3", "3 ", "three", "03"])
def test_an_unknown_version_is_named(vers: str) -> None:
    error = refused(vers=vers)
    assert error.field == "volumeAttributes.vers"
    assert repr(vers) in str(error)


@pytest.mark.parametrize(
    ("server", "normal"),
    [
        ("nas.example.com", "nas.example.com"),
        ("0cd8b4a576-abc12.cn-hangzhou.nas.aliyuncs.com", None),
        ("[2001:DB8:0::1]", "[2001:db8::1]"),
        ("nas", "nas"),
    ],
)
def test_servers(server: str, normal: str | None) -> None:
    assert parse(server=server).server == (normal or server)


@pytest.mark.parametrize(
    "server",
    [
        "",
        "${nas-server-address}",
        "192.0.2.1,addr=192.0.2.2",
        "192.0.2.1 ",
        "nas\0evil",
        "nas\n",
        "../nas",
        "nas:/csi",
        "2001:db8::1",
        "[2001:db8::1",
        "[nas]",
        "[fe80::1%eth0]",
        "192.0.2.256",
        "192.0.2",
        "-nas",
        "na/s",
        "näs",
        "a" * 64,
        ".".join(["a" * 63] * 4),
    ],
)
def test_bad_servers(server: str) -> None:
    assert refused(server=server).field == "volumeAttributes.server"


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("", "/"),
        ("/", "/"),
        ("//", "/"),
        ("//csi///a/", "/csi/a"),
        ("/csi/./a", "/csi/a"),
        ("/数据/ü", "/数据/ü"),
        ("/a b/c  d", "/a b/c  d"),
        ("/..a/b..", "/..a/b.."),
    ],
)
def test_paths(path: str, normal: str) -> None:
    assert parse(path=path).path == normal


@pytest.mark.parametrize(
    "path",
    [
        *("csi", "./csi", "/csi/..", "/../csi", "/a/../b"),
        *(
            "/a,ro",
            "/a ",
            " /a",
            "/a /b",
            "/a\0b",
            "/a\nb",
            "/a\tb",
            "/a:b",
            "/a\x7fb",
            "/a\u2028b",
        ),
        "/" + "a" * 1024,
    ],
)
def test_bad_paths(path: str) -> None:
    error = refused(path=path)
    assert error.field == "volumeAttributes.path"
    assert "\0" not in str(error)


@pytest.mark.parametrize(
    "option",
    [
        *("bg", "remount", "bind", "addr=192.0.2.9", "clientaddr=192.0.2.9", "rshared"),
        "mounthost=192.0.2.9",
        *("X-mount.mkdir", "x-systemd.automount", "uhelper=x", "-o", "a b", "a=b c", "a=\0", "=1"),
        *("rsize=", "Nolock", "nolock;reboot", "", "loop"),
        *("ro=true", "ro=false", "rw=1", "v3=x", "v4.1=1", "minorversion"),
    ],
)
def test_bad_options_name_their_field(option: str) -> None:
    assert refused(options=f"hard,{option}").field == "volumeAttributes.options"
    assert refused(f"hard,{option}").field == "mountOptions"


def test_an_option_that_only_the_kernel_can_judge_is_passed_on() -> None:
    assert "frobnicate=7" in parse(options="nolock,frobnicate=7").options


def test_unknown_attributes_are_refused_and_kubelet_s_are_not() -> None:
    attributes = {"server": "nas", "csi.storage.k8s.io/pod.name": "p", "share": "/x"}
    with pytest.raises(InvalidRequest, match=r"volumeAttributes\.share: unknown"):
        volume.parse(attributes)
    del attributes["share"]
    assert volume.parse(attributes).path == "/"


def test_mode() -> None:
    parsed = parse(mode="0755", modeType="recursive")
    assert (parsed.mode, parsed.mode_recursive) == ("0755", True)
    assert parse(mode="755", modeType="non-recursive").mode_recursive is False
    assert refused(mode="u+x").field == "volumeAttributes.mode"
    assert refused(mode="755", path="/").field == "volumeAttributes.mode"
    assert refused(mode="755", modeType="deep").field == "volumeAttributes.modeType"


def hostile(*words: str) -> st.SearchStrategy[str]:
    """Text of words that nearly pass."""
    separators = ("", ",", " ", "\0", "\n", ":", "/", "..", "-", "=", "[", "]", "é", "\ud800")
    return st.lists(st.sampled_from((*words, *separators)), max_size=4).map("".join)


options_text = hostile("hard", "vers=3", "rsize=4096", "bg", "ro", "noac", "addr")


@given(hostile("nas", "192.0.2.1", "::1"), hostile("/csi", "a"), options_text, options_text)
def test_whatever_is_said_the_command_line_stays_one_mount(
    server: str, path: str, options: str, mount_option: str
) -> None:
    """Accepted or refused by name; what is accepted cannot add an option or a source."""
    attributes = {"server": server, "path": path, "options": options}
    try:
        parsed = volume.parse(attributes, [mount_option])
    except InvalidRequest as error:
        named = error.field
    else:
        named = ""
        assert_one_mount(parsed)
    assert not named or named.startswith(("volumeAttributes.", "mountOptions"))


def assert_one_mount(parsed: NasVolume) -> None:
    assert not set(parsed.source + parsed.option_string) & set(" \0\n\t")
    assert "," not in parsed.source
    assert parsed.source.split(":/", 1)[0] == parsed.server
    assert not parsed.source.startswith("-")
    assert ".." not in parsed.path.split("/")


names = st.from_regex(r"[a-z][a-z0-9]{0,8}(\.[a-z]{1,5}){0,2}", fullmatch=True)


@given(names, st.lists(st.from_regex(r"[a-z0-9.]{1,6}", fullmatch=True)), st.sampled_from("34"))
def test_good_input_is_a_fixed_point(server: str, parts: list[str], vers: str) -> None:
    parts = [part for part in parts if part not in (".", "..")]
    once = volume.parse({"server": server, "path": "/" + "/".join(parts), "vers": vers})
    again = volume.parse(
        {"server": once.server, "path": once.path, "vers": once.version},
        [",".join(once.options)],
    )
    assert once == again
