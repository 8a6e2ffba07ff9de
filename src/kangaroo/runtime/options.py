"""The command line that containerd gives a shim, and the options it writes to the shim's standard
input.

Flags are in Go's style: `-id X`, `--id X`, `-id=X`; a flag that takes no value stands alone.
argparse would cost `start` more time than everything else it does.
"""

from __future__ import annotations

from kangaroo.errors import InvalidRequest
from kangaroo.wire.errors import RemoteProtocolError
from kangaroo.wire.protobuf import as_bytes, as_string, fields

DEFAULT_CONFIG_PATH = "/etc/kangaroo/runtime.toml"

_VALUES = {
    "id": "sandbox_id",
    "namespace": "namespace",
    "address": "address",
    "publish-binary": "publish_binary",
    "bundle": "bundle",
    "config": "config",
}
_SWITCHES = {"debug": "debug", "v": "version", "info": "info"}
_RUNTIME_OPTIONS_TYPE = "runtimeoptions.v1.Options"


class ShimOptions:
    """What the shim was asked to do. `command` is "start", "delete", "daemon" or "" for none."""

    command = ""
    sandbox_id = ""
    namespace = ""
    address = ""
    publish_binary = ""
    bundle = ""
    config = DEFAULT_CONFIG_PATH
    debug = False
    version = False
    info = False


def parse(arguments: list[str]) -> ShimOptions:
    """Read the arguments behind the program's name. Raises InvalidRequest naming the flag."""
    options = ShimOptions()
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            if options.command:
                raise InvalidRequest(word, "a second command")
            options.command = word
            continue
        name, assigned, value = word.lstrip("-").partition("=")
        if name in _SWITCHES:
            setattr(options, _SWITCHES[name], not assigned or value == "true")
        elif name in _VALUES:
            setattr(options, _VALUES[name], value if assigned else next(words, ""))
        else:
            raise InvalidRequest(word, "not a flag of this shim")
    return options


def config_path(task_options: bytes) -> str | None:
    """The `ConfigPath` that containerd's configuration sets for the runtime, if any.

    `task_options` is what `start` reads from standard input: empty, or a google.protobuf.Any that
    holds a runtimeoptions.v1.Options {type_url = 1, config_path = 2}. Anything else is ignored, as
    it is for another runtime.
    """
    try:
        content = {number: (kind, value) for number, kind, value in fields(task_options)}
        if 1 not in content or 2 not in content:
            return None
        if as_string(1, *content[1]).rpartition("/")[2] != _RUNTIME_OPTIONS_TYPE:
            return None
        inner = {n: (kind, value) for n, kind, value in fields(as_bytes(2, *content[2]))}
        return as_string(2, *inner[2]) or None if 2 in inner else None
    except RemoteProtocolError:
        return None
