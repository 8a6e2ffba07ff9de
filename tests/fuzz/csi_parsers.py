"""Coverage-guided: whatever is written in a PersistentVolume, a StorageClass or a volume id is
refused by the name of the field, or comes out as something that is safe to mount.

`python tests/fuzz/csi_parsers.py -max_total_time=60`; the options are libFuzzer's. Inputs that
crash it are written to the working directory.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["kangaroo"]):
    from kangaroo.csi import mount_helper, storage_class, volume_id
    from kangaroo.errors import InvalidRequest
    from kangaroo.nas import volume
    from kangaroo.nas.volume import NasVolume

LONGEST = 200
WORDS = (
    *("192.0.2.1", "nas.example.com", "[2001:db8::1]", "/csi", "/csi/../x", "3", "4.1", "none"),
    *("nolock,hard", "vers=4.1", "0777", "recursive", "subpath", "sharepath", "delete", "true"),
    "${pvc.metadata.name}",
)
ATTRIBUTES = (*volume.ATTRIBUTES, "csi.storage.k8s.io/ephemeral")
PARAMETERS = (
    *("server", "path", "share", "volumeAs", "subDir", "mountPermissions", "onDelete"),
    *("archiveOnDelete", "vers", "options", "mode", "modeType", "csi.storage.k8s.io/pvc/name"),
)


def text(data: atheris.FuzzedDataProvider) -> str:
    """A word that is understood, or anything that protobuf can carry in a string."""
    if data.ConsumeBool():
        return str(data.PickValueInList(list(WORDS)))
    return str(data.ConsumeUnicodeNoSurrogates(data.ConsumeIntInRange(0, LONGEST)))


def table(data: atheris.FuzzedDataProvider, keys: tuple[str, ...]) -> dict[str, str]:
    said = {"server": "192.0.2.1"}
    for _ in range(data.ConsumeIntInRange(0, 6)):
        said[data.PickValueInList(list(keys))] = text(data)
    if data.ConsumeIntInRange(0, 9) == 0:
        said[text(data)] = text(data)
    return said


def check_mountable(parsed: NasVolume) -> None:
    """One argument stays one, no option hides in another, and no path leads up."""
    source, target, option, options = mount_helper.arguments(parsed, "/target")
    assert (target, option) == ("/target", "-o")
    for word in (options, source):
        assert word.isprintable(), word
        assert not word.startswith("-"), word
    assert " " not in options + parsed.server, (options, parsed.server)
    assert source == f"{parsed.server}:{parsed.path}"
    assert all(name == name.strip() for name in source.split("/")), source
    assert "," not in source, source
    assert parsed.path.startswith("/"), source
    assert ".." not in parsed.path.split("/"), source
    again = volume.parse({"server": parsed.server, "path": parsed.path})
    assert again.source == source


def fuzz(raw: bytes) -> None:
    data = atheris.FuzzedDataProvider(raw)
    try:
        one_input(data)
    except InvalidRequest as error:
        if not error.field:
            raise


def one_input(data: atheris.FuzzedDataProvider) -> None:
    match data.ConsumeIntInRange(0, 2):
        case 0:
            options = [text(data) for _ in range(data.ConsumeIntInRange(0, 3))]
            check_mountable(volume.parse(table(data, ATTRIBUTES), options))
        case 1:
            wanted = storage_class.parse(table(data, PARAMETERS), text(data) or "pvc")
            check_mountable(wanted.share)
            assert ".." not in wanted.subdir.split("/"), wanted
            assert "\0" not in wanted.subdir, wanted
        case _:
            found = volume_id.decode(text(data))
            assert found is None or str(found) == found.encode()


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
